"""The releases of the models: what differs between them, and where each has its files.

NVIDIA has released the same networks twice, as Cosmos-1.0 and as Cosmos-Predict1. A checkpoint directory may hold both.
No torch here: the command line and the client read this table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

SamplerName = Literal["multistep", "euler"]  # see runtime/diffusion/sampler.py

WEIGHTS = "model.safetensors"  # in the folder of an autoregressive model, and of a converted transformers model


@dataclass(frozen=True, slots=True)
class Release:
    """One release. Paths are relative to the checkpoint directory.

    Folders, each called like its repository of `nvidia` on the hub:
        ar_models: of an autoregressive model, with its name filled in.
        discrete_tokenizer, continuous_tokenizer, diffusion_decoder: of these networks.
        guardrails: of the guardrails.
        guardrails_in_models: whether the folders of models may hold the guardrails as well, in `guardrail/`.

    Diffusion decoder:
        sampler: the solver.
        evaluations: guided evaluations of the network for a window.
        noise_seed: of the initial noise; None where that is the request's.

    Blocklist:
        near_match_min_chars: shorter entries of `exact_match` match as whole words only.
        near_match_letters: an entry of n letters has a near match where difflib's ratio is (n - letters) / n or more.
    """

    name: str
    ar_models: str
    discrete_tokenizer: str
    continuous_tokenizer: str
    diffusion_decoder: str
    guardrails: str
    sampler: SamplerName
    evaluations: int
    noise_seed: int | None
    near_match_min_chars: int
    near_match_letters: float
    guardrails_in_models: bool = False
    # Converted files and folders.
    discrete_encoder: str = field(init=False)
    discrete_decoder: str = field(init=False)
    continuous_encoder: str = field(init=False)
    continuous_decoder: str = field(init=False)
    latent_statistics: str = field(init=False)  # mean and std, [256]
    diffusion_network: str = field(init=False)
    generic_prompt: str = field(init=False)  # context, [1, 512, C]
    t5_encoder: str = field(init=False)  # and tokenizer.json
    blocklist: str = field(init=False)  # word lists
    nltk_data: str = field(init=False)  # and an unpacked WordNet
    text_safety: str = field(init=False)  # LlamaGuard with the Aegis adapter merged, and its tokenizer
    policy: str = field(init=False)  # optional, written by the operator
    video_safety_encoder: str = field(init=False)  # SigLIP's vision tower
    video_safety: str = field(init=False)
    face_detector: str = field(init=False)

    def __post_init__(self) -> None:
        paths = {
            "discrete_encoder": f"{self.discrete_tokenizer}/encoder.safetensors",
            "discrete_decoder": f"{self.discrete_tokenizer}/decoder.safetensors",
            "continuous_encoder": f"{self.continuous_tokenizer}/encoder.safetensors",
            "continuous_decoder": f"{self.continuous_tokenizer}/decoder.safetensors",
            "latent_statistics": f"{self.continuous_tokenizer}/mean_std.safetensors",
            "diffusion_network": f"{self.diffusion_decoder}/{WEIGHTS}",
            "generic_prompt": f"{self.diffusion_decoder}/aux_vars.safetensors",
            "t5_encoder": "google-t5/t5-11b/encoder",
            "blocklist": f"{self.guardrails}/blocklist",
            "nltk_data": f"{self.guardrails}/blocklist/nltk_data",
            "text_safety": f"{self.guardrails}/aegis/merged",
            "policy": f"{self.guardrails}/aegis/policy.txt",
            "video_safety_encoder": f"{self.guardrails}/video_content_safety_filter/siglip",
            "video_safety": f"{self.guardrails}/video_content_safety_filter/safety_filter.safetensors",
            "face_detector": f"{self.guardrails}/face_blur_filter/Resnet50_Final.safetensors",
        }
        for name, path in paths.items():
            object.__setattr__(self, name, path)

    def folders_in(self, directory: Path) -> list[str]:
        """Folders of this release's own that `directory` has."""
        own = (self.discrete_tokenizer, self.continuous_tokenizer, self.diffusion_decoder, self.guardrails)
        ar_models = sorted(path.name for path in directory.glob(self.ar_models.format("*")) if path.is_dir())
        return list(dict.fromkeys([*ar_models, *(name for name in own if (directory / name).is_dir())]))

    def guardrail_folders(self, directory: Path) -> list[str]:
        """Where released files of the guardrails may be, the first choice first."""
        in_models = (path.relative_to(directory) for path in directory.glob(self.ar_models.format("*/guardrail")))
        return [self.guardrails, *(sorted(map(str, in_models)) if self.guardrails_in_models else ())]


COSMOS_1_0 = Release(
    name="cosmos-1.0",
    ar_models="Cosmos-1.0-Autoregressive-{}",
    discrete_tokenizer="Cosmos-1.0-Tokenizer-DV8x16x16",
    continuous_tokenizer="Cosmos-1.0-Tokenizer-CV8x8x8",
    diffusion_decoder="Cosmos-1.0-Diffusion-7B-Decoder-DV8x16x16ToCV8x8x8",
    guardrails="Cosmos-1.0-Guardrail",
    sampler="multistep",
    evaluations=16,
    noise_seed=1,
    near_match_min_chars=4,
    near_match_letters=0.5,
)

PREDICT1 = Release(
    name="predict1",
    ar_models="Cosmos-Predict1-{}",
    discrete_tokenizer="Cosmos-Tokenize1-DV8x16x16-720p",
    continuous_tokenizer="Cosmos-Tokenize1-CV8x8x8-720p",
    diffusion_decoder="Cosmos-Predict1-7B-Decoder-DV8x16x16ToCV8x8x8-720p",
    guardrails="Cosmos-Guardrail1",
    guardrails_in_models=True,
    sampler="euler",
    evaluations=15,
    noise_seed=None,
    near_match_min_chars=6,
    near_match_letters=0.4,
)

RELEASES = {release.name: release for release in (COSMOS_1_0, PREDICT1)}
