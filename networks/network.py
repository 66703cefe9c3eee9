"""What every whole network offers beside its forward."""

from __future__ import annotations

import torch
from torch import nn


class Network(nn.Module):
    """Takes tensors of its `dtype`, on its `device`: those of its weights, which are all alike."""

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
