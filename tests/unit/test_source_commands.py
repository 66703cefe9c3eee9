"""The source's commands with the names and flags of Predict1, against a server that only tells what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cosmos_triton.cli.main import main


class Transport:
    """Tells the model's parameters and generates a video of one byte."""

    def __init__(self, **parameters: str) -> None:
        self.parameters = parameters
        self.requests = 0

    def model_parameters(self) -> dict[str, str]:
        return self.parameters

    def infer(self, *_: Any, **__: Any) -> Any:
        self.requests += 1
        yield {"video": b"v", "report": b'{"outcome": "generated"}'}

    def close(self) -> None: ...


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Transport:
    """Of a server with a model of Predict1, in a working directory with a clip."""
    transport = Transport(deployment="4b", release="predict1")
    monkeypatch.setattr("cosmos_triton.client.world_client._connect", lambda *_: transport)
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").write_bytes(b"clip")
    return transport


def base(*options: str) -> int:
    return main(["base", "--input_type=video", "--input_image_or_video_path=clip.mp4", *options])


@pytest.mark.parametrize("name", ["Cosmos-Predict1-4B", "checkpoints/Cosmos-Predict1-4B"])
def test_the_model_of_predict1_is_known_by_its_name(transport: Transport, name: str) -> None:
    assert base(f"--ar_model_dir={name}", "--video_save_name=world", "--top_p=0.8", "--temperature=1.0") == 0
    assert Path("outputs/world.mp4").read_bytes() == b"v"


def test_the_same_model_of_another_release_is_refused(transport: Transport, capsys: pytest.CaptureFixture[str]) -> None:
    assert base("--ar_model_dir=Cosmos-1.0-Autoregressive-4B") == 2
    accepted = "accepted: Cosmos-Predict1-4B, the server's"
    assert capsys.readouterr().err == f"--ar_model_dir: value Cosmos-1.0-Autoregressive-4B; {accepted}\n"
    transport.parameters.pop("release")  # as a server of an earlier version
    assert base("--ar_model_dir=Cosmos-1.0-Autoregressive-4B") == 0


def test_the_number_of_gpus_is_answered_in_one_line(transport: Transport, capsys: pytest.CaptureFixture[str]) -> None:
    assert base("--num_gpus=8", "--offload_tokenizer") == 0
    offload, gpus = capsys.readouterr().err.splitlines()
    assert offload.startswith("--offload_tokenizer: ")
    assert gpus.startswith("--num_gpus: not used, ")


@pytest.mark.parametrize("command", ["base", "video2world --prompt=rain"])
def test_guardrails_cannot_be_disabled(transport: Transport, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([*command.split(), "--input_image_or_video_path=clip.mp4", "--disable_guardrail"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("--disable_guardrail: ")
    assert error.count("\n") == 1
    assert transport.requests == 0


def test_a_release_that_the_client_does_not_know_is_named(
    transport: Transport, capsys: pytest.CaptureFixture[str]
) -> None:
    transport.parameters["release"] = "predict9"
    assert base() == 1
    assert "'predict9'" in capsys.readouterr().err


def test_a_batch_of_one_release_is_not_resumed_with_the_videos_of_the_other(transport: Transport) -> None:
    Path("batch.jsonl").write_text('{"visual_input": "clip.mp4"}\n')
    for release, requests in (("cosmos-1.0", 1), ("cosmos-1.0", 1), ("predict1", 2)):
        transport.parameters["release"] = release
        assert main(["base", "--batch_input_path=batch.jsonl"]) == 0
        assert transport.requests == requests
