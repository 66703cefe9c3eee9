"""No test is skipped unnoticed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import TESTS

# Modules by how their only test ends. An error is a failure before the test began.
MODULES = {
    "skipped": [
        "@pytest.mark.skip(reason='needs a GPU')\ndef test(): pass",
        "@pytest.mark.skipif(True, reason='needs a GPU with fp8')\ndef test(): pass",
        "def test(): pytest.skip('needs an NVIDIA GPU')",
        "pytest.skip('needs a GPU', allow_module_level=True)",
    ],
    "failed": ["def test(): pytest.importorskip('no_such_package')", "def test(): pytest.skip('not today')"],
    "error": [
        "@pytest.mark.skip\ndef test(): pass",
        "@pytest.mark.skipif(True, reason='needs curl')\ndef test(): pass",
        "@pytest.mark.parametrize('x', [])\ndef test(x): pass",
        "@pytest.fixture\ndef f(): pytest.skip('not today')\ndef test(f): pass",
        "pytest.importorskip('no_such_package')",
        "pytest.skip('needs curl', allow_module_level=True)",
    ],
    "xfailed": ["@pytest.mark.xfail\ndef test(): assert False"],
    "passed": ["def test(): pass"],
}


def test_a_skip_for_another_reason_than_a_missing_gpu_is_a_failure(tmp_path: Path) -> None:
    for outcome, modules in MODULES.items():
        for number, text in enumerate(modules):
            (tmp_path / f"test_{outcome}_{number}.py").write_text(f"import pytest\n{text}\n")
    command = [sys.executable, "-m", "pytest", "-p", "support.skips", "--continue-on-collection-errors", tmp_path]
    environment = {"PYTHONPATH": str(TESTS), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1, run.stdout
    summary = run.stdout.splitlines()[-1]
    for outcome, modules in MODULES.items():
        assert f"{len(modules)} {outcome}" in summary
        for number, _ in enumerate(modules if outcome in ("failed", "error") else ()):
            assert f"{outcome.upper()} test_{outcome}_{number}.py" in run.stdout
    assert "needs curl; accepted: a skip where a GPU is missing" in run.stdout


def test_the_suite_runs_with_it(request: pytest.FixtureRequest) -> None:
    assert request.config.pluginmanager.has_plugin("support.skips")
