"""Face blur: faces are detected by RetinaFace in every frame, and pixelated.

Legend: T frames, H, W pixels, P priors, N boxes. A box is (left, top, right, bottom) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cosmos_triton.guardrail.frame_batches import FRAMES_AT_ONCE, check_frames
from cosmos_triton.networks.retinaface import RetinaFaceConfig, prior_boxes
from cosmos_triton.runtime.backends.backend import Runnable

MEAN_BGR = (104.0, 117.0, 123.0)  # of the detector's training images


@dataclass(frozen=True, slots=True)
class FaceBlurConfig:
    """The reference's settings.

    score_threshold: minimum face probability of a box
    iou_threshold: boxes that overlap a better one by more are dropped
    max_candidates: boxes that enter non-maximum suppression
    max_faces: boxes that leave it
    min_size: minimum width and height of a box in pixels
    blocks: a face becomes blocks x blocks tiles
    variances: scale of the network's offsets, for the centre and the size of a box
    """

    score_threshold: float = 0.7
    iou_threshold: float = 0.4
    max_candidates: int = 5000
    max_faces: int = 750
    min_size: tuple[int, int] = (20, 20)
    blocks: int = 5
    variances: tuple[float, float] = (0.1, 0.2)


@dataclass(frozen=True, slots=True)
class Blurred:
    """RGB uint8 frames [T, H, W, 3], the number of regions that were pixelated, and of frames that have any."""

    frames: Tensor
    faces: int
    frames_with_faces: int

    def facts(self) -> dict[str, int]:
        """For the report."""
        return {"faces_blurred": self.faces, "frames_blurred": self.frames_with_faces}


class FaceBlur:
    """Face detector and pixelation. Frames go through the network in batches."""

    name = "face_blur"

    def __init__(
        self,
        network: Runnable[RetinaFaceConfig],
        config: FaceBlurConfig | None = None,
        *,
        batch_size: int = FRAMES_AT_ONCE,
    ) -> None:
        self.network = network
        self.config = config or FaceBlurConfig()
        self.batch_size = batch_size

    @torch.inference_mode()
    def blur(self, frames: Tensor) -> Blurred:
        """RGB uint8 frames [T, H, W, 3] -> a copy with every face pixelated.

        Raises:
            ValueError: the frames have another shape or dtype, or the detector's outputs are not finite.
        """
        check_frames(frames)
        blurred = frames.clone()
        regions: list[int] = []  # how many each frame has
        for start in range(0, len(frames), self.batch_size):
            batch = blurred[start : start + self.batch_size]
            for frame, boxes in zip(batch, self.find_faces(batch), strict=True):
                regions.append(pixelate_boxes(frame, boxes, self.config))
        return Blurred(blurred, faces=sum(regions), frames_with_faces=sum(count > 0 for count in regions))

    def find_faces(self, frames: Tensor) -> list[Tensor]:
        """RGB uint8 frames [T, H, W, 3] -> for each frame boxes [N, 4] on the CPU, by descending score."""
        _, height, width, _ = frames.shape
        pixels = to_network_input(frames.to(self.network.device))
        loc, conf, _ = self.network(pixels.to(self.network.dtype))
        priors = prior_boxes(self.network.config, height, width)
        boxes = decode_boxes(loc.float().cpu(), priors, self.config.variances)  # [T, P, 4]
        boxes = boxes * torch.tensor([width, height, width, height])
        scores = conf[..., 1].float().cpu()  # [T, P]
        if not (boxes.isfinite().all() and scores.isfinite().all()):
            raise ValueError("the face detector gave numbers that are not finite")
        return [select_boxes(b, s, self.config) for b, s in zip(boxes, scores, strict=True)]


def to_network_input(frames: Tensor) -> Tensor:
    """RGB uint8 [T, H, W, 3] -> BGR minus the mean, float [T, 3, H, W]."""
    bgr = frames.flip(-1).float() - torch.tensor(MEAN_BGR, device=frames.device)
    return bgr.movedim(-1, 1)


def decode_boxes(loc: Tensor, priors: Tensor, variances: tuple[float, float]) -> Tensor:
    """Decode offsets loc [..., P, 4] relative to priors [P, 4]: boxes [..., P, 4] in fractions of the frame."""
    centre = priors[:, :2] + loc[..., :2] * variances[0] * priors[:, 2:]
    size = priors[:, 2:] * torch.exp(loc[..., 2:] * variances[1])
    top_left = centre - size / 2
    return torch.cat([top_left, top_left + size], dim=-1)


def select_boxes(boxes: Tensor, scores: Tensor, config: FaceBlurConfig) -> Tensor:
    """Score threshold and non-maximum suppression of boxes [P, 4], scores [P]: boxes [N, 4] by descending score."""
    confident = scores > config.score_threshold
    order = scores[confident].argsort(descending=True, stable=True)[: config.max_candidates]
    return non_maximum_suppression(boxes[confident][order], config.iou_threshold, max_boxes=config.max_faces)


def non_maximum_suppression(boxes: Tensor, iou_threshold: float, *, max_boxes: int) -> Tensor:
    """Greedy non-maximum suppression of boxes [N, 4] by descending score: at most `max_boxes` of them.

    Both edges of a box belong to it, as in RetinaFace's own evaluation: it is right - left + 1 pixels wide.
    """
    kept: list[Tensor] = []
    while len(boxes) and len(kept) < max_boxes:
        best, boxes = boxes[0], boxes[1:]
        kept.append(best)
        corner = torch.maximum(best[:2], boxes[:, :2])
        opposite = torch.minimum(best[2:], boxes[:, 2:])
        overlap = (opposite - corner + 1).clamp(min=0).prod(-1)
        union = _area(best) + _area(boxes) - overlap
        boxes = boxes[overlap / union <= iou_threshold]
    return torch.stack(kept) if kept else boxes


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2] + 1).prod(-1)


def pixelate_boxes(frame: Tensor, boxes: Tensor, config: FaceBlurConfig) -> int:
    """Pixelate boxes [N, 4] of one frame [H, W, C] in place, one after another; returns how many were pixelated.

    The minimum size applies before a box is clipped to the frame, so that half a face at the edge is hidden too.
    """
    height, width, _ = frame.shape
    regions = 0
    for left, top, right, bottom in boxes.to(torch.int64).tolist():
        if right - left < config.min_size[0] or bottom - top < config.min_size[1]:
            continue
        region = frame[max(top, 0) : max(min(bottom, height), 0), max(left, 0) : max(min(right, width), 0)]
        if region.numel():
            region.copy_(pixelate(region, config.blocks))
            regions += 1
    return regions


def pixelate(region: Tensor, blocks: int) -> Tensor:
    """A uint8 region [H, W, C] as blocks x blocks flat tiles, bit-exact with OpenCV.

    The reference downsamples with cv2.INTER_LINEAR and upsamples with cv2.INTER_NEAREST. OpenCV's linear resize of
    uint8 is fixed-point with weights in 1/2048. The horizontal pass is exact. The vertical pass shifts its input right
    by 4 bits, each product by 16, and rounds the last 2. At the left and right edge the outer tap's weight is folded
    into the edge pixel. At the top and bottom both taps read the same row, and each product is truncated.
    """
    height, width, _ = region.shape
    left, right, w_left, w_right = _linear_taps(width, blocks, fold_edges=True)
    top, bottom, w_top, w_bottom = _linear_taps(height, blocks, fold_edges=False)
    device = region.device
    pixels = region.to(torch.int64)

    def column(weights: Tensor) -> Tensor:
        return weights.to(device)[:, None]

    rows = pixels[:, left] * column(w_left) + pixels[:, right] * column(w_right)  # [H, blocks, C]
    rows >>= 4
    upper = (rows[top] * column(w_top)[..., None]) >> 16  # [blocks, blocks, C]
    lower = (rows[bottom] * column(w_bottom)[..., None]) >> 16
    tiles = ((upper + lower + 2) >> 2).to(torch.uint8)
    return tiles[_nearest_taps(blocks, height)][:, _nearest_taps(blocks, width)]


def _linear_taps(source: int, target: int, *, fold_edges: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each of `target` output pixels: the indices of its two input pixels, and their weights in 1/2048."""
    at = ((torch.arange(target, dtype=torch.float64) + 0.5) * (source / target) - 0.5).float()
    first = at.floor()
    fraction = at - first
    if fold_edges:
        fraction[(first < 0) | (first >= source - 1)] = 0
    weights = [(w * 2048).round().to(torch.int64) for w in (1 - fraction, fraction)]
    index = first.to(torch.int64)
    return index.clamp(0, source - 1), (index + 1).clamp(0, source - 1), weights[0], weights[1]


def _nearest_taps(source: int, target: int) -> Tensor:
    """For each of `target` output pixels: the index of its input pixel."""
    scale = 1 / (target / source)  # two divisions, as in OpenCV: their rounding decides where a tile starts
    return (torch.arange(target, dtype=torch.float64) * scale).to(torch.int64).clamp(max=source - 1)
