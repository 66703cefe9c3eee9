"""Which attention kernel the fused diffusion transformer uses: always one that we name.

Left to itself, `scaled_dot_product_attention` takes whichever kernel its installation offers, and says nothing when
that is a slow one: on an H100 cuDNN's runs at 640 TFLOP/s, the flash kernel that torch ships at 370.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

log = logging.getLogger(__name__)

CUDNN, FLASH, EFFICIENT = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
# Fastest first, by the major compute capability; measured on others.
PREFERRED = {8: (FLASH, CUDNN, EFFICIENT), 9: (CUDNN, FLASH, EFFICIENT), 10: (CUDNN, FLASH, EFFICIENT)}
PROBE_TOKENS = 4096
PROBES = 5


@dataclass(frozen=True, slots=True)
class Attention:
    """q, k, v [B, A, N, D], of any strides whose last is 1 -> [B, A, N, D]."""

    backend: SDPBackend

    @property
    def name(self) -> str:
        return self.backend.name.removesuffix("_ATTENTION").lower()

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(self.backend):
            return F.scaled_dot_product_attention(q, k, v)


def choose_attention(device: str, dtype: torch.dtype, *, heads: int, head_dim: int) -> Attention:
    """The fastest kernel for this GPU that works here."""
    if device == "cpu":
        return Attention(SDPBackend.MATH)
    q = torch.randn(1, heads, PROBE_TOKENS, head_dim, device=device, dtype=dtype)
    order = PREFERRED.get(torch.cuda.get_device_capability(device)[0])
    candidates = order or (CUDNN, FLASH, EFFICIENT)
    working = [attention for attention in map(Attention, candidates) if _works(attention, q)]
    if not working:
        return Attention(SDPBackend.MATH)
    if order is None:
        working.sort(key=lambda attention: _milliseconds(attention, q))
    elif working[0].backend != order[0]:
        log.warning("attention: %s does not work here, %s is used: slower", Attention(order[0]).name, working[0].name)
    return working[0]


def _works(attention: Attention, q: Tensor) -> bool:
    try:
        attention(q, q, q)
    except RuntimeError:
        return False
    return True


def _milliseconds(attention: Attention, q: Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(PROBES):
        attention(q, q, q)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
