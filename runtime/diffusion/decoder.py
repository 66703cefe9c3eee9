"""The diffusion decoder as a whole: discrete tokens in, video out.

Legend: B batch, T frames, h, w token grid, H, W pixels, E, X context length and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cosmos_triton.networks.diffusion_transformer import PATCH
from cosmos_triton.networks.tokenizer import TokenizerConfig
from cosmos_triton.runtime.backends.backend import Runnable
from cosmos_triton.runtime.diffusion.sampler import SIGMA_DATA, Denoiser, Sampler
from cosmos_triton.runtime.diffusion.windows import WINDOW, join_windows, split_windows
from cosmos_triton.runtime.video_tokenizer import LatentStatistics, decode_latents


@dataclass(frozen=True, slots=True)
class DiffusionDecoder:
    """Networks on one device, each in its own dtype.

    noise_seed: of the noise that every window of every video starts from; None where the noise is drawn from the
        request's seed, window after window.
    """

    network: Denoiser
    tokenizer: Runnable[TokenizerConfig]
    statistics: LatentStatistics
    sampler: Sampler
    noise_seed: int | None

    @torch.inference_mode()
    def decode(
        self,
        tokens: Tensor,
        context: Tensor,
        *,
        frames: int,
        seed: int = 0,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Tokens [B, T, h, w] -> video [B, 3, frames, H, W] in [0, 1], fp32.

        Args:
            context: [B, E, X] text embedding.
            frames: what to keep of the decoded clip.
            seed: the request's.
            on_step: called with (done, total) evaluations; what it raises ends the decoding.

        Raises:
            ValueError: the clip cannot be cut into windows.
        """
        windows = split_windows(tokens)
        total = len(windows) * self.sampler.evaluations
        generator = torch.Generator().manual_seed(seed)
        videos = []
        kept = WINDOW
        if len(windows) == 1 and isinstance(self.tokenizer, nn.Module):  # a graph takes whole windows only
            kept = self.tokenizer.config.latent_frames(frames)
        for index, window in enumerate(windows):

            def report(done: int, _: int, before: int = index * self.sampler.evaluations) -> None:
                if on_step is not None:
                    on_step(before + done, total)

            if self.noise_seed is not None:
                generator.manual_seed(self.noise_seed)
            latents = self._denoise(window, context, generator, report)[:, :, :kept]
            clips = [  # one after the other: the tokenizer's activations are larger than the network's
                decode_latents(self.tokenizer, clip, self.statistics, sigma_data=SIGMA_DATA).float().clamp(-1, 1)
                for clip in latents.split(1)
            ]
            videos.append(torch.cat(clips))
        return (join_windows(videos)[:, :, :frames] + 1) / 2

    def warm_up(self, context: Tensor, *, frames: int, size: tuple[int, int]) -> None:
        """An evaluation or two and a decode, for a context [E, X] and a clip of this size in pixels: kernels are
        compiled, and the libraries choose theirs."""
        height, width = (side // self.tokenizer.config.spatial_compression // PATCH for side in size)
        shape = (1, self.tokenizer.config.latent_frames(frames), height, width)
        tokens = torch.zeros(shape, dtype=torch.int64, device=self.network.device)
        replace(self, sampler=replace(self.sampler, steps=1)).decode(tokens, context[None], frames=frames)

    def _denoise(
        self, tokens: Tensor, context: Tensor, generator: torch.Generator, on_step: Callable[[int, int], None]
    ) -> Tensor:
        batch, _, height, width = tokens.shape
        config = self.network.config
        shape = (1, config.latent_channels, WINDOW, height * PATCH, width * PATCH)
        noise = self.sampler.initial_noise(shape, generator).to(tokens.device).expand(batch, -1, -1, -1, -1)
        return self.sampler.sample(self.network, noise, tokens, context.to(self.network.dtype), on_step=on_step)
