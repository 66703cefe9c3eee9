"""A tiny RetinaFace in the released layout, trained in seconds to detect one drawn face.

The face is a green disc with eyes, mouth and rim in magenta. The backbone's weights are set by hand: two channels are
the amounts of green and magenta, and zero for any colour in between, so that all later layers see nothing in an
ordinary frame. The feature pyramid, the context modules and the heads are trained to tell faces from other green and
magenta shapes, and to locate them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from cosmos_triton.guardrail.face_blur import MEAN_BGR, FaceBlurConfig, to_network_input
from cosmos_triton.networks.retinaface import PRESETS, RetinaFace, prior_boxes

SKIN, INK = (0, 255, 0), (255, 0, 255)
SIZES = (24, 96)  # smallest and largest side of a face that the detector finds, in pixels

Image = NDArray[np.uint8]
Boxes = list[tuple[int, int, int, int]]  # left, top, right, bottom

CANVAS, SCENES, BATCH, STEPS = 128, 384, 16, 120
LEARNING_RATE = 6e-3
TRAINED_SIZES = (21, 108)  # SIZES and a margin
# A prior is background below the first IoU with any face, a face above the second, and ignored in between.
BACKGROUND_IOU, FACE_IOU = 0.25, 0.35
HARD_NEGATIVES = 7  # background priors in the loss for each face prior


def draw_test_face(frame: Image, y: int, x: int, size: int) -> None:
    """Draw the face into an RGB frame [H, W, 3]. The top left corner of its square is at row y, column x."""
    ticks = (np.arange(size) + 0.5) / size * 2 - 1
    v, h = np.meshgrid(ticks, ticks, indexing="ij")
    radius = np.hypot(v, h)
    eyes = np.hypot(v + 0.25, np.abs(h) - 0.38) <= 0.2
    mouth = (np.hypot(v - 0.05, h) <= 0.62) & (v >= 0.3)
    square = frame[y : y + size, x : x + size]
    square[radius <= 1] = SKIN
    square[(radius <= 1) & ((radius > 0.9) | eyes | mouth)] = INK


def write_face_detector(path: Path, *, seed: int) -> None:
    """Write Resnet50_Final.pth: legacy torch format, and the key prefix of DataParallel."""
    with torch.random.fork_rng(), _one_thread():
        torch.manual_seed(seed)
        network = RetinaFace(PRESETS["tiny"])
        set_body(network.body)
        train(network, np.random.default_rng(seed))
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path, _use_new_zipfile_serialization=False)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run on one thread: operations this small do not gain from a second, and suffer if its core is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def set_body(body: nn.Module) -> None:
    """Set the backbone: channels 0 and 1 of every map are the mean amounts of green and magenta; norms are identity."""
    state = body.state_dict()  # shares memory with the parameters: written in place
    for name, tensor in state.items():
        is_batch_norm = "bn" in name or "downsample.1" in name
        tensor.fill_(1 if is_batch_norm and name.endswith(("weight", "running_var")) else 0)
    green = torch.tensor([-0.5, 1, -0.5])  # of blue, green, red: 255 for SKIN, -255 for INK, 127 or less for others
    for channel, colour in enumerate((green, -green)):
        state["conv1.weight"][channel, :, 2:5, 2:5] = colour[:, None, None] / 9 / 64
        state["bn1.bias"][channel] = (colour @ torch.tensor(MEAN_BGR) - 160) / 64  # zero up to 160 of the 255
    both = [0, 1]
    state["layer1.0.downsample.0.weight"][both, both] = 1
    for stage in ("layer2.0", "layer3.0", "layer4.0"):  # 3 x 3 mean with stride 2
        state[f"{stage}.conv1.weight"][both, both] = 1
        state[f"{stage}.conv2.weight"][both, both] = 1 / 9
        state[f"{stage}.conv3.weight"][both, both] = 1


def train(network: RetinaFace, rng: np.random.Generator) -> None:
    """Train all but the backbone, whose feature maps are computed once per scene."""
    scenes = [draw_scene(rng) for _ in range(SCENES)]
    priors = prior_boxes(network.config, CANVAS, CANVAS)
    labels, targets = (torch.stack(part) for part in zip(*(match(priors, boxes) for _, boxes in scenes), strict=True))
    frames = to_network_input(torch.from_numpy(np.stack([frame for frame, _ in scenes])))
    network.train().body.eval().requires_grad_(False)
    batches = [network.body(part) for part in frames.split(BATCH)]
    maps = [torch.cat(level) for level in zip(*batches, strict=True)]

    optimizer = torch.optim.AdamW((p for p in network.parameters() if p.requires_grad), weight_decay=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.2)
    for _ in range(STEPS):
        chosen = torch.from_numpy(rng.integers(0, SCENES, BATCH))
        loc, conf, _ = network.detect([level[chosen] for level in maps])
        optimizer.zero_grad()
        detection_loss(loc, conf, labels[chosen], targets[chosen]).backward()
        optimizer.step()
        schedule.step()
    network.eval()


def detection_loss(loc: Tensor, conf: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """RetinaFace's loss without landmarks; labels [B, P]: 1 face, 0 background, -1 ignored; targets [B, P, 4]."""
    faces = labels == 1
    count = faces.sum().clamp(min=1)
    missed = -conf[..., 1][faces].clamp(min=1e-7).log()
    false = -conf[..., 0][labels == 0].clamp(min=1e-7).log()
    hardest = false.topk(min(HARD_NEGATIVES * int(count) + 50, len(false))).values
    regression = F.smooth_l1_loss(loc[faces], targets[faces], reduction="sum")
    return (missed.sum() + hardest.sum() + regression) / count


