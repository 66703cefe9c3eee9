"""Weight-only 8-bit quantisation (W8A16): int8 weights with one scale per output channel.

Activations, sums and all other weights keep their dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INT8_MAX = 127
# Prefixes of the names of quantised modules. Not the AR model's embedding: a step reads one row of it.
AR_QUANTISED = ("layers.", "output")
DIFFUSION_QUANTISED = ("blocks.",)


class Int8Linear(nn.Module):
    """Replaces a linear layer without bias; its weight is quantised symmetrically per output channel.

    The weight is dequantised where it is used. The AR kernels (`runtime/ar/layer_kernels.py`) do so in registers and
    read half the bytes; the forward here dequantises the whole weight, which is little next to a compute-bound GEMM.
    """

    weight: Tensor  # [out, in] int8
    scale: Tensor  # [out], of the original weight's dtype

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / INT8_MAX  # [out]
        scale = scale.to(linear.weight.dtype)
        rounded = (weight / scale.float()[:, None]).round().clamp(-INT8_MAX, INT8_MAX)
        self.register_buffer("weight", rounded.to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], of x's dtype."""
        return F.linear(x, self.weight.to(x.dtype)).mul_(self.scale)  # the widest output is 1.3 GB


def quantise(network: nn.Module, prefixes: tuple[str, ...]) -> None:
    """Replace the linear layers whose names start with one of `prefixes` by Int8Linear, in place.

    The network must be on the CPU with its weights loaded, or on the meta device.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and name.startswith(prefixes):
            owner, _, own_name = name.rpartition(".")
            setattr(network.get_submodule(owner), own_name, Int8Linear(module))
