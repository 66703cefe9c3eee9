"""The diffusion network's work that is done in parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cosmos_triton.networks.diffusion_transformer import MLP, MLP_ROWS, PRESETS


@torch.inference_mode()
def test_the_mlp_treats_more_tokens_than_it_takes_at_a_time_as_fewer() -> None:
    mlp = MLP(PRESETS["tiny"]).double()
    x = torch.randn(2, MLP_ROWS + 3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.gelu(x @ mlp.layer1.weight.T) @ mlp.layer2.weight.T
    torch.testing.assert_close(mlp(x, None), expected, rtol=0, atol=1e-12)