def match(priors: Tensor, boxes: Boxes) -> tuple[Tensor, Tensor]:
    """Label [P] and regression target [P, 4] of each prior, for boxes in pixels of the canvas."""
    labels, targets = torch.zeros(len(priors), dtype=torch.int64), torch.zeros(len(priors), 4)
    centre_variance, size_variance = FaceBlurConfig().variances
    prior_size = priors[:, 2:]
    for box in torch.tensor(boxes).reshape(-1, 4) / CANVAS:
        size = box[2:] - box[:2]
        offset = (box[:2] + box[2:]) / 2 - priors[:, :2]
        # The sides of the intersection: no longer than either box, and shorter the farther the centres are apart.
        sides = torch.minimum(torch.minimum(size, prior_size), (size + prior_size) / 2 - offset.abs()).clamp(min=0)
        overlap = sides.prod(-1)
        iou = overlap / (size.prod() + prior_size.prod(-1) - overlap)
        target = torch.cat([offset / prior_size / centre_variance, (size / prior_size).log() / size_variance], dim=-1)
        labels[(iou > BACKGROUND_IOU) & (labels == 0)] = -1
        labels[iou > FACE_IOU] = 1
        targets[iou > FACE_IOU] = target[iou > FACE_IOU]
    return labels, targets


def draw_scene(rng: np.random.Generator) -> tuple[Image, Boxes]:
    """A training image: rectangles, some in the colours of the face, and up to three faces that do not touch."""
    colours = np.array([SKIN, INK, rng.integers(0, 256, 3)], dtype=np.uint8)
    frame = np.broadcast_to(colours[2], (CANVAS, CANVAS, 3)).copy()
    if rng.random() < 0.15:
        cell, ticks = rng.integers(4, 40), np.arange(CANVAS)
        frame = colours[(ticks[:, None] // cell + ticks // cell) % 2]  # a checkerboard
    for _ in range(rng.integers(6)):
        (y, x), (height, width) = rng.integers(0, CANVAS, 2), rng.integers(2, 64, 2)
        frame[y : y + height, x : x + width] = colours[rng.integers(3)]
    boxes: Boxes = []
    for _ in range(rng.integers(4)):
        size = int(np.exp(rng.uniform(*np.log(TRAINED_SIZES))))
        y, x = (int(at) for at in rng.integers(0, CANVAS - size + 1, 2))
        if all(x + size < left or right < x or y + size < top or bottom < y for left, top, right, bottom in boxes):
            draw_test_face(frame, y, x, size)
            boxes.append((x, y, x + size, y + size))
    if rng.random() < 0.3:  # noise and gain, as of a codec or an exposure
        noise = rng.normal(0, rng.uniform(0, 15), frame.shape)
        frame = np.clip(frame * rng.uniform(0.9, 1.05) + noise, 0, 255).astype(np.uint8)
    return frame, boxes
