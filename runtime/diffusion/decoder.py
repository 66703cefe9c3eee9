"""The diffusion decoder as a whole: discrete tokens in, video out.

Legend: B batch, T frames, h, w token grid, H, W pixels, E, X context length and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from cosmos_triton.networks.diffusion_transformer import PATCH
from cosmos_triton.networks.tokenizer import TokenizerConfig
from cosmos_triton.runtime.backends.backend import Runnable
from cosmos_triton.runtime.diffusion.sampler import SIGMA_DATA, Denoiser, SamplerSettings, sample
from cosmos_triton.runtime.diffusion.windows import WINDOW, join_windows, split_windows
from cosmos_triton.runtime.video_tokenizer import LatentStatistics, decode_latents

NOISE_SEED = 1


def initial_noise(shape: tuple[int, ...], sigma_max: float) -> Tensor:
    """The noise every window of every video starts from, fp32 on the CPU: the request's seed does not reach it.

    The released pipeline draws it on the GPU; here it is the same on every machine.
    """
    return torch.randn(shape, generator=torch.Generator().manual_seed(NOISE_SEED)) * sigma_max


@dataclass(frozen=True, slots=True)
class DiffusionDecoder:
    """Networks on one device, each in its own dtype."""

    network: Denoiser
    tokenizer: Runnable[TokenizerConfig]
    statistics: LatentStatistics
    settings: SamplerSettings = field(default_factory=SamplerSettings)

    @torch.inference_mode()
    def decode(
        self, tokens: Tensor, context: Tensor, *, frames: int, on_step: Callable[[int, int], None] | None = None
    ) -> Tensor:
        """Tokens [B, T, h, w] -> video [B, 3, frames, H, W] in [0, 1], fp32.

        Args:
            context: [B, E, X] text embedding.
            frames: what to keep of the decoded clip.
            on_step: called with (done, total) evaluations; what it raises ends the decoding.

        Raises:
            ValueError: the clip cannot be cut into windows.
        """
        windows = split_windows(tokens)
        total = len(windows) * (self.settings.steps + 1)
        videos = []
        kept = WINDOW
        if len(windows) == 1 and isinstance(self.tokenizer, nn.Module):  # a graph takes whole windows only
            kept = self.tokenizer.config.latent_frames(frames)
        for index, window in enumerate(windows):

            def report(done: int, _: int, before: int = index * (self.settings.steps + 1)) -> None:
                if on_step is not None:
                    on_step(before + done, total)

            latents = self._denoise(window, context, report)[:, :, :kept]
            clips = [  # one after the other: the tokenizer's activations are larger than the network's
                decode_latents(self.tokenizer, clip, self.statistics, sigma_data=SIGMA_DATA).float().clamp(-1, 1)
                for clip in latents.split(1)
            ]
            videos.append(torch.cat(clips))
        return (join_windows(videos)[:, :, :frames] + 1) / 2

    def warm_up(self, context: Tensor, *, frames: int, size: tuple[int, int]) -> None:
        """Two evaluations and a decode, for a context [E, X] and a clip of this size in pixels: kernels are compiled,
        and the libraries choose theirs."""
        height, width = (side // self.tokenizer.config.spatial_compression // PATCH for side in size)
        shape = (1, self.tokenizer.config.latent_frames(frames), height, width)
        tokens = torch.zeros(shape, dtype=torch.int64, device=self.network.device)
        replace(self, settings=replace(self.settings, steps=1)).decode(tokens, context[None], frames=frames)

    def _denoise(self, tokens: Tensor, context: Tensor, on_step: Callable[[int, int], None]) -> Tensor:
        batch, _, height, width = tokens.shape
        config = self.network.config
        shape = (1, config.latent_channels, WINDOW, height * PATCH, width * PATCH)
        noise = initial_noise(shape, self.settings.sigma_max).to(tokens.device).expand(batch, -1, -1, -1, -1)
        context = context.to(self.network.dtype)
        return sample(self.network, noise, tokens, context, settings=self.settings, on_step=on_step)
