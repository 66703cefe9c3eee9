"""The diffusion decoder's samplers: from noise and discrete tokens to video latents.

Preconditioning, noise levels and Euler's method follow EDM (arXiv 2206.00364).

Legend: B batch, T latent frames, H, W latent height and width, h, w token grid, E, X context length and width.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cosmos_triton.networks.diffusion_transformer import DiffusionConfig
from cosmos_triton.runtime.backends.backend import Runnable
from cosmos_triton.runtime.releases import SamplerName

SIGMA_DATA = 0.5

Denoiser = Runnable[DiffusionConfig]
# The network's outputs for latents [B, c, T, H, W] at noise levels c_noise [B]: [2 B, c, T, H, W], first those with
# tokens and text, then those without.
GuidedOutputs = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class GuidedDenoiser(Protocol):
    """A network that knows guidance: it computes once a clip what evaluations share, and leaves out what is zero."""

    def guided(self, tokens: Tensor, context: Tensor) -> GuidedOutputs:
        """Tokens [B, T, h, w] and context [B, E, X] of one batch of clips."""
        ...


@dataclass(frozen=True, slots=True)
class Sampler(ABC):
    """A solver, with the released models' settings."""

    steps: int = 15
    guidance: float = 1.8
    sigma_max: float = 80.0
    sigma_min: float = 0.02
    rho: float = 7.0

    @property
    @abstractmethod
    def sigmas(self) -> list[float]:
        """Noise levels, falling, `steps` + 1 of them."""

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """How often the network is evaluated."""

    @property
    @abstractmethod
    def noise_scale(self) -> float:
        """Standard deviation of the initial noise."""

    @abstractmethod
    def estimates(self, outputs: GuidedOutputs, noise: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
        """The estimate of the clean latents [B, c, T, H, W] after each evaluation.

        Args:
            noise: [B, c, T, H, W] of standard deviation `noise_scale`.
            dtype: of the network.
        """

    def initial_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Noise to begin with, fp32 on the CPU: the same on every machine."""
        return torch.randn(shape, generator=generator) * self.noise_scale

    def sample(
        self,
        network: Denoiser,
        noise: Tensor,
        tokens: Tensor,
        context: Tensor,
        *,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Clean latents [B, c, T, H, W] fp32, scaled by SIGMA_DATA.

        Args:
            noise: [B, c, T, H, W] of standard deviation `noise_scale`.
            tokens: [B, T, h, w].
            context: [B, E, X], in the network's dtype.
            on_step: called when an evaluation is complete, with (done, total). What it raises ends the sampling.
        """
        outputs = guided_outputs(network, tokens, context)
        for done, clean in enumerate(self.estimates(outputs, noise, context.dtype), start=1):
            if on_step is not None:
                if clean.is_cuda:
                    torch.cuda.current_stream().synchronize()  # the host is ahead of the GPU
                on_step(done, self.evaluations)
        return clean.float()

    def level(self, fraction: float) -> float:
        """The noise level `fraction` of the way from `sigma_max` to `sigma_min`."""
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (high + fraction * (low - high)) ** self.rho


def scalings(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(c_skip, c_out, c_in, c_noise) of EDM, in the shape and dtype of `sigma`."""
    variance = sigma**2 + SIGMA_DATA**2
    c_skip = SIGMA_DATA**2 / variance
    c_out = sigma * SIGMA_DATA / variance.sqrt()
    c_in = 1 / variance.sqrt()
    c_noise = 0.25 * sigma.log()
    return c_skip, c_out, c_in, c_noise


def denoise(network: Denoiser, x: Tensor, sigma: float, tokens: Tensor, context: Tensor) -> Tensor:
    """The network's estimate of the clean latents, [B, c, T, H, W] fp32.

    Args:
        x: [B, c, T, H, W] latents plus noise of standard deviation `sigma`.
        tokens: [B, T, h, w].
        context: [B, E, X], in the network's dtype.
    """
    [clean] = _estimates(lambda *inputs: network(inputs[0], tokens, context, inputs[1]), x, sigma, context.dtype)
    return clean


def _estimates(outputs: GuidedOutputs, x: Tensor, sigma: float, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Estimates of the clean latents, [B, c, T, H, W] fp32 each, as many as there are outputs for each of x.

    The released pipeline computes the scalings in bf16. Here they and the sum are fp32; only the network runs in its
    own dtype.
    """
    x = x.float()
    level = torch.full((len(x),), sigma, device=x.device)
    c_skip, c_out, c_in, c_noise = (c.view(-1, 1, 1, 1, 1) for c in scalings(level))
    out = outputs((c_in * x).to(dtype), c_noise.flatten())
    return tuple(c_skip * x + c_out * part.float() for part in out.split(len(x)))


def unconditional(tokens: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """What stands for "no tokens" and "no text" in guidance: token 0 everywhere, and zeros."""
    return torch.zeros_like(tokens), torch.zeros_like(context)


def guided_outputs(network: Denoiser, tokens: Tensor, context: Tensor) -> GuidedOutputs:
    """A network that knows nothing of guidance runs both halves as one forward of 2 B."""
    if isinstance(network, GuidedDenoiser):
        return network.guided(tokens, context)
    no_tokens, no_context = unconditional(tokens, context)
    both_tokens, both_contexts = torch.cat([tokens, no_tokens]), torch.cat([context, no_context])

    def outputs(x: Tensor, c_noise: Tensor) -> Tensor:
        return network(torch.cat([x, x]), both_tokens, both_contexts, torch.cat([c_noise, c_noise]))

    return outputs


def guided_denoise(outputs: GuidedOutputs, x: Tensor, sigma: float, dtype: torch.dtype, *, guidance: float) -> Tensor:
    """As `denoise`, pushed away from what the network would say without tokens and text."""
    conditioned, unconditioned = _estimates(outputs, x, sigma, dtype)
    return conditioned + guidance * (conditioned - unconditioned)


class MultistepSampler(Sampler):
    """Of Cosmos-1.0: a second-order multistep method in the logarithm of the noise level (DPM-Solver++(2M), arXiv
    2211.01095). `steps` solver steps are followed by one last evaluation at `sigma_min`. The state is fp64.
    """

    __slots__ = ()

    @property
    def sigmas(self) -> list[float]:
        return [self.level(i / self.steps) for i in range(self.steps + 1)]

    @property
    def evaluations(self) -> int:
        return self.steps + 1

    @property
    def noise_scale(self) -> float:
        return self.sigma_max

    def estimates(self, outputs: GuidedOutputs, noise: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
        sigmas, x, history = self.sigmas, noise.double(), None
        for i, sigma in enumerate(sigmas):
            clean = guided_denoise(outputs, x, sigma, dtype, guidance=self.guidance).double()
            yield clean
            if i < self.steps:
                x, history = _step(x, sigma, sigmas[i + 1], clean, history), (clean, sigma)


def _step(x: Tensor, sigma: float, next_sigma: float, clean: Tensor, history: tuple[Tensor, float] | None) -> Tensor:
    """From noise level `sigma` to `next_sigma`, by this estimate of the clean latents and the one before."""
    if history is None:
        return next_sigma / sigma * x + (1 - next_sigma / sigma) * clean
    last_clean, last_sigma = history
    s, t, m = -math.log(sigma), -math.log(next_sigma), -math.log(last_sigma)
    h = t - s
    c = (m - s) / h
    phi_1 = math.expm1(-h) / -h
    phi_2 = (phi_1 - 1) / -h
    return math.exp(-h) * x + h * ((phi_1 - phi_2 / c) * clean + phi_2 / c * last_clean)


class EulerSampler(Sampler):
    """Of Predict1: Euler's method without churn. Of `steps` evaluations the first is at `sigma_max`, the last at
    `sigma_min`, and the last one's estimate is the result.

    As in the released pipeline, the state has the network's dtype between steps, and fp32 within one. Guidance of the
    network's outputs, which is what that pipeline does, is guidance of the estimates, in which they are linear.
    """

    __slots__ = ()

    @property
    def sigmas(self) -> list[float]:
        return [*(self.level(i / max(self.steps - 1, 1)) for i in range(self.steps)), 0.0]

    @property
    def evaluations(self) -> int:
        return self.steps

    @property
    def noise_scale(self) -> float:
        """Noise of `sigma_max` on data of variance 1."""
        return math.hypot(self.sigma_max, 1)

    def estimates(self, outputs: GuidedOutputs, noise: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
        x = noise.to(dtype)
        for sigma, next_sigma in pairwise(self.sigmas):
            clean = guided_denoise(outputs, x, sigma, dtype, guidance=self.guidance)
            yield clean
            x = euler_step(x, sigma, next_sigma, clean)


def euler_step(x: Tensor, sigma: float, next_sigma: float, clean: Tensor) -> Tensor:
    """From noise level `sigma` to `next_sigma`, towards this estimate of the clean latents; in the dtype of `x`."""
    state = x.float()
    return (state + (state - clean) / sigma * (next_sigma - sigma)).to(x.dtype)


SAMPLERS: dict[SamplerName, type[Sampler]] = {"multistep": MultistepSampler, "euler": EulerSampler}
