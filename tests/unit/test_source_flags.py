"""The flags of the reference's scripts: what they make of a request, and which server they accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmos_triton.cli.main import main
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from support.played_server import PlayedServer


@pytest.fixture(autouse=True)
def clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input in an otherwise empty working directory."""
    monkeypatch.chdir(tmp_path)
    Path("clip").write_bytes(b"clip")


def words(deployment: str) -> list[str]:
    """A whole command line for a server of that deployment."""
    if DEPLOYMENTS[deployment].is_video2world:
        return ["video2world", "--input_image_or_video_path=clip", "--prompt=A street."]
    return ["base", "--input_image_or_video_path=clip"]


@pytest.mark.parametrize(
    ("deployment", "input_type", "frames"),
    [
        ("4b", "image", 1),
        ("4b", "video", 9),
        ("5b-video2world", "text_and_image", 1),
        ("5b-video2world", "text_and_video", 9),
    ],
)
@pytest.mark.parametrize("given", [[], ["--num_input_frames=9"]], ids=["by default", "as given"])
def test_an_image_is_one_input_frame_and_a_clip_as_many_as_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, deployment: str, input_type: str, frames: int, given: list[str]
) -> None:
    server = PlayedServer(deployment).install(monkeypatch)
    assert main([*words(deployment), f"--input_type={input_type}", *given]) == 0
    assert server.frames == [frames]


@pytest.mark.parametrize("deployment", DEPLOYMENTS)
@pytest.mark.parametrize("form", ["{}", "{}/", "checkpoints/{}", "/somewhere/else/{}/"])
def test_a_model_may_be_named_by_its_folder_and_must_be_the_servers(
    monkeypatch: pytest.MonkeyPatch, deployment: str, form: str
) -> None:
    server = PlayedServer(deployment).install(monkeypatch)
    for name, other in DEPLOYMENTS.items():
        server.inputs.clear()
        code = main([*words(deployment), f"--ar_model_dir={form.format(other.ar_folder)}"])
        assert (code, len(server.inputs)) == ((0, 1) if name == deployment else (2, 0))
