"""Generates one video from a file to a file, with progress bars and a summary line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from cosmos_triton.cli.exit_codes import FAILED, print_error
from cosmos_triton.cli.files import TEXT_ROOM, VIDEO_ROOM, check_output, save
from cosmos_triton.cli.messages import one_line, print_problem
from cosmos_triton.cli.progress import StageBars, print_warnings
from cosmos_triton.client.errors import GuardrailBlocked, InvalidInput, WorldError
from cosmos_triton.client.tensors import Parameters
from cosmos_triton.client.world_client import Generation, WorldClient


def generate_file(
    client: WorldClient,
    visual_input: Path,
    parameters: Parameters,
    *,
    output: Path,
    output_flag: str,
    report: Path | None = None,
) -> int:
    """Generate one video, and write it and the report, which a blocked request has too; returns the exit code.

    Raises:
        InvalidInput: the output or the report cannot be written; nothing was generated.
    """
    started = time.monotonic()
    _check_is_not_input(visual_input, output, field="output")
    check_output(output_flag, output, room=VIDEO_ROOM)
    if report is not None:
        _check_is_not_input(visual_input, report, field="--report")
        if _same(output, report):
            raise InvalidInput(f"--report: value {str(report)!r}; accepted: a file other than the video")
        check_output("--report", report, room=TEXT_ROOM)
    try:
        with StageBars() as bars:
            generation = client.generate(visual_input, on_event=bars, **parameters)
    except GuardrailBlocked as blocked:
        _save_report(report, blocked.report)
        return print_error(blocked, about=visual_input)
    except WorldError as error:
        return print_error(error, about=visual_input)
    return _save(generation, output, output_flag, report, started)


def _save(generation: Generation, output: Path, output_flag: str, report: Path | None, started: float) -> int:
    problem = save(output_flag, output, generation.video)
    has_report = _save_report(report, generation.report)
    print_warnings(generation.report)
    if problem:
        print_problem(problem)
        return FAILED
    faces = generation.report.get("faces_blurred", 0)
    seconds = time.monotonic() - started
    print(one_line(f"{output}: {generation.outcome} in {seconds:.1f} s, faces blurred: {faces}"))
    return 0 if has_report else FAILED


def _save_report(path: Path | None, report: dict[str, Any]) -> bool:
    """Whether there is nothing to write, or it was written; a problem is printed."""
    problem = path and save("--report", path, json.dumps(report, indent=2).encode() + b"\n")
    if problem:
        print_problem(problem)
    return not problem


def _check_is_not_input(visual_input: Path, path: Path, *, field: str) -> None:
    if _same(visual_input, path):
        raise InvalidInput(f"{visual_input}: {field}: value '{path}'; accepted: a file other than the input")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist: compare the names
        return os.path.realpath(one) == os.path.realpath(other)
