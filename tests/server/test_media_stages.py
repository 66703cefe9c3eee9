"""The two media stages on a real tritonserver."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from cosmos_triton.pipeline.job_files import JOB
from cosmos_triton.serving.run_directory import model_repository
from support import media_files as files
from support.toys import ToyServer

MEDIA = {"media_decoder", "media_encoder"}
REFUSAL_SECONDS = 2.0
WIDTH, HEIGHT = 256, 160  # of the deployment's clips
CLIP = files.clip(files.numbered(12))
SIZE = {"width": files.WIDTH, "height": files.HEIGHT}
TEXT = b"this is not a video\n"


class Stages:
    """The stages by what they do, over gRPC."""

    def __init__(self, address: str, job: str) -> None:
        self.client = triton.InferenceServerClient(address)
        self.parameters = {JOB: job}

    def decode(self, data: bytes, num_input_frames: int | None = None) -> tuple[files.Pixels, dict[str, object]]:
        inputs = [_bytes("visual_input", data)]
        if num_input_frames is not None:
            inputs.append(_tensor("num_input_frames", np.array([num_input_frames], np.int32), "INT32"))
        result = self.client.infer("media_decoder", inputs, parameters=self.parameters)
        return result.as_numpy("frames"), json.loads(result.as_numpy("info")[0])

    def encode(self, video: files.Pixels, metadata: bytes) -> bytes:
        inputs = [_tensor("video", video, "UINT8"), _bytes("metadata", metadata)]
        return self.client.infer("media_encoder", inputs, parameters=self.parameters).as_numpy("mp4")[0]


def _bytes(name: str, value: bytes) -> triton.InferInput:
    return _tensor(name, np.array([value], np.object_), "BYTES")


def _tensor(name: str, value: np.ndarray, type: str) -> triton.InferInput:
    tensor = triton.InferInput(name, value.shape, type)
    tensor.set_data_from_numpy(value)
    return tensor


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    folder = tmp_path_factory.mktemp("media_stages")
    server = ToyServer(folder, model_repository(), deployment="tiny", only=MEDIA)
    server.start()
    with server.job() as job:
        yield Stages(server.grpc_url, job)
    server.close()


def refusal(stages: Stages, data: bytes, num_input_frames: int | None = None) -> str:
    started = time.monotonic()
    with pytest.raises(InferenceServerException) as caught:
        stages.decode(data, num_input_frames)
    assert time.monotonic() - started < REFUSAL_SECONDS
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    return caught.value.message()


def test_a_clip_becomes_its_last_nine_frames(stages: Stages) -> None:
    frames, info = stages.decode(CLIP)
    assert frames.dtype == np.uint8
    assert frames.shape == (9, files.HEIGHT, files.WIDTH, 3)
    assert frames.mean((1, 2, 3)) == pytest.approx([files.grey(i) for i in range(3, 12)], abs=1)
    assert info == SIZE | {"kind": "video", "frames": 12, "fps": 25.0, "num_input_frames": 9}


def test_the_number_of_frames_can_be_chosen(stages: Stages) -> None:
    frames, info = stages.decode(CLIP, 1)
    assert frames.shape == (1, files.HEIGHT, files.WIDTH, 3)
    assert info["num_input_frames"] == 1


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_an_image_becomes_one_frame(stages: Stages, format: str) -> None:
    frames, info = stages.decode(files.still(files.quadrants(), format))
    assert files.corners(frames[0]).astype(int) == pytest.approx(files.COLOURS.astype(int), abs=4)
    assert info == SIZE | {"kind": "image", "frames": 1, "fps": 0.0, "num_input_frames": 1}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (TEXT, "unknown format"),
        (CLIP[:-100], "should end"),
        (files.png_bomb(), "10000x10000 pixels"),
        (files.audio_only(), "none of them video"),
        (files.with_hidden_table(files.clip(files.numbered(1100, 16, 16)), shown=5), "more than 1000 frames"),
    ],
    ids=["empty", "text", "truncated", "bomb", "audio", "hidden"],
)
def test_a_hostile_file_is_an_invalid_argument_and_the_next_request_works(
    stages: Stages, data: bytes, reason: str
) -> None:
    message = refusal(stages, data)
    assert message.startswith("[INVALID_ARG] visual_input: value ")
    assert reason in message
    assert "; accepted: " in message
    assert len(stages.decode(CLIP)[0]) == 9


@pytest.mark.parametrize(
    ("data", "number"), [(CLIP, 2), (files.clip(files.numbered(5)), 9), (files.png(1, 1, bytes(5)), 9)]
)
def test_a_wrong_number_of_frames_is_an_invalid_argument(stages: Stages, data: bytes, number: int) -> None:
    assert refusal(stages, data, number).startswith(f"[INVALID_ARG] num_input_frames: value {number}")


def test_bad_requests_do_not_fail_their_neighbours(stages: Stages) -> None:
    def outcome(data: bytes) -> int | str:
        try:
            return len(stages.decode(data)[0])
        except InferenceServerException as error:
            return error.status()

    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(outcome, [CLIP, TEXT] * 12))
    assert outcomes == [9, "StatusCode.INVALID_ARGUMENT"] * 12


def test_a_camera_s_file_is_upright_and_names_its_pixel_aspect(stages: Stages) -> None:
    for name, aspect in (("o6.webp", None), ("rot_mvhd90.mp4", None), ("sar2.mp4", [2, 1])):
        frames, info = stages.decode((files.SAMPLES / name).read_bytes(), 1)
        assert frames.shape == (1, 192, 320, 3)
        assert info.get("pixel_aspect") == aspect


def test_a_phone_s_picture_is_halved(stages: Stages) -> None:
    frames, info = stages.decode(files.png(8064, 6048, bytes(6048 * (1 + 8064 // 8)), bits=1, colour=0))
    assert frames.shape == (1, 3024, 4032, 3)
    assert (info["width"], info["height"]) == (8064, 6048)


def slow_image(size: int) -> bytes:
    """A small file that takes long: 16 bits a channel, all black. About 0.8 s for 4096x4096 pixels."""
    return files.png(size, size, bytes(size * (1 + 6 * size)), bits=16, colour=2)


def test_a_slow_file_does_not_hold_up_others(stages: Stages) -> None:
    slow = slow_image(4096)
    with ThreadPoolExecutor(2) as pool:
        pending = [pool.submit(stages.decode, slow) for _ in range(2)]
        time.sleep(0.1)  # until they are at work
        assert len(stages.decode(CLIP)[0]) == 9
        assert not all(request.done() for request in pending)
        assert [len(request.result()[0]) for request in pending] == [1, 1]


def test_a_flood_is_turned_away_at_once_and_what_was_taken_is_answered(stages: Stages) -> None:
    data = slow_image(1024)

    def outcome(_: int) -> tuple[int | str, float]:
        started = time.monotonic()
        try:
            return len(stages.decode(data)[0]), time.monotonic() - started
        except InferenceServerException as error:
            return error.status(), time.monotonic() - started

    with ThreadPoolExecutor(120) as pool:
        outcomes = list(pool.map(outcome, range(120)))
    taken, turned_away = ([seconds for what, seconds in outcomes if what == w] for w in (1, "StatusCode.UNAVAILABLE"))
    assert len(taken) + len(turned_away) == 120
    assert len(taken) >= 64  # the queue
    assert turned_away
    assert max(turned_away) < max(taken), "who is turned away does not wait for the queue to end"


def test_a_video_becomes_an_mp4_that_says_what_it_is(stages: Stages, tmp_path: Path) -> None:
    video = files.numbered(33, WIDTH, HEIGHT)
    mp4 = stages.encode(video, json.dumps({"cosmos_model": "tiny", "cosmos_seed": "7"}).encode())
    assert mp4 == stages.encode(video, b'{"cosmos_model": "tiny", "cosmos_seed": "7"}')
    path = tmp_path / "video.mp4"
    path.write_bytes(mp4)
    with av.open(str(path)) as container:
        assert container.metadata["cosmos_seed"] == "7"
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert frames.mean((1, 2, 3)) == pytest.approx(video.mean((1, 2, 3)), abs=2)


@pytest.mark.parametrize(
    ("video", "metadata", "message"),
    [
        (files.numbered(33, WIDTH, HEIGHT - 1), b"{}", "[INVALID_ARG] video: value uint8 [33, 159, 256, 3]"),
        (files.numbered(33, 4098, 2), b"{}", "[INVALID_ARG] video: value uint8 [33, 2, 4098, 3]"),
        (files.numbered(33, WIDTH, HEIGHT), b"[]", "[INVALID_ARG] metadata: value b'[]'"),
        (files.numbered(33, WIDTH, HEIGHT), b"[" * 50_000, "[INVALID_ARG] metadata: value b'[[[["),
        (files.numbered(33, WIDTH, HEIGHT), b'{"title": "\\ud800"}', "[INVALID_ARG] metadata: value b'"),
    ],
)
def test_what_cannot_be_encoded_is_an_invalid_argument(
    stages: Stages, video: files.Pixels, metadata: bytes, message: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        stages.encode(video, metadata)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert caught.value.message().startswith(message)


def test_another_number_of_frames_than_33_is_refused(stages: Stages) -> None:
    with pytest.raises(InferenceServerException, match="unexpected shape"):
        stages.encode(files.numbered(9, WIDTH, HEIGHT), b"{}")
