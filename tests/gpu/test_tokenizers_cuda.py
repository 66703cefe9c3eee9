"""The video tokenizers on a GPU whose memory is short. Needs a GPU."""

from __future__ import annotations

import pytest
import torch

from cosmos_triton.networks.network import Network
from cosmos_triton.networks.tokenizer import PRESETS, ContinuousDecoder, DiscreteDecoder, DiscreteEncoder
from cosmos_triton.runtime.residency import limit_gpu_memory

MIB = 2**20
ENOUGH = 1 << 35  # bytes


@torch.inference_mode()
@pytest.mark.parametrize(
    ("network", "preset", "shape"),
    [
        (DiscreteEncoder, "dv8x16x16", (1, 3, 9, 640, 1024)),
        (DiscreteDecoder, "dv8x16x16", (1, 5, 40, 64)),
        (ContinuousDecoder, "cv8x8x8", (1, 16, 8, 80, 128)),
    ],
)
def test_what_comes_out_does_not_depend_on_how_much_memory_is_free(
    network: type[Network], preset: str, shape: tuple[int, ...]
) -> None:
    """With ever less of it, down to where there is too little."""
    torch.manual_seed(0)
    model = network(PRESETS[preset]).to("cuda", torch.bfloat16)
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    if network is DiscreteDecoder:
        x = torch.randint(64000, shape, device="cuda")
    layer = model.quant_conv if network is DiscreteEncoder else model
    outputs = []
    layer.register_forward_hook(lambda _module, _inputs, out: outputs.append(out))

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model(x)
    reserved = torch.cuda.max_memory_reserved()
    try:
        for limit in range(reserved + 64 * MIB, 0, -32 * MIB):
            torch.cuda.empty_cache()
            limit_gpu_memory(limit)
            model(x)
            assert torch.equal(outputs.pop(), outputs[0]), f"{limit} of {reserved} bytes"
    except torch.cuda.OutOfMemoryError:
        assert limit < reserved
    finally:
        limit_gpu_memory(ENOUGH)
