"""The video content filter: a classifier head on the SigLIP embedding of a frame.

State-dict keys are those found under "model" in the released safety_filter.pt.

Legend: N frames, S side of SigLIP's input, D embedding width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from cosmos_triton.networks.network import Network

if TYPE_CHECKING:
    from transformers import SiglipVisionModel  # which takes seconds to import

SAFE = 0  # index of the only class that passes


@dataclass(frozen=True, slots=True)
class VideoSafetyConfig:
    """Hyper-parameters of the head. `classes` are in the order of the logits."""

    input_dim: int
    hidden_dims: tuple[int, int]
    classes: tuple[str, ...] = (
        "Safe",
        "Sexual_Content",
        "Violence",
        "Drugs",
        "Child_Abuse",
        "Hate_and_Harassment",
        "Self-Harm",
    )


@dataclass(frozen=True, slots=True)
class ContentClassifierConfig:
    """`image_size` is the side of the square frames; `classes` are in the order of the logits."""

    image_size: int
    classes: tuple[str, ...]


PRESETS: dict[str, VideoSafetyConfig] = {
    "siglip-so400m": VideoSafetyConfig(input_dim=1152, hidden_dims=(512, 256)),
    "tiny": VideoSafetyConfig(input_dim=32, hidden_dims=(16, 8)),
}


class Perceptron(nn.Module):
    def __init__(self, config: VideoSafetyConfig) -> None:
        super().__init__()
        first, second = config.hidden_dims
        self.layers = nn.Sequential(
            nn.Linear(config.input_dim, first),
            nn.BatchNorm1d(first),
            nn.ReLU(),
            nn.Linear(first, second),
            nn.BatchNorm1d(second),
            nn.ReLU(),
            nn.Linear(second, len(config.classes)),
        )


class VideoSafety(Network):
    def __init__(self, config: VideoSafetyConfig) -> None:
        super().__init__()
        self.config = config
        self.network = Perceptron(config)

    def forward(self, features: Tensor) -> Tensor:
        """SigLIP's pooled image features [N, D] -> logits [N, K]. A zero vector gives NaN, since it is normalised."""
        return self.network.layers(normalise(features))


class ContentClassifier(Network):
    """SigLIP's vision tower followed by the classifier head."""

    def __init__(self, encoder: SiglipVisionModel, head: VideoSafety) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.config = ContentClassifierConfig(encoder.config.image_size, head.config.classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Frames [N, 3, S, S] in -1..1 -> logits [N, K]."""
        return self.head(self.encoder(pixel_values=pixels).pooler_output)


def normalise(features: Tensor) -> Tensor:
    """L2-normalise features [N, D]."""
    return features / features.norm(dim=-1, keepdim=True)
