"""The detector, the classifier, and what is done with their answers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cosmos_triton.guardrail.content_filter import ContentFilter, to_network_input
from cosmos_triton.guardrail.face_blur import (
    FaceBlur,
    FaceBlurConfig,
    non_maximum_suppression,
    pixelate,
    pixelate_boxes,
    select_boxes,
)
from cosmos_triton.networks import retinaface, video_safety
from cosmos_triton.networks.retinaface import RetinaFace
from cosmos_triton.networks.video_safety import ContentClassifier, VideoSafety
from support.paths import RELEASED_MANIFESTS, SUPPORT

MANIFESTS = json.loads(gzip.decompress(RELEASED_MANIFESTS.read_bytes()))["files"]


@pytest.mark.parametrize(
    ("file", "build", "config"),
    [
        ("face_blur_filter/Resnet50_Final.pth", RetinaFace, retinaface.PRESETS["resnet50"]),
        ("video_content_safety_filter/safety_filter.pt", VideoSafety, video_safety.PRESETS["siglip-so400m"]),
    ],
)
def test_keys_and_shapes_are_the_released_ones(file: str, build: Callable[[Any], nn.Module], config: Any) -> None:
    with torch.device("meta"):
        network = build(config)
    released = MANIFESTS[f"Cosmos-1.0-Guardrail/{file}"]["keys"]
    expected = {key.removeprefix("module."): tuple(shape) for key, (shape, _) in released.items()}
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == expected


def random_boxes(count: int, seed: int, *, around: float) -> Tensor:
    """Boxes [N, 4] whose corners lie within `around` pixels of the origin, on both sides of it."""
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand(count, 2, 2, generator=generator) * 2 - 1) * around
    return torch.cat([corners.amin(1), corners.amax(1)], dim=-1)


def test_only_pixels_inside_a_box_change_wherever_the_box_lies() -> None:
    frame = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows, columns = torch.arange(48)[:, None], torch.arange(64)[None]
    changed_boxes = 0
    for box in [*random_boxes(200, 1, around=100), torch.tensor([-1e9, -1e9, 1e9, 1e9])]:
        left, top, right, bottom = box.int()
        inside = (columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)
        blurred = frame.clone()
        regions = pixelate_boxes(blurred, box[None], FaceBlurConfig())
        is_large = right - left >= 20 and bottom - top >= 20
        assert regions == int(is_large and bool(inside.any()))
        assert torch.equal(blurred[~inside], frame[~inside])
        changed_boxes += not torch.equal(blurred, frame)
    assert changed_boxes > 50


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 30), (4, 3), (5, 5), (10, 10), (97, 61)])
def test_a_pixelated_region_is_five_by_five_flat_tiles(height: int, width: int) -> None:
    region = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    tiles = pixelate(region, 5)
    assert tiles.shape == region.shape
    assert len(tiles.flatten(0, 1).unique(dim=0)) <= min(height, 5) * min(width, 5)
    flat = torch.full_like(region, 200)
    assert pixelate(flat, 5).float().sub(200).abs().max() <= 1  # what OpenCV's cut products lose


def test_non_maximum_suppression_keeps_what_the_definition_keeps() -> None:
    boxes = random_boxes(300, 2, around=60)
    kept: list[Tensor] = []
    for box in boxes:
        width, height = (box[2:] - box[:2] + 1).tolist()
        for other in kept:
            shared = (torch.minimum(box, other)[2:] - torch.maximum(box, other)[:2] + 1).clamp(min=0).prod()
            union = width * height + (other[2:] - other[:2] + 1).prod() - shared
            if shared / union > 0.4:
                break
        else:
            kept.append(box)
    assert torch.equal(non_maximum_suppression(boxes, 0.4, max_boxes=300), torch.stack(kept))
    assert torch.equal(non_maximum_suppression(boxes, 0.4, max_boxes=7), torch.stack(kept[:7]))
    assert 10 < len(kept) < 300


def test_candidates_and_faces_are_limited_to_the_surest() -> None:
    left = torch.arange(100.0)[:, None] * 50
    boxes = torch.cat([left, torch.zeros(100, 1), left + 30, torch.full((100, 1), 30.0)], dim=1)
    scores = torch.linspace(0.5, 1, 100)
    config = FaceBlurConfig(max_candidates=40, max_faces=10)
    assert torch.equal(select_boxes(boxes, scores, config), boxes[90:].flip(0))
    above = int((scores > config.score_threshold).sum())
    assert len(select_boxes(boxes, scores, FaceBlurConfig())) == above < 100


@pytest.fixture
def random_blur() -> FaceBlur:
    """A detector that sees faces where there are none."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = RetinaFace(retinaface.PRESETS["tiny"])
        for head in network.ClassHead:
            nn.init.normal_(head.conv1x1.weight, std=3.0)
    return FaceBlur(network.eval(), FaceBlurConfig(score_threshold=0.6), batch_size=3)


