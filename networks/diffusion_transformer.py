"""The diffusion decoder's transformer: denoises video latents under the guidance of discrete video tokens.

State-dict keys are those of the released model.pt without the leading `net.`. Two entries of that file have no use
when decoding and are not part of the network: `pos_embedder.seq` (0, 1, 2, ...) and the head `logvar.*`.

Legend: B batch, T latent frames, H, W latent height and width, h, w the token grid (= H / 2, W / 2), N = T * h * w,
C model width, A heads, D head dimension, E context length, X context width, R rank of the modulation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cosmos_triton.networks.ar_positions import grid_coordinates, rotate, split_axes
from cosmos_triton.networks.network import Network

NORM_EPS = 1e-6
MLP_RATIO = 4
PATCH = 2
BASE_FPS = 24.0
MLP_ROWS = 8192  # tokens in the MLP at a time: its hidden width is the largest tensor of a block
ROPE_BASE = 10000.0


@dataclass(frozen=True, slots=True)
class DiffusionConfig:
    """Hyper-parameters. `rope_stretch` are the extrapolation ratios of the rotary embedding along (t, h, w)."""

    dim: int
    n_blocks: int
    n_heads: int
    context_dim: int
    modulation_rank: int
    latent_channels: int
    token_vocab_size: int
    token_dim: int
    rope_stretch: tuple[float, float, float] = (1.0, 1.5, 1.5)

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def input_channels(self) -> int:
        """Noisy latents, token features, and the padding mask."""
        return self.latent_channels + self.token_dim + 1


PRESETS: dict[str, DiffusionConfig] = {
    "7b-decoder": DiffusionConfig(
        dim=4096,
        n_blocks=28,
        n_heads=32,
        context_dim=1024,
        modulation_rank=256,
        latent_channels=16,
        token_vocab_size=64000,
        token_dim=32,
    ),
    "tiny": DiffusionConfig(
        dim=64,
        n_blocks=2,
        n_heads=4,
        context_dim=32,
        modulation_rank=8,
        latent_channels=16,
        token_vocab_size=1000,
        token_dim=8,
    ),
}


def rope_angles(config: DiffusionConfig, grid: tuple[int, int, int], fps: float) -> Tensor:
    """Rotation angle of every token of a [T, h, w] grid, [N, D] fp32; time runs in units of 1/24 s.

    The released pipeline keeps the frequencies and this table in bf16, which is off by up to 0.32 rad at full size.
    Here both are fp32, as in the public ports of the sibling models.
    """
    frequencies = []
    for dim, stretch in zip(split_axes(config.head_dim), config.rope_stretch, strict=True):
        base = ROPE_BASE * stretch ** (dim / (dim - 2))
        k = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu")
        frequencies.append(1.0 / base ** (k / dim))
    coordinates = grid_coordinates(grid, leading_rows=0, rows=math.prod(grid))
    t, h, w = coordinates.unbind(-1)
    axes = zip((t * (BASE_FPS / fps), h, w), frequencies, strict=True)
    half = torch.cat([torch.outer(position, frequency) for position, frequency in axes], dim=-1)
    return torch.cat([half, half], dim=-1)


def timestep_embedding(c_noise: Tensor, dim: int) -> Tensor:
    """Sinusoids of the noise level [B] -> [B, C], fp32."""
    k = torch.arange(dim // 2, dtype=torch.float32, device=c_noise.device)
    angles = torch.outer(c_noise.float(), torch.exp(-math.log(ROPE_BASE) * k / (dim // 2)))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What every block of one forward shares."""

    timestep: Tensor  # [B, C], normalised
    modulation: Tensor  # [B, 3 * C], added to every block's own
    context: Tensor  # [B, E, X]
    cos: Tensor  # [N, D]
    sin: Tensor  # [N, D]


