"""fp8 products: weights and activations in e4m3, sums in fp32.

A weight has one scale an output channel, and an activation one a row, found anew in each call. On GPUs from compute
capability 8.9 on (Ada, Hopper, Blackwell).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cosmos_triton.kernels.elementwise import FP8, FP8_MAX, Quantised


class Fp8Linear(nn.Module):
    """Stands for a linear layer without bias, on rows that are quantised already."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        # Not a division: GPUs and CPUs round that by a number differently.
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) * (1 / FP8_MAX)  # [out]
        self.dtype = linear.weight.dtype
        self.weight = nn.Parameter((weight / scale[:, None]).to(FP8), requires_grad=False)  # [out, in]
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Quantised) -> Tensor:
        """[..., in] -> [..., out] in the dtype of the layer that this was made from."""
        rows = x.data.flatten(0, -2)
        out = torch._scaled_mm(
            rows,
            self.weight.t(),
            scale_a=x.scale.flatten()[:, None],
            scale_b=self.scale[None],
            out_dtype=self.dtype,
            use_fast_accum=True,
        )
        return out.view(*x.data.shape[:-1], -1)
