"""Generates one video from a file to a file, with progress bars and a summary line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from cosmos_triton.cli.exit_codes import print_error
from cosmos_triton.cli.files import write_atomically
from cosmos_triton.cli.progress import StageBars, print_warnings
from cosmos_triton.client.errors import GuardrailBlocked, InvalidInput, WorldError
from cosmos_triton.client.tensors import Parameters
from cosmos_triton.client.world_client import Generation, WorldClient


def generate_file(
    client: WorldClient, visual_input: Path, parameters: Parameters, *, output: Path, report: Path | None = None
) -> int:
    """Generate one video, and write it and the report, which a blocked request has too; returns the exit code."""
    started = time.monotonic()
    try:
        generation = _generate(client, visual_input, parameters, output)
    except GuardrailBlocked as blocked:
        _write_report(report, blocked.report)
        return print_error(blocked, about=visual_input)
    except WorldError as error:
        return print_error(error, about=visual_input)
    write_atomically(output, generation.video)
    _write_report(report, generation.report)
    print_warnings(generation.report)
    faces = generation.report.get("faces_blurred", 0)
    print(f"{output}: {generation.outcome} in {time.monotonic() - started:.1f} s, faces blurred: {faces}")
    return 0


def _generate(client: WorldClient, visual_input: Path, parameters: Parameters, output: Path) -> Generation:
    if output.exists() and visual_input.exists() and output.samefile(visual_input):
        raise InvalidInput(f"output: value '{output}'; accepted: a file other than the input")
    with StageBars() as bars:
        return client.generate(visual_input, on_event=bars, **parameters)


def _write_report(path: Path | None, report: dict[str, Any]) -> None:
    if path is not None:
        write_atomically(path, json.dumps(report, indent=2).encode() + b"\n")
