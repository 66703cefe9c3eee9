"""The log of a server is read to its end, whatever becomes of standard error."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cosmos_triton.serving.log_output import MAX_WAITING, LogOutput
from cosmos_triton.serving.repository_api import ModelState
from cosmos_triton.serving.server_log import ServerLog
from support.server import until

LINES = 3 * MAX_WAITING
FULL = Path("/dev/full")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Its writing end stays open: a LogOutput goes on, and would write to whatever gets the same number."""
    reading, writing = os.pipe()
    yield reading, writing
    with suppress(OSError):
        os.close(reading)


def server_log(output: LogOutput) -> tuple[ServerLog, int]:
    """A log and the descriptor to write to it."""
    reading, writing = os.pipe()
    return ServerLog(os.fdopen(reading), output, has_gpu=False), writing


def write_lines(descriptor: int, count: int) -> None:
    """Blocks for ever where nobody reads."""
    with os.fdopen(descriptor, "w") as stream:
        for number in range(count):
            stream.write(f"line {number} {'x' * 100}\n")


def lost(text: str) -> int:
    return sum(map(int, re.findall(r"serve: (\d+) lines of this log were lost", text)))


@pytest.mark.parametrize("fault", ["closed", "full", "not read"])
def test_log_is_read_to_its_end(fault: str, pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    if fault == "closed":
        os.close(reading)
    output = LogOutput(os.open(FULL, os.O_WRONLY) if fault == "full" else writing)
    log, server = server_log(output)
    write_lines(server, LINES)
    log.join(60)
    assert not log._thread.is_alive()


def test_lost_lines_are_counted_once_it_can_be_written_again(tmp_path: Path) -> None:
    """A descriptor that fails, and then another file under the same number."""
    descriptor = os.open(FULL, os.O_WRONLY)
    output = LogOutput(descriptor)
    for number in range(7):
        output.write(f"lost {number}\n")
    output.flush()
    with (tmp_path / "log").open("wb") as file:
        os.dup2(file.fileno(), descriptor)
    output.write("first\n")
    output.write("second\n")
    output.flush()
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0].endswith(" serve: 7 lines of this log were lost")
    assert lines[1:] == ["first", "second"]


def test_every_line_is_written_or_counted(pipe: tuple[int, int]) -> None:
    """By a reader that stops reading and goes on."""
    reading, writing = pipe
    output = LogOutput(writing)
    log, server = server_log(output)
    write_lines(server, LINES)
    log.join(60)
    text = ""
    output.write("end\n")  # may be lost too
    while lost(text) + len(re.findall(r"^(?:line|end)", text, re.M)) < LINES + 1:
        text += os.read(reading, 1 << 20).decode()
        if not output._lines.unfinished_tasks and output._lost:
            output.write("")  # for the notice
    assert lost(text) > 0


def test_non_blocking_output_is_waited_for(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    output = LogOutput(writing)
    for _ in range(2000):
        output.write("x" * 99 + "\n")
    received = 0
    while received < 200_000:
        received += len(os.read(reading, 1 << 16))
    output.flush()
    assert output._lost == 0


def test_loads_and_failures_are_read_from_it(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        output = LogOutput(file.fileno())
        log, server = server_log(output)
        with os.fdopen(server, "w") as stream:
            stream.write(
                '2026-01-01T00:00:00Z I 1 model_lifecycle.cc:472] "loading: slow:1"\n'
                '2026-01-01T00:00:00Z I 1 model_lifecycle.cc:472] "loading: echo:1"\n'
                "2026-01-01T00:00:00Z I 1 model_lifecycle.cc:839] \"successfully loaded 'echo'\"\n"
                "2026-01-01T00:00:00Z E 1 model_lifecycle.cc:642] \"failed to load 'slow' version 1: Internal: "
                'ValueError: no weights\\n\\nAt:\\n  model.py(3): initialize\\n"\n'
            )
        log.join(10)
        until(lambda: not output._lines.unfinished_tasks, seconds=10)
    assert log.states == {"slow": ModelState("LOADING"), "echo": ModelState("READY")}
    assert log.failures == {"slow": "ValueError: no weights"}
