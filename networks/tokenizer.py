"""The Cosmos video tokenizers: DV8x16x16 turns video into tokens, CV8x8x8 into continuous latents.

Both are causal autoencoders of one build. Each released TorchScript file is one module here, and its weights' keys are
the module's state-dict keys; constants that were captured in the file (wavelets, codebook) are not among them.

Legend: B batch, C latent channels, T frames, H height, W width; t, h, w latent grid: T = 1 + (t - 1) * temporal
compression, H = h * spatial compression, W likewise. Pixels lie in [-1, 1].
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_triton.networks.fsq import FSQ
from cosmos_triton.networks.haar import haar_patch, haar_unpatch
from cosmos_triton.networks.network import Network
from cosmos_triton.networks.tokenizer_layers import (
    CausalConv,
    Downsample,
    FrameNorm,
    Resampling,
    Upsample,
    factorized_conv,
    middle,
    repeat_first_frame,
    residual_blocks,
)

PIXEL_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """Hyper-parameters of one tokenizer.

    `chunk_frames` is the length of the clips it was trained on: longer video is cut into chunks of it.
    `levels` are those of the quantiser, one number a latent channel; a continuous tokenizer has none.
    """

    channels: int
    channels_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    latent_channels: int
    levels: tuple[int, ...]
    spatial_compression: int
    temporal_compression: int
    patch_size: int
    chunk_frames: int

    def __post_init__(self) -> None:
        if self.levels and len(self.levels) != self.latent_channels:
            raise ValueError(f"levels {self.levels} must be one number for each of {self.latent_channels} channels")
        for name in ("spatial_compression", "temporal_compression"):
            value = getattr(self, name)
            if value % self.patch_size or (value // self.patch_size).bit_count() != 1:
                raise ValueError(f"{name} {value} must be patch_size {self.patch_size} times a power of 2")

    @property
    def widths(self) -> list[int]:
        """Channels of each level, from the pixels down to the latents."""
        return [self.channels * factor for factor in self.channels_mult]

    @property
    def haar_levels(self) -> int:
        return _log2(self.patch_size)

    @property
    def patch_channels(self) -> int:
        return PIXEL_CHANNELS * self.patch_size**3

    @property
    def chunk_latents(self) -> int:
        """Latent frames of a chunk."""
        return self.latent_frames(self.chunk_frames)

    @property
    def codebook_size(self) -> int:
        return FSQ(self.levels).codebook_size

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip; the first frame has one of its own."""
        return 1 + (frames - 1) // self.temporal_compression

    def downsampling(self, level: int) -> Resampling:
        """What stands behind `level` of the encoder; 0 is the first level."""
        return Resampling(time=level < self._temporal_steps, space=level < self._spatial_steps)

    def upsampling(self, level: int) -> Resampling:
        """What stands behind `level` of the decoder; 0 is the last level.

        The decoder's first level never doubles the frames, and doubles height and width only where these have more
        doublings to do than the frames.
        """
        depth = len(self.channels_mult) - 1 - level
        time = 0 < depth <= self._temporal_steps
        return Resampling(time=time, space=time or depth < self._spatial_steps > self._temporal_steps)

    @property
    def _spatial_steps(self) -> int:
        """How often height and width are halved behind the patching."""
        return _log2(self.spatial_compression // self.patch_size)

    @property
    def _temporal_steps(self) -> int:
        return _log2(self.temporal_compression // self.patch_size)


def _log2(power_of_2: int) -> int:
    return power_of_2.bit_length() - 1


def _discrete(*, channels: int, levels: tuple[int, ...]) -> TokenizerConfig:
    return TokenizerConfig(
        channels=channels,
        channels_mult=(2, 4, 4),
        num_res_blocks=2,
        z_channels=16,
        latent_channels=len(levels),
        levels=levels,
        spatial_compression=16,
        temporal_compression=8,
        patch_size=4,
        chunk_frames=33,
    )


def _continuous(*, channels: int) -> TokenizerConfig:
    return TokenizerConfig(
        channels=channels,
        channels_mult=(2, 4, 4),
        num_res_blocks=2,
        z_channels=16,
        latent_channels=16,
        levels=(),
        spatial_compression=8,
        temporal_compression=8,
        patch_size=4,
        chunk_frames=57,
    )


PRESETS: dict[str, TokenizerConfig] = {
    "dv8x16x16": _discrete(channels=128, levels=(8, 8, 8, 5, 5, 5)),
    "cv8x8x8": _continuous(channels=128),
    "tiny-dv": _discrete(channels=8, levels=(8, 5, 5, 5)),
    "tiny-cv": _continuous(channels=8),
}


class Encoder(nn.Module):
    """Pixels [B, 3, T, H, W] -> features [B, z_channels, t, h, w]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.haar_levels = config.haar_levels
        self.first_frame_repeats = config.patch_size - 1
        self.conv_in = factorized_conv(config.patch_channels, config.channels)
        self.down = nn.Sequential()
        for level, (width, next_width) in enumerate(pairwise([config.channels, *config.widths])):
            stage = OrderedDict[str, nn.Module](block=residual_blocks(width, next_width, config.num_res_blocks))
            if resampling := config.downsampling(level):
                stage["downsample"] = Downsample(next_width, resampling)
            self.down.append(nn.Sequential(stage))
        self.mid = middle(config.widths[-1])
        self.norm_out = FrameNorm(config.widths[-1])
        self.conv_out = factorized_conv(config.widths[-1], config.z_channels)

    def forward(self, video: Tensor) -> Tensor:
        x = haar_patch(repeat_first_frame(video, self.first_frame_repeats), self.haar_levels)
        x = self.mid(self.down(self.conv_in(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Features [B, z_channels, t, h, w] -> pixels [B, 3, T, H, W], not clamped."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.haar_levels = config.haar_levels
        self.first_frame_repeats = config.patch_size - 1
        widths = config.widths
        self.conv_in = factorized_conv(config.z_channels, widths[-1])
        self.mid = middle(widths[-1])
        self.up = nn.ModuleList()  # in the order of the encoder's levels: the last one runs first
        for level, (width, next_width) in enumerate(pairwise([*widths, widths[-1]])):
            stage = OrderedDict[str, nn.Module](block=residual_blocks(next_width, width, config.num_res_blocks + 1))
            if resampling := config.upsampling(level):
                stage["upsample"] = Upsample(width, resampling)
            self.up.append(nn.Sequential(stage))
        self.norm_out = FrameNorm(widths[0])
        self.conv_out = factorized_conv(widths[0], config.patch_channels)

    def forward(self, features: Tensor) -> Tensor:
        x = self.mid(self.conv_in(features))
        for stage in reversed(self.up):
            x = stage(x)
        bands = self.conv_out(F.silu(self.norm_out(x)))
        return haar_unpatch(bands, self.haar_levels)[:, :, self.first_frame_repeats :]


class DiscreteEncoder(Network):
    """Tokenizer-DV8x16x16/encoder.jit."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.fsq = FSQ(config.levels)
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv(config.z_channels, config.latent_channels)

    def latents(self, video: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] -> latents [B, C, t, h, w] before quantisation."""
        return self.quant_conv(self.encoder(video))

    def forward(self, video: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] -> tokens [B, t, h, w] int32."""
        return self.fsq.indices(self.fsq.quantise(self.latents(video)))


class DiscreteDecoder(Network):
    """Tokenizer-DV8x16x16/decoder.jit."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.fsq = FSQ(config.levels)
        self.post_quant_conv = CausalConv(config.latent_channels, config.z_channels)
        self.decoder = Decoder(config)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, t, h, w] -> pixels [B, 3, T, H, W], not clamped."""
        codes = self.fsq.codes(tokens).to(self.post_quant_conv.conv3d.weight.dtype)
        return self.decoder(self.post_quant_conv(codes))


class ContinuousEncoder(Network):
    """Tokenizer-CV8x8x8/encoder.jit."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv(config.z_channels, config.latent_channels)

    def forward(self, video: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] -> latents [B, C, t, h, w]."""
        return self.quant_conv(self.encoder(video))


class ContinuousDecoder(Network):
    """Tokenizer-CV8x8x8/decoder.jit."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.post_quant_conv = CausalConv(config.latent_channels, config.z_channels)
        self.decoder = Decoder(config)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [B, C, t, h, w] -> pixels [B, 3, T, H, W], not clamped."""
        return self.decoder(self.post_quant_conv(latents))
