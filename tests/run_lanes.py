"""Run checks and test lanes side by side, and print what each took.

    python tests/run_lanes.py lint types unit

Checks and lanes of one track run one after the other, in the order in which they are given; the tracks run at the same
time. The lanes of whole pipelines take longest and hold answers against deadlines, so they have a track to themselves
and priority over the others. The output of a lane that fails is printed when it ends, the last line is the sum over all
lanes, and the exit code is 1 unless every check and lane has passed: a lane fails where pytest ends with any other code
than 0 or has run no test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from xml.etree import ElementTree

TESTS = Path(__file__).parent
BIN = Path(sys.executable).parent
TEARDOWN_SECONDS = 60  # for a lane that is interrupted to end its servers


@dataclass(frozen=True, slots=True)
class Lane:
    """`script` is a line of shell; without one, the lane is the tests in the folder of its name, after those `before`.

    What runs in one lane shares its servers.
    """

    track: str
    script: str = ""
    workers: int = 0  # processes of pytest-xdist; 0: the tests run in pytest's own
    before: tuple[str, ...] = ()
    prints: bool = False  # what it says is of interest when it passes too


LANES = {
    "lint": Lane("light", "ruff check --quiet . && ruff format --quiet --check . && hadolint Dockerfile.triton"),
    "types": Lane("light", "mypy -p cosmos_triton"),
    "unit": Lane("compute", workers=2),
    "component": Lane("compute", workers=2),
    "parity": Lane("compute"),
    "gpu": Lane("compute"),
    "server": Lane("light"),  # mostly waits
    "pipeline": Lane("pipeline", before=("variants",)),  # whose deadlines are the tightest: the others have ended
    "chaos": Lane("pipeline", prints=True),
}


@dataclass(frozen=True, slots=True)
class Run:
    """A lane at work. `process` leads a process group of its own, so that a Ctrl-C is for this program alone."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    results: Path
    began: float

    @staticmethod
    def start(name: str, folder: Path) -> Run:
        lane, log, results = LANES[name], folder / f"{name}.log", folder / f"{name}.xml"
        if lane.script:
            command = ["sh", "-c", lane.script]
        else:
            folders = [str(TESTS / folder) for folder in (*lane.before, name)]
            command = [sys.executable, "-m", "pytest", *folders, f"--junit-xml={results}"]
            command += ["-p", "no:cacheprovider"]  # which processes side by side would overwrite
            command += [f"--numprocesses={lane.workers}", "--dist=loadfile"] if lane.workers else []
        if lane.track != "pipeline":
            command = ["nice", *command]
        environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
        with log.open("wb") as sink:
            process = subprocess.Popen(
                command,
                cwd=TESTS.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        return Run(name, process, log, results, time.monotonic())

    def counts(self, exit_code: int) -> Counter[str]:
        """Of its tests; a check is one test, and so is a lane that ended badly without saying which test failed."""
        if LANES[self.name].script:
            return Counter(failed=1) if exit_code else Counter(passed=1)
        try:
            suite = ElementTree.parse(self.results).getroot()[0].attrib
        except (OSError, ElementTree.ParseError):
            suite = {}
        tests, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        passed = max(0, tests - failed - skipped)
        return Counter(passed=passed, failed=failed or int(exit_code != 0 or tests == 0), skipped=skipped)

    def report(self, exit_code: int, cpu_seconds: float) -> Counter[str]:
        """Print how it ended, after its output if it failed."""
        counts = self.counts(exit_code)
        if counts["failed"]:
            print(f"\n=== {self.name}: exit code {exit_code} ===\n{self.log.read_text(errors='replace')}")
        elif LANES[self.name].prints:
            print(self.log.read_text(errors="replace"))
        seconds = time.monotonic() - self.began
        print(f"{self.name:10} {seconds:6.1f} s, {cpu_seconds:6.1f} s of CPU: {summary(counts)}", flush=True)
        return counts

    def interrupt(self) -> None:
        """End it as Ctrl-C does, so that its servers are ended too, and print what it had said."""
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(TEARDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        print(f"\n=== {self.name}: interrupted ===\n{self.log.read_text(errors='replace')}", flush=True)


def summary(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped"))


@contextmanager
def interrupting(running: dict[int, Run]) -> Iterator[None]:
    """Whatever ends the block early ends the lanes at work."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        yield
    finally:
        for run in running.values():
            run.interrupt()


def run_lanes(names: Sequence[str]) -> Counter[str]:
    """Run them all, whether others fail or not."""
    waiting, running, total = list(names), dict[int, Run](), Counter[str]()
    with TemporaryDirectory(prefix="lanes-") as folder, interrupting(running):
        while waiting or running:
            for name in tuple(waiting):
                if LANES[name].track not in {LANES[run.name].track for run in running.values()}:
                    waiting.remove(name)
                    run = Run.start(name, Path(folder))
                    running[run.process.pid] = run
            pid, status, usage = os.wait4(-1, 0)
            run = running.pop(pid)
            run.process.returncode = os.waitstatus_to_exitcode(status)
            total += run.report(run.process.returncode, usage.ru_utime + usage.ru_stime)
    return total


def main(names: Sequence[str]) -> int:
    unknown = set(names) - LANES.keys()
    if unknown or not names:
        print(f"lanes: value {' '.join(sorted(unknown)) or 'none'}; accepted: {', '.join(LANES)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    total = run_lanes(names)
    print(f"{'all':10} {time.monotonic() - began:6.1f} s\n{summary(total)}")
    return int(total["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
