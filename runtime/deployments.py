"""The deployments: which networks serve together under one name.

No torch here: the client reads names and defaults from this table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from cosmos_triton.runtime.releases import COSMOS_1_0, Release


@dataclass(frozen=True, slots=True)
class Deployment:
    """One autoregressive model and the networks around it, each named by its preset in `networks/`.

    `ar_model` is the model's name in every release, such as `4B`. A generated clip has `frames` frames of `height` x
    `width` pixels, whatever the input's size.
    """

    name: str
    ar_preset: str
    ar_model: str
    is_video2world: bool
    top_p: float
    frames: int = 33
    height: int = 640
    width: int = 1024
    discrete_tokenizer: str = "dv8x16x16"
    continuous_tokenizer: str = "cv8x8x8"
    diffusion_decoder: str = "7b-decoder"
    text_encoder: str = "t5-11b"
    video_safety: str = "siglip-so400m"
    face_detector: str = "resnet50"
    release: Release = COSMOS_1_0

    def of(self, release: Release) -> Self:
        """The same deployment with the files and settings of `release`."""
        return replace(self, release=release)

    @property
    def ar_folder(self) -> str:
        """The folder of the autoregressive model in a checkpoint directory."""
        return self.release.ar_models.format(self.ar_model)

    @property
    def is_tiny(self) -> bool:
        """Whether its checkpoints are generated on this machine; the others are downloaded."""
        return self.name.startswith("tiny")


def _released(name: str, ar_model: str, *, top_p: float, is_video2world: bool = False) -> Deployment:
    return Deployment(name, name, ar_model, is_video2world=is_video2world, top_p=top_p)


def _tiny(name: str, ar_model: str, *, is_video2world: bool = False) -> Deployment:
    return Deployment(
        name,
        name,
        ar_model,
        is_video2world=is_video2world,
        top_p=0.8,
        height=160,
        width=256,
        discrete_tokenizer="tiny-dv",
        continuous_tokenizer="tiny-cv",
        diffusion_decoder="tiny",
        text_encoder="tiny",
        video_safety="tiny",
        face_detector="tiny",
    )


# With the files of Cosmos-1.0.
DEPLOYMENTS: dict[str, Deployment] = {
    deployment.name: deployment
    for deployment in (
        _released("4b", "4B", top_p=0.8),
        _released("12b", "12B", top_p=0.9),
        _released("5b-video2world", "5B-Video2World", top_p=0.7, is_video2world=True),
        _released("13b-video2world", "13B-Video2World", top_p=0.8, is_video2world=True),
        _tiny("tiny", "tiny"),
        _tiny("tiny-video2world", "tiny-Video2World", is_video2world=True),
    )
}

# The preset that a deployment has of each kind of network.
PRESET_OF: dict[str, Callable[[Deployment], str]] = {
    "ar": lambda d: d.ar_preset,
    "discrete_encoder": lambda d: d.discrete_tokenizer,
    "discrete_decoder": lambda d: d.discrete_tokenizer,
    "diffusion": lambda d: d.diffusion_decoder,
    "continuous_decoder": lambda d: d.continuous_tokenizer,
    "siglip": lambda d: d.video_safety,
    "video_safety": lambda d: d.video_safety,
    "face_detector": lambda d: d.face_detector,
    "t5": lambda d: d.text_encoder,
    "aegis": lambda d: "tiny" if d.is_tiny else "llamaguard-7b",
}