def test_a_batch_of_frames_is_blurred_as_each_frame_by_itself(random_blur: FaceBlur) -> None:
    frames = torch.randint(0, 256, (7, 96, 128, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    before = frames.clone()
    blurred = random_blur.blur(frames)
    alone = [random_blur.blur(frame[None]) for frame in frames]
    assert torch.equal(blurred.frames, torch.cat([frame.frames for frame in alone]))
    assert blurred.faces == sum(frame.faces for frame in alone) > 7
    with_faces = sum(frame.frames_with_faces for frame in alone)
    assert blurred.frames_with_faces == with_faces == sum(frame.faces > 0 for frame in alone)
    assert torch.equal(frames, before)
    assert not torch.equal(blurred.frames, frames)


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e6])
def test_a_detector_without_finite_numbers_is_an_error_and_not_a_frame_without_faces(
    random_blur: FaceBlur, broken: float
) -> None:
    nn.init.constant_(random_blur.network.BboxHead[0].conv1x1.bias, broken)
    with pytest.raises(ValueError, match="not finite"):
        random_blur.blur(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(0, 64, 64, 3, dtype=torch.uint8),
        torch.zeros(64, 64, 3, dtype=torch.uint8),
        torch.zeros(1, 64, 64, 3),
        torch.zeros(1, 64, 64, 4, dtype=torch.uint8),
    ],
)
def test_what_is_no_video_passes_no_guardrail(random_blur: FaceBlur, frames: Tensor) -> None:
    with pytest.raises(ValueError, match="expected"):
        random_blur.blur(frames)
    with pytest.raises(ValueError, match="expected"):
        ContentFilter(ContentClassifier(StubEncoder(), VideoSafety(video_safety.PRESETS["tiny"]))).judge(frames)


class StubEncoder(nn.Module):
    """Stands in for SigLIP: the frame's mean colour in channel 0 of the features, 1 in channel 1."""

    class config:
        image_size = 16

    def forward(self, pixel_values: Tensor) -> Any:
        features = torch.zeros(len(pixel_values), 32)
        features[:, 0], features[:, 1] = pixel_values.mean((1, 2, 3)), 1
        return type("Output", (), {"pooler_output": features})


@pytest.fixture
def bright_is_unsafe() -> ContentFilter:
    """A filter that takes bright frames for class 3, and any other for Safe."""
    head = VideoSafety(video_safety.PRESETS["tiny"])
    state = {name: torch.zeros_like(tensor) for name, tensor in head.state_dict().items()}
    for name in ("weight", "running_var"):
        state[f"network.layers.1.{name}"] += 1
        state[f"network.layers.4.{name}"] += 1
    state["network.layers.0.weight"][0, 0] = 1
    state["network.layers.3.weight"][0, 0] = 1
    state["network.layers.6.weight"][3, 0] = 100
    state["network.layers.6.bias"][0] = 1
    head.load_state_dict(state)
    return ContentFilter(ContentClassifier(StubEncoder(), head).eval(), batch_size=4)


def test_one_unsafe_frame_makes_the_video_unsafe(bright_is_unsafe: ContentFilter) -> None:
    frames = torch.zeros(10, 24, 40, 3, dtype=torch.uint8)
    assert bright_is_unsafe.judge(frames).safe
    frames[9] = 255
    verdict = bright_is_unsafe.judge(frames)
    assert not verdict.safe
    assert (verdict.categories, verdict.reason) == (("Drugs",), "frame 9 shows Drugs")


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_classifier_without_finite_numbers_gives_no_verdict(bright_is_unsafe: ContentFilter, broken: float) -> None:
    nn.init.constant_(bright_is_unsafe.network.head.network.layers[6].bias[1:2], broken)
    with pytest.raises(ValueError, match="not finite"):
        bright_is_unsafe.judge(torch.zeros(2, 24, 40, 3, dtype=torch.uint8))


def test_a_classifier_that_leaves_frames_out_gives_no_verdict(
    bright_is_unsafe: ContentFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing was looked at, nothing unsafe was found."""
    monkeypatch.setattr(bright_is_unsafe.network.head, "forward", lambda features: features[:0, :7])
    with pytest.raises(ValueError, match="of 2 frames"):
        bright_is_unsafe.judge(torch.zeros(2, 24, 40, 3, dtype=torch.uint8))


@pytest.mark.parametrize("size", ["40x64", "24x96", "12x12"])
def test_frames_are_resized_as_by_siglips_image_processor(size: str) -> None:
    """Which resizes with Pillow. The file has frames of noise in black, grey and white, and what Pillow 13.0 made of
    them: `Image.fromarray(frame).resize((16, 16), Image.Resampling.BICUBIC)`.
    """
    recorded = load_file(SUPPORT / "resized_by_pillow.safetensors")
    expected = recorded[f"{size}.resized"].movedim(-1, 0) / 255 * 2 - 1
    difference = (to_network_input(recorded[f"{size}.frame"][None], 16)[0] - expected).abs() * 255 / 2  # in bytes
    assert difference.max() < 1.01  # Pillow's coefficients are fixed-point numbers: a value may fall to the other side
    assert (difference < 0.01).float().mean() > 0.99
