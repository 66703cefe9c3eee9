"""What commands have in common: what their parsers are added to, and the option --release."""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_triton.runtime.releases import COSMOS_1_0, RELEASES, Release

Commands = argparse._SubParsersAction  # argparse has no public name for it


def add_release(
    parser: argparse.ArgumentParser, default: str = "the only one that the directory has, else cosmos-1.0"
) -> None:
    """`default`: for the help text: what is taken without the option."""
    parser.add_argument("--release", choices=list(RELEASES), help=f"release of the models (default: {default})")


def release_of(directory: Path, name: str | None = None) -> Release:
    """The release `name`; without a name the only one that `directory` has folders of, else Cosmos-1.0."""
    if name is not None:
        return RELEASES[name]
    present = [release for release in RELEASES.values() if release.folders_in(directory)]
    return present[0] if len(present) == 1 else COSMOS_1_0
