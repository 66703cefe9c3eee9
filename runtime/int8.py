"""8-bit weights: each row of a matrix as int8 with one scale. Activations, sums and all else stay as they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST = 127
# What is stored so. Not the AR model's embedding: a step reads one row of it.
AR_PARTS = ("layers.", "output")
DIFFUSION_PARTS = ("blocks.",)


class Int8Linear(nn.Module):
    """Stands for a linear layer without bias, its weight rounded symmetrically, row by row.

    The weight is brought to the input's dtype where it is used. With few rows of input, on a GPU, that happens on the
    way from memory, and half the bytes are read; with many, it costs little next to the product.
    """

    weight: Tensor  # [out, in] int8
    scale: Tensor  # [out], in the dtype of the weight that it was made from

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST  # [out]
        scale = scale.to(linear.weight.dtype)
        rounded = (weight / scale.float()[:, None]).round().clamp(-LARGEST, LARGEST)
        self.register_buffer("weight", rounded.to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype)) * self.scale


def quantise(network: nn.Module, parts: tuple[str, ...]) -> None:
    """Replace the linear layers whose names begin with one of `parts` by their 8-bit form. Their weights must be there,
    on the CPU or the meta device."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and name.startswith(parts):
            owner, _, own_name = name.rpartition(".")
            setattr(network.get_submodule(owner), own_name, Int8Linear(module))