class AdaLN(nn.Sequential):
    """Low-rank projection of the timestep to the parts (shift, scale, ...) of an adaptive layer norm.

    A sequence, because the released keys number its members.
    """

    def __init__(self, dim: int, rank: int, parts: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(dim, rank, bias=False), nn.Linear(rank, parts * dim, bias=False))
        self.parts = parts

    def modulations(self, timestep: Tensor, modulation: Tensor) -> tuple[Tensor, ...]:
        """`parts` tensors, each [B, 1, C]."""
        own = self(timestep)  # [B, parts * C]
        return (own + modulation[:, : own.shape[1]])[:, None].chunk(self.parts, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights, then the given scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class Attention(nn.Module):
    """Attention on x itself, or on a context; queries and keys are normalised a head."""

    def __init__(self, dim: int, kv_dim: int, head_dim: int) -> None:
        super().__init__()

        def projection(in_dim: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(in_dim, dim, bias=False), nn.RMSNorm(head_dim, eps=NORM_EPS))

        self.head_dim = head_dim
        self.to_q = projection(dim)
        self.to_k = projection(kv_dim)
        self.to_v = nn.Sequential(nn.Linear(kv_dim, dim, bias=False))
        self.to_out = nn.Sequential(nn.Linear(dim, dim, bias=False))

    def forward(self, x: Tensor, source: Tensor, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        """x [B, N, C], source [B, M, C or X], rope two [N, D] tables -> [B, N, C]."""

        def heads(y: Tensor) -> Tensor:
            return rearrange(y, "b n (a d) -> b a n d", d=self.head_dim)

        q = self.to_q[1](heads(self.to_q[0](x)))
        k = self.to_k[1](heads(self.to_k[0](source)))
        v = heads(self.to_v(source))
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b a n d -> b n (a d)"))


class SelfAttention(nn.Module):
    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.attn = Attention(config.dim, config.dim, config.head_dim)

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        return self.attn(x, x, rope=(conditioning.cos, conditioning.sin))


class CrossAttention(nn.Module):
    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.attn = Attention(config.dim, config.context_dim, config.head_dim)

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        return self.attn(x, conditioning.context, rope=None)


class MLP(nn.Module):
    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.layer1 = nn.Linear(config.dim, MLP_RATIO * config.dim, bias=False)
        self.layer2 = nn.Linear(MLP_RATIO * config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        # An exported graph leaves workspaces to its engine.
        parts = (x,) if torch.compiler.is_exporting() else x.split(MLP_ROWS, dim=1)
        return torch.cat([self.layer2(F.gelu(self.layer1(rows))) for rows in parts], dim=1)


class SubBlock(nn.Module):
    """One of attention, cross-attention and MLP, with its modulation and residual."""

    def __init__(self, config: DiffusionConfig, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.adaLN_modulation = AdaLN(config.dim, config.modulation_rank, parts=3)

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        shift, scale, gate = self.adaLN_modulation.modulations(conditioning.timestep, conditioning.modulation)
        return x + gate * self.block(modulate(x, shift, scale), conditioning)


class Block(nn.Module):
    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        parts = (SelfAttention(config), CrossAttention(config), MLP(config))
        self.blocks = nn.ModuleList(SubBlock(config, part) for part in parts)

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        for block in self.blocks:
            x = block(x, conditioning)
        return x


class TimestepMLP(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, dim, bias=False)
        self.linear_2 = nn.Linear(dim, 3 * dim, bias=False)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(embedding)))


class PatchEmbedding(nn.Module):
    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        patch_dim = config.input_channels * PATCH * PATCH
        self.proj = nn.Sequential(nn.Identity(), nn.Linear(patch_dim, config.dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, T, H, W] -> [B, N, C]"""
        return self.proj(rearrange(x, "b c t (h p) (w q) -> b (t h w) (c p q)", p=PATCH, q=PATCH))


class FinalLayer(nn.Module):
    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.dim, PATCH * PATCH * config.latent_channels, bias=False)
        self.adaLN_modulation = AdaLN(config.dim, config.modulation_rank, parts=2)

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        shift, scale = self.adaLN_modulation.modulations(conditioning.timestep, conditioning.modulation)
        return self.linear(modulate(x, shift, scale))


class DiffusionTransformer(Network):
    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbedding(config)
        self.token_embedder = nn.Embedding(config.token_vocab_size, config.token_dim)
        self.t_embedder = nn.Sequential(nn.Identity(), TimestepMLP(config.dim))
        self.affline_norm = nn.RMSNorm(config.dim, eps=NORM_EPS)
        self.blocks = nn.ModuleDict({f"block{i}": Block(config) for i in range(config.n_blocks)})
        self.final_layer = FinalLayer(config)

    def forward(self, x: Tensor, tokens: Tensor, context: Tensor, c_noise: Tensor, *, fps: float = BASE_FPS) -> Tensor:
        """The network's raw output; `cosmos_triton.runtime.diffusion.sampler` turns it into a denoised latent.

        Args:
            x: [B, latent_channels, T, H, W] scaled noisy latents.
            tokens: [B, T, h, w] discrete video tokens.
            context: [B, E, context_dim] text embedding; every row is attended to.
            c_noise: [B] logarithmic noise level.

        Returns:
            [B, latent_channels, T, H, W] in the model's dtype.
        """
        frames, height, width = tokens.shape[1:]
        conditioning = self.condition(c_noise, context, (frames, height, width), fps=fps)
        hidden = self.embed(x, tokens)
        for block in self.blocks.values():
            hidden = block(hidden, conditioning)
        out = self.final_layer(hidden, conditioning)  # [B, N, 2 * 2 * latent_channels]
        return rearrange(out, "b (t h w) (p q c) -> b c t (h p) (w q)", t=frames, h=height, w=width, p=PATCH, q=PATCH)

    def embed(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Latents [B, c, T, H, W] beside the features of their tokens, as patches [B, N, C]."""
        height, width = x.shape[-2:]
        return self.embed_features(x, self.token_features(tokens, (height, width)).to(x.dtype))

    def token_features(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens [B, T, h, w] -> features [B, token_dim, T, H, W] fp32, interpolated to `size`."""
        features = rearrange(self.token_embedder(tokens), "b t h w c -> (b t) c h w").float()
        features = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        return rearrange(features, "(b t) c h w -> b c t h w", b=tokens.shape[0])

    def embed_features(self, x: Tensor, features: Tensor) -> Tensor:
        """Latents [B, c, T, H, W] beside features [B, token_dim, T, H, W], as patches [B, N, C]."""
        padding_mask = torch.zeros_like(x[:, :1])  # clips fill the frame: nothing is padding
        return self.x_embedder(torch.cat([x, features, padding_mask], dim=1))

    def condition(self, c_noise: Tensor, context: Tensor, grid: tuple[int, int, int], *, fps: float) -> Conditioning:
        angles = rope_angles(self.config, grid, fps).to(context.device)
        timestep, modulation = self.embed_timestep(c_noise, context.dtype)
        return Conditioning(
            timestep=timestep,
            modulation=modulation,
            context=context,
            cos=angles.cos().to(context.dtype),
            sin=angles.sin().to(context.dtype),
        )

    def embed_timestep(self, c_noise: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """`timestep` and `modulation` of a Conditioning."""
        embedding = timestep_embedding(c_noise, self.config.dim).to(dtype)
        return self.affline_norm(embedding), self.t_embedder(embedding)
