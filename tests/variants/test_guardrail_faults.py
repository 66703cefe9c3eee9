"""Nothing passes that was not judged safe: every guardrail is made to fail in every way, inside a real server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cosmos_triton.guardrail.policy import Policy
from cosmos_triton.runtime.releases import COSMOS_1_0
from support.paths import SUPPORT
from support.pipeline_server import PROMPT, PipelineServer
from support.server import until

GUARDRAILS = {
    "blocklist": "text_guardrail",
    "aegis": "text_guardrail",
    "content_filter": "video_guardrail",
    "face_blur": "video_guardrail",
}
FAULTS = ("missing file", "exception", "NaN", "empty verdict", "unparsable verdict")
ANSWERS = {
    "text_guardrail": (
        "exception",
        "empty verdict",
        "no JSON",
        "no verdict",
        "safe in other words",
        "nothing checked",
    ),
    "video_guardrail": ("no JSON", "nothing checked", "no frames", "frames missing"),
}
OUTCOMES = {"text_guardrail": "prompt_blocked", "video_guardrail": "video_blocked"}
RECOVERED = 30  # seconds within which a stage is back


class FaultyServer(PipelineServer):
    def __init__(self, checkpoints: Path, folder: Path) -> None:
        self.fault_file = folder / "fault"
        self.fault_file.touch()
        script = SUPPORT / "serve_faulty.py"
        serve = [sys.executable, script, "--repository", folder / "repository", "--fault-file", self.fault_file]
        super().__init__("tiny-video2world", checkpoints, folder, serve=serve)

    def report(self, stage: str = "", fault: str = "", *, prompt: str) -> dict[str, Any]:
        """Of a request during which a stage has a fault. What is blocked has no video."""
        self.fault_file.write_text(f"{stage}/{fault}")
        encoded = self.runs("media_encoder")
        outputs = self.infer("grpc", prompt=prompt.encode(), disable_diffusion_decoder=True)
        self.fault_file.write_text("")
        report = json.loads(outputs["report"][0])
        is_generated = report["outcome"] == "generated"
        assert (outputs["video"][0] != b"") is is_generated
        assert self.runs("media_encoder") == encoded + is_generated
        return report

    def await_replacement(self, stage: str, pid: int) -> None:
        """Until a stage runs in another process than `pid`."""
        until(lambda: self.stub_pids(stage) not in ([], [pid]) and self.is_ready(), seconds=RECOVERED)


@pytest.fixture(scope="module")
def tree(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints, with a policy of the operator's."""
    tree = Path(shutil.copytree(checkpoints, tmp_path_factory.mktemp("tree") / "checkpoints", copy_function=os.link))
    (tree / COSMOS_1_0.policy).write_text(Policy.own().text.replace("Violence", "Violent acts"))
    return tree


@pytest.fixture(scope="module")
def server(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyServer]:
    server = FaultyServer(tree, tmp_path_factory.mktemp("faulty"))
    server.start()
    try:
        yield server
    finally:
        server.close()


def assert_blocked_by_error(report: dict[str, Any], guardrail: str, stage: str) -> None:
    assert report["outcome"] == OUTCOMES[stage]
    assert report["reason"] == f"guardrail_error: {guardrail}: the check failed"
    *before, last = report["guardrails"]
    assert all(check["safe"] is True for check in before)
    assert (last["guardrail"], last["safe"], last["categories"]) == (guardrail, False, ["guardrail_error"])
    assert report["faces_blurred"] == report["frames_blurred"] == 0


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("guardrail", GUARDRAILS)
def test_a_guardrail_that_fails_blocks(server: FaultyServer, guardrail: str, fault: str) -> None:
    stage = GUARDRAILS[guardrail]
    counted, logged = server.blocks(guardrail, "guardrail_error"), len(server.log)
    prompt = f"{PROMPT} with {guardrail} and {fault}"
    assert_blocked_by_error(server.report(stage, f"{guardrail}: {fault}", prompt=prompt), guardrail, stage)
    assert server.blocks(guardrail, "guardrail_error") == counted + 1
    log = server.log_with(f"guardrail {guardrail} failed", "File ", since=logged)
    assert prompt not in log


@pytest.mark.parametrize(("stage", "fault"), [(stage, fault) for stage in ANSWERS for fault in ANSWERS[stage]])
def test_an_answer_of_a_guardrail_stage_that_leaves_a_doubt_blocks(
    server: FaultyServer, stage: str, fault: str
) -> None:
    logged = len(server.log)
    report = server.report(stage, f"stage: {fault}", prompt=f"{PROMPT} without a doubt")
    assert_blocked_by_error(report, stage, stage)
    server.log_with(f"{stage} gave no verdict", since=logged)


def test_without_a_fault_the_same_prompts_pass(server: FaultyServer, tree: Path) -> None:
    """So it was the faults that blocked them, and no failure was remembered."""
    report = server.report(prompt=f"{PROMPT} with aegis and NaN")
    assert report["outcome"] == "generated"
    assert [check["guardrail"] for check in report["guardrails"]] == list(GUARDRAILS)
    assert report["policy_sha256"] == Policy.read(tree / COSMOS_1_0.policy).sha256 != Policy.own().sha256


@pytest.mark.parametrize("guardrail", GUARDRAILS)
def test_a_guardrail_that_hangs_blocks_and_is_replaced(server: FaultyServer, guardrail: str) -> None:
    stage = GUARDRAILS[guardrail]
    [hung], counted, logged = server.stub_pids(stage), server.blocks(stage, "guardrail_error"), len(server.log)
    report = server.report(stage, f"{guardrail}: time-out", prompt=f"{PROMPT} for ever and {guardrail}")
    assert_blocked_by_error(report, stage, stage)
    assert report["seconds"]["total"] < 15
    assert server.blocks(stage, "guardrail_error") == counted + 1
    server.await_replacement(stage, hung)
    server.log_with("Timeout", "in hang", f"died: {stage}", since=logged)  # `hang` is where it hung


def test_a_guardrail_stage_that_gives_no_answer_at_all_blocks(server: FaultyServer) -> None:
    stage = "text_guardrail"
    [hung] = server.stub_pids(stage)
    report = server.report(stage, "stage: time-out", prompt=f"{PROMPT}, unanswered")
    assert_blocked_by_error(report, stage, stage)
    assert report["seconds"]["total"] < 15
    os.kill(hung, signal.SIGKILL)
    server.await_replacement(stage, hung)


def test_without_a_guardrails_file_no_server_starts(tree: Path, tmp_path: Path) -> None:
    (tree / COSMOS_1_0.face_detector).unlink()
    server = PipelineServer("tiny-video2world", tree, tmp_path).launch()
    try:
        assert server.wait() == 1
    finally:
        server.close()
    assert f"tiny-video2world cannot run: missing {COSMOS_1_0.face_detector}" in server.log
