"""The repositories of the Hugging Face hub that released files come from."""

from __future__ import annotations

from dataclasses import dataclass

from cosmos_triton.export.checkpoints.catalogue import (
    AEGIS,
    LLAMA_GUARD,
    SIGLIP,
    T5,
    NeededBy,
    every,
    only,
    video2world,
)
from cosmos_triton.export.checkpoints.huggingface import MODEL_PATTERNS
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.runtime.releases import COSMOS_1_0, PREDICT1, Release

GUARDRAIL_FILES = (
    "blocklist/*",
    "face_blur_filter/Resnet50_Final.pth",
    "video_content_safety_filter/safety_filter.pt",
)
# MD5 sums of released files, as published, by release and path; of the guardrails, by path in a model's repository.
MD5: dict[str, dict[str, str]] = {
    COSMOS_1_0.name: {},
    PREDICT1.name: {
        "Cosmos-Predict1-4B/model.pt": "5fdc62fc87fbf470dbcc2288589b7942",
        "Cosmos-Predict1-12B/model.pt": "ed748fabcb544d30d35385a8c28efb4d",
        "Cosmos-Predict1-5B-Video2World/model.pt": "2a48a854bb6e04abb6b7c72979f1a69b",
        "Cosmos-Predict1-13B-Video2World/model.pt": "21a9fb02c61fbebc96c1af1fcaa5893f",
        "Cosmos-Predict1-7B-Decoder-DV8x16x16ToCV8x8x8-720p/model.pt": "a30149cc3730f3142b01fd374b6076f8",
        "Cosmos-Predict1-7B-Decoder-DV8x16x16ToCV8x8x8-720p/aux_vars.pt": "29e450d81839e82bb4bdbf12e43a74f1",
        "Cosmos-Tokenize1-DV8x16x16-720p/encoder.jit": "95186b0410346a3f0cf250b76daec452",
        "Cosmos-Tokenize1-DV8x16x16-720p/decoder.jit": "f0c8a9d992614a43e7ce24ebfc901e26",
        "Cosmos-Tokenize1-CV8x8x8-720p/encoder.jit": "f5834d03645c379bc0f8ad14b9bc0299",
        "Cosmos-Tokenize1-CV8x8x8-720p/decoder.jit": "ff21a63ed817ffdbe4b6841111ec79a8",
        "Cosmos-Tokenize1-CV8x8x8-720p/mean_std.pt": "f07680ad7eefae57d698778e2a0c7c96",
        "guardrail/video_content_safety_filter/safety_filter.pt": "b46dc2ad821fc3b0d946549d7ade19cf",
        "google-t5/t5-11b/pytorch_model.bin": "f890878d8a162e0045a25196e27089a3",
    },
}


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository, its destination folder, and patterns of the wanted files.

    subfolder: of the repository, where the wanted files are; the destination has no such folder.
    alternative: what is used instead where a pattern matches nothing.
    revision: resolved to a commit once, which is recorded in the manifest.
    """

    name: str
    folder: str
    wanted: tuple[str, ...]
    needed_by: NeededBy
    subfolder: str = ""
    alternative: HubRepository | None = None
    revision: str = "main"


def hub_repositories(release: Release) -> tuple[HubRepository, ...]:
    """Every repository that a deployment of a release may need."""
    deployments = [deployment.of(release) for deployment in DEPLOYMENTS.values()]
    return (
        *(_cosmos(d.ar_folder, "model.pt", "config.json", needed_by=only(d)) for d in deployments),
        _cosmos(release.discrete_tokenizer, "encoder.jit", "decoder.jit"),
        _cosmos(release.continuous_tokenizer, "decoder.jit", "mean_std.pt"),
        _cosmos(release.diffusion_decoder, "model.pt", "aux_vars.pt"),
        *_guardrails(release, deployments),
        HubRepository(SIGLIP, f"{release.guardrails}/video_content_safety_filter", MODEL_PATTERNS, every),
        HubRepository(T5, T5, MODEL_PATTERNS, video2world),
        HubRepository(LLAMA_GUARD, LLAMA_GUARD, MODEL_PATTERNS, video2world),
        HubRepository(AEGIS, f"{release.guardrails}/aegis", MODEL_PATTERNS, video2world),
    )


def _cosmos(folder: str, *wanted: str, needed_by: NeededBy = every) -> HubRepository:
    return HubRepository(f"nvidia/{folder}", folder, wanted, needed_by)


def _guardrails(release: Release, deployments: list[Deployment]) -> list[HubRepository]:
    """In the repository of a deployment's AR model, where the release has them there, or in one of their own."""
    own = _cosmos(release.guardrails, *GUARDRAIL_FILES)
    if not release.guardrails_in_models:
        return [own]
    return [
        HubRepository(
            f"nvidia/{deployment.ar_folder}",
            release.guardrails,
            GUARDRAIL_FILES,
            only(deployment),
            subfolder="guardrail",
            alternative=own,
        )
        for deployment in deployments
    ]
