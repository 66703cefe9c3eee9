"""Which fp8 a GPU and its software have. No kernels here: a server looks before it starts."""

from __future__ import annotations

import importlib.util

import torch

from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.stages import FP8_PRECISIONS, Precision

FP8_CAPABILITY, ATTENTION_CAPABILITY = (8, 9), (9, 0)  # Ada; Hopper
CUDNN_FRONTEND = "nvidia-cudnn-frontend"


def supported_precisions(device: str) -> tuple[Precision, ...]:
    """Those of FP8_PRECISIONS that the diffusion network can have on a device."""
    if device == "cpu" or not torch.cuda.is_available():
        return ()
    capability = torch.cuda.get_device_capability(device)
    found: tuple[Precision, ...] = ("fp8",) if capability >= FP8_CAPABILITY else ()
    if capability >= ATTENTION_CAPABILITY and importlib.util.find_spec("cudnn"):
        found += ("fp8-attention",)
    return found


def require_precision(precision: Precision, device: str, *, name: str = "precision") -> None:
    """Raises InvalidValue for the option `name` where the device has not what the precision needs."""
    if precision in FP8_PRECISIONS and precision not in supported_precisions(device):
        needs = "a GPU of compute capability 8.9 or more"
        if precision == "fp8-attention":
            needs = f"a GPU of compute capability 9.0 or more and the package {CUDNN_FRONTEND}"
        raise InvalidValue(name, precision, f"bf16; {precision} needs {needs}")
