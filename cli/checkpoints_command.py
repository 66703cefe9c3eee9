"""The command line `cosmos-triton checkpoints`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cosmos_triton.cli.commands import Commands, add_release, release_of
from cosmos_triton.cli.files import check_folder
from cosmos_triton.runtime.deployments import DEPLOYMENTS


def add_checkpoints(commands: Commands[argparse.ArgumentParser]) -> None:
    checkpoints = commands.add_parser(
        "checkpoints",
        help="download checkpoints and make them ready to serve",
        description="Download checkpoints and make them ready to serve: download (or tiny), then convert, then verify.",
    )
    steps = checkpoints.add_subparsers(metavar="STEP", required=True)

    tiny = _add_step(
        steps,
        "tiny",
        _tiny,
        help="make small random checkpoints",
        description="Make small random checkpoints with the files and key names of the released ones. What they "
        "generate is noise; they run on a laptop in seconds.",
        example="cosmos-triton checkpoints tiny /tmp/checkpoints",
    )
    tiny.add_argument("directory", type=Path, metavar="DIR")
    tiny.add_argument("--seed", type=int, default=0, help="of the random weights (default: 0)")
    add_release(tiny)

    download = _add_step(
        steps,
        "download",
        _download,
        help="download the released files of a deployment",
        description="Download the released files of a deployment from the Hugging Face hub. Access to every repository "
        "is checked first. Run it again to resume an interrupted download.",
        example="cosmos-triton checkpoints download --deployment 4b --to checkpoints",
    )
    download.add_argument(
        "--deployment",
        choices=list(DEPLOYMENTS),
        required=True,
        help="a tiny one only from a hub of your own that has it; otherwise `tiny` makes it",
    )
    download.add_argument("--to", type=Path, default=Path("checkpoints"), metavar="DIR", help="default: checkpoints")
    add_release(download)

    convert = _add_step(
        steps,
        "convert",
        _convert,
        help="convert released files to safetensors",
        description="Convert the released files to safetensors beside them, the only format that the server reads. No "
        "code from a file is run. Files that have not changed are skipped.",
        example="cosmos-triton checkpoints convert checkpoints",
    )
    _add_directory(convert)

    verify = _add_step(
        steps,
        "verify",
        _verify,
        help="what exists, what is missing, what does not fit",
        description="Check the converted files against the networks of every deployment, and against the SHA-256 that "
        "was recorded when they were written.",
        example="cosmos-triton checkpoints verify checkpoints --deployment 4b",
    )
    _add_directory(verify)
    verify.add_argument("--deployment", choices=list(DEPLOYMENTS), help="fail unless this one is ready")


def _add_step(
    steps: Commands[argparse.ArgumentParser], name: str, run: object, *, help: str, description: str, example: str
) -> argparse.ArgumentParser:
    parser = steps.add_parser(name, help=help, description=description, epilog=f"example: {example}")
    parser.set_defaults(run=run)
    return parser


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", type=Path, nargs="?", default=Path("checkpoints"), metavar="DIR", help="default: checkpoints"
    )
    add_release(parser)


# Each step imports torch itself, so that other commands start without it.


def _tiny(args: argparse.Namespace) -> int:
    from cosmos_triton.tiny.checkpoint_tree import write_tiny_tree

    check_folder("DIR", args.directory)
    write_tiny_tree(args.directory, release_of(args.directory, args.release), seed=args.seed)
    return 0


def _download(args: argparse.Namespace) -> int:
    from cosmos_triton.export.checkpoints.download import download

    check_folder("--to", args.to)
    download(args.to, DEPLOYMENTS[args.deployment].of(release_of(args.to, args.release)))
    return 0


def _convert(args: argparse.Namespace) -> int:
    from cosmos_triton.export.checkpoints.convert import convert

    check_folder("DIR", args.directory)
    problems = convert(args.directory, release_of(args.directory, args.release))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _verify(args: argparse.Namespace) -> int:
    from cosmos_triton.export.checkpoints.verify import verify

    release = release_of(args.directory, args.release)
    return 0 if verify(args.directory, release, deployment=args.deployment) else 1
