"""The diffusion decoder around its networks: evaluations, progress, and the noise that each release begins with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from cosmos_triton.networks import diffusion_transformer, tokenizer
from cosmos_triton.runtime.diffusion.decoder import DiffusionDecoder
from cosmos_triton.runtime.diffusion.sampler import SAMPLERS
from cosmos_triton.runtime.diffusion.windows import WINDOW
from cosmos_triton.runtime.releases import COSMOS_1_0, PREDICT1, RELEASES, Release
from cosmos_triton.runtime.video_tokenizer import LatentStatistics


@dataclass
class Stub:
    """Stands in for a network: it notes its first input and answers with zeros of that shape, or with a clip."""

    config: Any
    seen: list[Tensor] = field(default_factory=list)
    dtype = torch.float32
    device = "cpu"

    def __call__(self, x: Tensor, *_: Tensor) -> Tensor:
        self.seen.append(x)
        if isinstance(self.config, tokenizer.TokenizerConfig):
            return torch.zeros(1, 3, 57, *(side * self.config.spatial_compression for side in x.shape[-2:]))
        return torch.zeros_like(x)


def run(release: Release, *, seed: int, frames: int = 5) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """The network's latents in every evaluation, the conditional half; and the steps that were reported."""
    network = Stub(diffusion_transformer.PRESETS["tiny"])
    decoder = Stub(tokenizer.PRESETS["tiny-cv"])
    statistics = LatentStatistics(torch.zeros(1, 1, WINDOW, 1, 1), torch.ones(1, 1, WINDOW, 1, 1))
    steps: list[tuple[int, int]] = []
    stage = DiffusionDecoder(network, decoder, statistics, SAMPLERS[release.sampler](), release.noise_seed)  # type: ignore[arg-type]
    stage.decode(
        torch.zeros(1, frames, 2, 3, dtype=torch.int64),
        torch.zeros(1, 4, network.config.context_dim),
        frames=33,
        seed=seed,
        on_step=lambda *step: steps.append(step),
    )
    return [x[:1] for x in network.seen], steps


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
def test_every_evaluation_is_reported(release: Release) -> None:
    latents, steps = run(release, seed=3)
    assert len(latents) == release.evaluations
    assert steps == [(done, release.evaluations) for done in range(1, release.evaluations + 1)]


def test_the_seed_reaches_the_noise_of_predict1_and_not_that_of_cosmos_1_0() -> None:
    for release, is_reached in ((COSMOS_1_0, False), (PREDICT1, True)):
        first, again, other = (run(release, seed=seed)[0][0] for seed in (7, 7, 8))
        assert torch.equal(first, again)
        assert torch.equal(first, other) is not is_reached
        assert first.std() == pytest.approx(1, abs=0.1), "scaled for the network"


def test_windows_of_predict1_have_noise_of_their_own() -> None:
    for release, is_same in ((COSMOS_1_0, True), (PREDICT1, False)):
        latents, steps = run(release, seed=1, frames=14)
        assert steps[-1] == (2 * release.evaluations, 2 * release.evaluations)
        assert torch.equal(latents[0], latents[release.evaluations]) is is_same


def test_a_seed_may_be_as_large_as_a_request_may_ask() -> None:
    run(PREDICT1, seed=2**63 - 1)
