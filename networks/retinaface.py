"""RetinaFace: a single-shot face detector on a ResNet with a feature pyramid (Deng et al., arXiv:1905.00641).

State-dict keys are those of the released Resnet50_Final.pth without the leading `module.`.

Legend: B frames, C channels, H, W pixels, A anchors per cell, P priors (all anchors of all cells).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos_triton.networks.network import Network

EXPANSION = 4  # outer over inner channels of a bottleneck


@dataclass(frozen=True, slots=True)
class RetinaFaceConfig:
    """Hyper-parameters of one detector.

    `width` is the stem's channels; stage k (from 0) has `blocks[k]` bottlenecks, `width * 2**k` channels inside and
    four times that outside. The pyramid reads the last three stages, at `strides`, with anchors of `min_sizes` pixels.
    """

    width: int
    blocks: tuple[int, int, int, int]
    out_channels: int
    strides: tuple[int, int, int] = (8, 16, 32)
    min_sizes: tuple[tuple[int, ...], ...] = ((16, 32), (64, 128), (256, 512))

    def __post_init__(self) -> None:
        if self.out_channels % 4:
            raise ValueError(f"out_channels {self.out_channels} is not a multiple of 4")
        anchors = {len(sizes) for sizes in self.min_sizes}
        if len(self.min_sizes) != len(self.strides) or len(anchors) != 1:
            raise ValueError(f"min_sizes {self.min_sizes}: expected as many sizes at each of {self.strides}")

    @property
    def anchors(self) -> int:
        """A, anchors per cell."""
        return len(self.min_sizes[0])

    @property
    def pyramid_channels(self) -> tuple[int, ...]:
        """Channels of the stages that the pyramid reads."""
        return tuple(self.width * 2**stage * EXPANSION for stage in (1, 2, 3))


PRESETS: dict[str, RetinaFaceConfig] = {
    "resnet50": RetinaFaceConfig(width=64, blocks=(3, 4, 6, 3), out_channels=256),
    "tiny": RetinaFaceConfig(width=8, blocks=(1, 1, 1, 1), out_channels=32),
}


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the 3x3 carries the stride."""

    def __init__(self, in_channels: int, inner: int, stride: int) -> None:
        super().__init__()
        out_channels = inner * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = _conv(in_channels, out_channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


def _conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class Body(nn.Module):
    """The ResNet backbone, without its classifier."""

    def __init__(self, config: RetinaFaceConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, config.width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.width)
        channels, stages = config.width, []
        for index, blocks in enumerate(config.blocks):
            inner, stride = config.width * 2**index, 1 if index == 0 else 2
            stage = [Bottleneck(channels, inner, stride)]
            channels = inner * EXPANSION
            stage += [Bottleneck(channels, inner, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, x: Tensor) -> list[Tensor]:
        """x [B, 3, H, W] -> maps [B, C, ...] at strides 8, 16, 32."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer1(F.max_pool2d(x, 3, stride=2, padding=1))
        maps = []
        for stage in (self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


class FeaturePyramid(nn.Module):
    def __init__(self, config: RetinaFaceConfig) -> None:
        super().__init__()
        out = config.out_channels
        self.output1, self.output2, self.output3 = (_conv(c, out, 1) for c in config.pyramid_channels)
        self.merge1, self.merge2 = _conv(out, out, 3), _conv(out, out, 3)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Three feature maps of growing stride, coarser ones merged into finer ones top-down."""
        fine, middle, coarse = (
            F.relu(output(x)) for output, x in zip((self.output1, self.output2, self.output3), maps, strict=True)
        )
        middle = F.relu(self.merge2(middle + F.interpolate(coarse, size=middle.shape[2:])))
        fine = F.relu(self.merge1(fine + F.interpolate(middle, size=fine.shape[2:])))
        return [fine, middle, coarse]


class ContextModule(nn.Module):
    """The context module of SSH (arXiv:1708.03979): receptive fields of 3x3, 5x5 and 7x7 as chains of 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.conv3X3 = _conv(channels, half, 3)
        self.conv5X5_1 = _conv(channels, quarter, 3)
        self.conv5X5_2 = _conv(quarter, quarter, 3)
        self.conv7X7_2 = _conv(quarter, quarter, 3)
        self.conv7x7_3 = _conv(quarter, quarter, 3)

    def forward(self, x: Tensor) -> Tensor:
        shared = F.relu(self.conv5X5_1(x))
        wide = self.conv7x7_3(F.relu(self.conv7X7_2(shared)))
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(shared), wide], dim=1))


class Head(nn.Module):
    """A prediction head: x [B, C, h, w] -> `values` numbers per anchor of each cell, [B, h * w * A, values]."""

    def __init__(self, config: RetinaFaceConfig, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(config.out_channels, config.anchors * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.conv1x1(x), "b (a v) h w -> b (h w a) v", v=self.values)


class RetinaFace(Network):
    def __init__(self, config: RetinaFaceConfig) -> None:
        super().__init__()
        self.config = config
        self.body = Body(config)
        self.fpn = FeaturePyramid(config)
        self.ssh1, self.ssh2, self.ssh3 = (ContextModule(config.out_channels) for _ in config.strides)
        self.ClassHead = nn.ModuleList(Head(config, 2) for _ in config.strides)
        self.BboxHead = nn.ModuleList(Head(config, 4) for _ in config.strides)
        self.LandmarkHead = nn.ModuleList(Head(config, 10) for _ in config.strides)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and landmarks of every prior, in the order of `prior_boxes`.

        Args:
            x: [B, 3, H, W], BGR in 0..255 minus the training set's mean.

        Returns:
            loc [B, P, 4], offsets from the priors; conf [B, P, 2], probabilities of background and face; landms
            [B, P, 10], offsets of eyes, nose and corners of the mouth.
        """
        return self.detect(self.body(x))

    def detect(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`, from the body's maps."""
        pyramid = self.fpn(maps)
        features = [ssh(level) for ssh, level in zip((self.ssh1, self.ssh2, self.ssh3), pyramid, strict=True)]

        def join(heads: nn.ModuleList) -> Tensor:
            return torch.cat([head(level) for head, level in zip(heads, features, strict=True)], dim=1)

        return join(self.BboxHead), join(self.ClassHead).softmax(-1), join(self.LandmarkHead)


def prior_boxes(config: RetinaFaceConfig, height: int, width: int) -> Tensor:
    """The anchors of a height x width frame, [P, 4]: centre x, y and size x, y, as fractions of the frame.

    In raster order of cells, then by anchor, from the finest stride to the coarsest. Cells at the right and bottom may
    reach past the frame.
    """
    levels = []
    for stride, sizes in zip(config.strides, config.min_sizes, strict=True):
        y = (torch.arange(-(-height // stride), dtype=torch.float64) + 0.5) * stride / height
        x = (torch.arange(-(-width // stride), dtype=torch.float64) + 0.5) * stride / width
        size = torch.tensor(sizes, dtype=torch.float64)
        cy, cx, s = torch.meshgrid(y, x, size, indexing="ij")  # [rows, columns, A]
        levels.append(torch.stack([cx, cy, s / width, s / height], dim=-1).flatten(0, 2))
    return torch.cat(levels).float()
