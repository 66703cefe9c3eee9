"""No lane can fail unnoticed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import TESTS
from support.server import until

PASSES = "def test_one(): pass\n"
# Lanes by name, each the text of its only file.
GOOD = {"passes": PASSES, "skips": "import pytest\n@pytest.mark.skip\ndef test_one(): pass\n"}
BAD = {
    "fails": f"{PASSES}def test_two(): assert False\n",
    "is_empty": "",
    "cannot_be_imported": "import nowhere\n",
    "dies": f"{PASSES}def test_two():\n    import os\n    os._exit(0)\n",
    "fails_at_its_end": "import pytest\n@pytest.fixture\ndef f():\n    yield\n    1 / 0\ndef test_one(f): pass\n",
}
SLOW = """
import time
from pathlib import Path

def test_slow():
    Path("began").touch()
    try:
        time.sleep(600)
    finally:
        Path("ended").touch()
"""
PROGRAM = """
import sys
from pathlib import Path
import run_lanes

scripts = {"true": "true", "false": "echo a word of why; false"}
tests, *names = sys.argv[1:]
run_lanes.TESTS = Path(tests)
run_lanes.LANES = {name: run_lanes.Lane("a", scripts.get(name, ""), int(name == "fails")) for name in names}
sys.exit(run_lanes.main(names))
"""


def start(folder: Path, lanes: dict[str, str], *scripts: str) -> subprocess.Popen[str]:
    for name, text in lanes.items():
        file = folder / "tests" / name / "test_it.py"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    command = [sys.executable, "-c", PROGRAM, folder / "tests", *lanes, *scripts]
    environment = {"PYTHONPATH": str(TESTS), "PATH": "/usr/bin:/bin"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_good_lanes_are_exit_code_0_and_their_sum(tmp_path: Path) -> None:
    run = start(tmp_path, GOOD, "true")
    output, _ = run.communicate(timeout=120)
    assert output.endswith("\n2 passed, 0 failed, 1 skipped\n")
    assert run.returncode == 0


def test_each_bad_lane_is_a_failure_with_its_output_and_the_others_run(tmp_path: Path) -> None:
    run = start(tmp_path, BAD | GOOD, "false", "true")
    output, _ = run.communicate(timeout=120)
    assert output.endswith("\n3 passed, 6 failed, 1 skipped\n")
    assert run.returncode == 1
    for name in (*BAD, "false"):
        assert f"=== {name}: exit code " in output
    assert "a word of why" in output
    assert not any(f"=== {name}: " in output for name in (*GOOD, "true"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_fails_and_ends_its_lanes_in_order(tmp_path: Path, number: signal.Signals) -> None:
    run = start(tmp_path, {"slow": SLOW})
    until((tmp_path / "began").exists, seconds=60)
    run.send_signal(number)
    run.communicate(timeout=60)
    assert run.returncode != 0
    assert (tmp_path / "ended").exists()
