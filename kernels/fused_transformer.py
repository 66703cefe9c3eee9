"""The diffusion transformer as it runs on a GPU: the plain module's weights, in fewer and larger steps.

What it does differently, all but rounding the same:

- queries, keys and values are one product; head norms and the rotary embedding are one kernel, in place;
- the residual of one part of a block, and the layer norm and modulation of the next, are one kernel;
- the hidden width of the MLP is not cut: with GELU in place it is the largest tensor, and there is one of it;
- of a guided evaluation only the conditional half has cross-attention. The other half's context is zero, its values
  therefore zero, and so is what it would add;
- token features and rotary tables are computed once a clip.

Legend: B batch, N tokens, C model width, A heads, D head dimension, E, X context length and width, T latent frames,
H, W latent height and width, h, w token grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from cosmos_triton.kernels.attention import Attention
from cosmos_triton.kernels.elementwise import Quantised, norm_heads, quantise_heads, quantise_rows, residual_norm
from cosmos_triton.kernels.fp8_attention import Fp8Attention, head_scale, value_scale
from cosmos_triton.kernels.fp8_linear import Fp8Linear
from cosmos_triton.networks.diffusion_transformer import (
    BASE_FPS,
    NORM_EPS,
    PATCH,
    AdaLN,
    Block,
    DiffusionTransformer,
    rope_angles,
)
from cosmos_triton.networks.network import Network


@dataclass(frozen=True, slots=True)
class Shared:
    """What every block of one evaluation shares."""

    timestep: Tensor  # [B, C], normalised
    modulation: Tensor  # [B, 3 * C], added to every block's own
    context: Tensor  # [b, E, X] of the first b samples; the others have none
    tables: tuple[Tensor, Tensor]  # cosine and sine [N, D / 2], fp32
    attention: Attention
    self_attention: Fp8Attention | None  # None: `attention` too


@dataclass(frozen=True, slots=True)
class Hidden:
    """The residual stream, and what is yet to be added to it: gate * y."""

    x: Tensor  # [B, N, C]
    y: Tensor | None = None
    gate: Tensor | None = None  # [B, 1, C]

    def samples(self, part: slice) -> Hidden:
        if self.y is None or self.gate is None:
            return Hidden(self.x[part])
        return Hidden(self.x[part], self.y[part], self.gate[part])


class FusedBlock(nn.Module):
    """Takes the weights of a plain block over, which is of no use afterwards."""

    qk_scales: Tensor

    def __init__(self, block: Block, head_dim: int, *, is_fp8: bool) -> None:
        super().__init__()
        parts: list[Any] = list(block.blocks)
        attention, cross, mlp = parts[0].block.attn, parts[1].block.attn, parts[2].block
        self.head_dim, self.is_fp8 = head_dim, is_fp8
        self.modulations = nn.ModuleList(part.adaLN_modulation for part in parts)
        self.qkv = self._product(_side_by_side([attention.to_q[0], attention.to_k[0], attention.to_v[0]]))
        self.q_norm, self.k_norm = attention.to_q[1], attention.to_k[1]
        scales = [head_scale(norm.weight.detach()) for norm in (self.q_norm, self.k_norm)]
        self.register_buffer("qk_scales", torch.cat(scales))  # [2]
        self.out = self._product(attention.to_out[0])
        self.cross_q, self.cross_q_norm = self._product(cross.to_q[0]), cross.to_q[1]
        self.cross_k, self.cross_v = cross.to_k, cross.to_v[0]  # of few rows: they stay as they are
        self.cross_out = self._product(cross.to_out[0])
        self.layer1, self.layer2 = self._product(mlp.layer1), self._product(mlp.layer2)

    def _product(self, linear: Any) -> Any:
        return Fp8Linear(linear) if self.is_fp8 else linear

    def forward(self, hidden: Hidden, shared: Shared) -> Hidden:
        modulations = [cast(AdaLN, part).modulations(shared.timestep, shared.modulation) for part in self.modulations]
        (shift, scale, gate), (cross_shift, cross_scale, cross_gate), (mlp_shift, mlp_scale, mlp_gate) = modulations
        normed = self._empty(hidden.x)
        _add_and_norm(hidden, shift, scale, normed)
        hidden = Hidden(hidden.x, self._attend(normed, shared), gate)

        texts = len(shared.context)
        with_text, without = slice(texts), slice(texts, len(hidden.x))
        normed = self._empty(hidden.x)
        some, own = hidden.samples(with_text), _samples(normed, with_text)
        _add_and_norm(some, cross_shift[with_text], cross_scale[with_text], own)
        some = Hidden(some.x, self._attend_to_text(own, shared), cross_gate[with_text])
        _add_and_norm(some, mlp_shift[with_text], mlp_scale[with_text], own)
        if texts < len(hidden.x):
            rest, own = hidden.samples(without), _samples(normed, without)
            _add_and_norm(rest, mlp_shift[without], mlp_scale[without], own)
        x = hidden.x
        del hidden, some, own
        return Hidden(x, self._feed_forward(normed), mlp_gate)

    def _empty(self, x: Tensor) -> Tensor | Quantised:
        """Room for the input of a product."""
        return Quantised.like(x) if self.is_fp8 else torch.empty_like(x)

    def _attend(self, normed: Tensor | Quantised, shared: Shared) -> Tensor:
        qkv = self.qkv(normed).unflatten(-1, (3, -1))  # [B, N, 3, C]
        heads = qkv.shape[-1] // self.head_dim
        norms = (self.q_norm.weight, self.k_norm.weight)
        if shared.self_attention is not None:
            scales = torch.cat([self.qk_scales, value_scale(qkv[:, :, 2])])
            qkv = quantise_heads(qkv, norms, shared.tables, scales, heads=heads, eps=NORM_EPS)
            return self.out(shared.self_attention(qkv, scales, heads=heads))
        norm_heads(qkv, norms, shared.tables, heads=heads, eps=NORM_EPS)
        q, k, v = qkv.unflatten(-1, (heads, -1)).permute(2, 0, 3, 1, 4)  # [B, A, N, D] each
        return self._project_out(self.out, shared.attention(q, k, v))

    def _attend_to_text(self, normed: Tensor | Quantised, shared: Shared) -> Tensor:
        context = shared.context
        q = self.cross_q(normed).unsqueeze(2)  # [B, N, 1, C]
        heads = q.shape[-1] // self.head_dim
        norm_heads(q, (self.cross_q_norm.weight,), None, heads=heads, eps=NORM_EPS)
        k = self.cross_k[1](self.cross_k[0](context).unflatten(-1, (heads, -1)))
        v = self.cross_v(context).unflatten(-1, (heads, -1))
        q = q.squeeze(2).unflatten(-1, (heads, -1))
        out = shared.attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self._project_out(self.cross_out, out)

    def _project_out(self, product: nn.Module, heads: Tensor) -> Tensor:
        out = heads.transpose(1, 2).flatten(2)  # [B, N, C]
        return product(quantise_rows(out) if self.is_fp8 else out)

    def _feed_forward(self, normed: Tensor | Quantised) -> Tensor:
        wide = self.layer1(normed)
        return self.layer2(quantise_rows(wide, gelu=True) if self.is_fp8 else torch.ops.aten.gelu_(wide))


class FusedTransformer(Network):
    """Takes the weights of a plain network over, which is of no use afterwards.

    Args:
        fp8_on: the GPU on which weights of the blocks are quantised, one block at a time; they then return to where
            they were. Without it the products stay as they are.
        fp8_attention: for attention of the tokens to each other; needs fp8 products.
    """

    def __init__(
        self,
        network: DiffusionTransformer,
        attention: Attention,
        *,
        fp8_on: str | None = None,
        fp8_attention: Fp8Attention | None = None,
    ) -> None:
        super().__init__()
        self.config, self.attention, self.is_fp8 = network.config, attention, fp8_on is not None
        self.fp8_attention = fp8_attention
        self.shell = network  # all but its blocks
        self.blocks = nn.ModuleList()
        device, head_dim = network.device, network.config.head_dim
        for name in list(network.blocks):
            block = cast(Block, network.blocks.pop(name))
            if fp8_on is None:
                self.blocks.append(FusedBlock(block, head_dim, is_fp8=False))
            else:
                self.blocks.append(FusedBlock(block.to(fp8_on), head_dim, is_fp8=True).to(device))

    @property
    def description(self) -> str:
        """For the log."""
        products = "fp8" if self.is_fp8 else str(self.dtype).removeprefix("torch.")
        attention = f"{self.attention.name}{', cudnn in fp8 among tokens' if self.fp8_attention else ''}"
        return f"products {products}, attention {attention}, elementwise kernels compiled by Triton"

    def forward(self, x: Tensor, tokens: Tensor, context: Tensor, c_noise: Tensor) -> Tensor:
        """As the plain network's."""
        return self._prepare(tokens, context)(x, c_noise)

    def guided(self, tokens: Tensor, context: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The evaluations of one clip: (x [B, c, T, H, W], c_noise [B]) -> [2 B, c, T, H, W], first with tokens and
        text, then without."""
        evaluate = self._prepare(torch.cat([tokens, torch.zeros_like(tokens)]), context)
        return lambda x, c_noise: evaluate(torch.cat([x, x]), torch.cat([c_noise, c_noise]))

    def _prepare(self, tokens: Tensor, context: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """For tokens of all samples, and contexts of the first ones."""
        frames, height, width = tokens.shape[1:]
        angles = rope_angles(self.config, (frames, height, width), BASE_FPS).to(context.device)
        half = angles[:, : self.config.head_dim // 2]
        tables = (half.cos().contiguous(), half.sin().contiguous())
        features = self.shell.token_features(tokens, (height * PATCH, width * PATCH)).to(context.dtype)

        def evaluate(x: Tensor, c_noise: Tensor) -> Tensor:
            timestep, modulation = self.shell.embed_timestep(c_noise, context.dtype)
            shared = Shared(timestep, modulation, context, tables, self.attention, self.fp8_attention)
            hidden = Hidden(self.shell.embed_features(x, features))
            for block in self.blocks:
                hidden = block(hidden, shared)
            return self._finish(hidden, shared, (frames, height, width))

        return evaluate

    def _finish(self, hidden: Hidden, shared: Shared, grid: tuple[int, int, int]) -> Tensor:
        frames, height, width = grid
        layer = self.shell.final_layer
        shift, scale = layer.adaLN_modulation.modulations(shared.timestep, shared.modulation)
        normed = torch.empty_like(hidden.x)
        _add_and_norm(hidden, shift, scale, normed)
        out = layer.linear(normed)
        return rearrange(out, "b (t h w) (p q c) -> b c t (h p) (w q)", t=frames, h=height, w=width, p=PATCH, q=PATCH)


def _add_and_norm(hidden: Hidden, shift: Tensor, scale: Tensor, out: Tensor | Quantised) -> None:
    """Adds to the residual stream what is yet to be added; `out` becomes the input of the next part."""
    residual_norm(hidden.x, hidden.y, hidden.gate, shift, scale, out, eps=NORM_EPS)


def _samples(x: Tensor | Quantised, part: slice) -> Tensor | Quantised:
    return x.samples(part) if isinstance(x, Quantised) else x[part]


def _side_by_side(linears: list[Any]) -> nn.Module:
    """One linear layer whose outputs are those of all, one after the other; 8-bit layers have a scale for each."""
    first = linears[0]
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if isinstance(first, nn.Linear):
        first.weight, first.out_features = nn.Parameter(weight, requires_grad=False), len(weight)
    else:
        first.weight, first.scale = weight, torch.cat([linear.scale for linear in linears])
    return first
