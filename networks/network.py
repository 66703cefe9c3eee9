"""Base class of networks that run as a stage."""

from __future__ import annotations

import torch
from torch import nn


class Network(nn.Module):
    """A module whose weights share one dtype and one device, those of its inputs."""

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
