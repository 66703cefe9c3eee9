"""The video tokenizers on a GPU: their fused form, and what little memory changes. Needs a GPU."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from cosmos_triton.kernels.frame_norm import frame_norm
from cosmos_triton.kernels.fused_tokenizer import fuse_tokenizer
from cosmos_triton.networks.network import Network
from cosmos_triton.networks.tokenizer import PRESETS, ContinuousDecoder, DiscreteDecoder, DiscreteEncoder
from cosmos_triton.networks.tokenizer_layers import repeat_first_frame
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
    model = fuse_tokenizer(network(PRESETS[preset]).to("cuda", torch.bfloat16))
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


def random_tokenizer(network: type[Network], preset: str) -> Network:
    torch.manual_seed(0)
    model = network(PRESETS[preset]).requires_grad_(False).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.uniform_(0.5, 1.5)
    return model.cuda()


@torch.inference_mode()
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("shape", [(1, 256, 5, 80, 128), (2, 24, 3, 7, 9), (1, 8, 1, 1, 1), (3, 512, 2, 5, 16)])
@pytest.mark.parametrize(("silu", "lead"), [(False, 0), (True, 2)])
def test_frame_norm(shape: tuple[int, ...], silu: bool, lead: int, dtype: torch.dtype, tolerance: float) -> None:
    """Also far from zero, where a sum of squares would lose the variance."""
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(1, shape[1], eps=1e-6).cuda()
    torch.nn.init.uniform_(norm.weight), torch.nn.init.normal_(norm.bias)
    x = (torch.randn(shape, device="cuda") + 30).to(dtype)
    frames = norm.double()(x.double().transpose(1, 2).flatten(0, 1)).unflatten(0, (shape[0], shape[2])).transpose(1, 2)
    expected = repeat_first_frame(F.silu(frames) if silu else frames, lead) if lead else frames
    found = frame_norm(x, norm.to(dtype), silu=silu, lead=lead)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert ((found - expected).norm() / expected.norm()).item() < tolerance


@torch.inference_mode()
@pytest.mark.parametrize(("network", "preset"), [(ContinuousDecoder, "tiny-cv"), (ContinuousDecoder, "cv8x8x8")])
@pytest.mark.parametrize("shape", [(1, 16, 5, 6, 10), (2, 16, 2, 3, 5), (1, 16, 1, 4, 4)])
def test_fused_decoder_is_the_plain_one(network: type[Network], preset: str, shape: tuple[int, ...]) -> None:
    model = random_tokenizer(network, preset)
    x = torch.randn(shape, device="cuda")
    with torch.backends.cudnn.flags(allow_tf32=False):
        expected = model(x)
        found = fuse_tokenizer(deepcopy(model))(x)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5
    short = fuse_tokenizer(model.bfloat16())(x.bfloat16())
    assert ((short - expected).norm() / expected.norm()).item() < 3e-2


@torch.inference_mode()
@pytest.mark.parametrize("frames", [1, 9])
def test_fused_encoder_is_the_plain_one(frames: int) -> None:
    model = random_tokenizer(DiscreteEncoder, "dv8x16x16")
    x = torch.randn(1, 3, frames, 64, 96, device="cuda")
    with torch.backends.cudnn.flags(allow_tf32=False):
        expected = model.latents(x)
        found = fuse_tokenizer(model).latents(x)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


@torch.inference_mode()
def test_the_first_latents_give_the_first_frames_to_the_bit() -> None:
    model = fuse_tokenizer(random_tokenizer(ContinuousDecoder, "cv8x8x8").bfloat16())
    latents = torch.randn(1, 16, 8, 80, 128, device="cuda").bfloat16()
    assert torch.equal(model(latents[:, :, :5]), model(latents)[:, :, :33])
