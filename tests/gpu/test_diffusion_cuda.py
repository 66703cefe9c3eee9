"""The fused diffusion transformer and its kernels against plain torch in fp32. Runs where there is a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

import torch.nn.functional as F
from torch import Tensor

from cosmos_triton.kernels.elementwise import (
    Quantised,
    norm_heads,
    quantise_heads,
    quantise_rows,
    residual_norm,
)
from cosmos_triton.kernels.fp8_attention import Fp8Attention, value_scale
from cosmos_triton.kernels.fp8_linear import Fp8Linear
from cosmos_triton.networks.ar_positions import rotate
from cosmos_triton.networks.diffusion_transformer import NORM_EPS, PRESETS, DiffusionTransformer
from cosmos_triton.networks.int8 import DIFFUSION_QUANTISED, quantise
from cosmos_triton.runtime.diffusion.sampler import Denoiser, guided_outputs
from cosmos_triton.runtime.fp8_support import supported_precisions
from cosmos_triton.runtime.residency import Placement, Residency
from cosmos_triton.runtime.stage_loader import place_denoiser

BF16 = 4e-3  # relative, of results that are rounded once
E4M3 = 4e-2
needs_fp8_attention = pytest.mark.skipif(
    "fp8-attention" not in supported_precisions("cuda"), reason="needs a Hopper GPU and nvidia-cudnn-frontend"
)
needs_fp8 = pytest.mark.skipif("fp8" not in supported_precisions("cuda"), reason="needs a GPU with fp8")
SMALL = replace(PRESETS["7b-decoder"], n_blocks=2, dim=512, n_heads=4, context_dim=256, token_vocab_size=1000)


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda").bfloat16()


def dequantised(x: Quantised) -> Tensor:
    return x.data.float() * x.scale[..., None]


@pytest.mark.parametrize(("batch", "n", "c"), [(2, 1000, 4096), (3, 7, 80), (1, 1, 24)])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("is_fp8", [False, pytest.param(True, marks=needs_fp8)])
def test_residual_norm(batch: int, n: int, c: int, added: bool, is_fp8: bool) -> None:
    x, y = random(batch, n, c), random(batch, n, c)
    shift, scale, gate = random(batch, 3 * c)[:, None].chunk(3, dim=-1)
    total = (x.float() + gate.float() * y.float()).bfloat16() if added else x.clone()
    expected = F.layer_norm(total.float(), (c,), eps=NORM_EPS) * (1 + scale.float()) + shift.float()
    out = Quantised.like(x) if is_fp8 else torch.full_like(x, float("nan"))
    residual_norm(x, y if added else None, gate if added else None, shift, scale, out, eps=NORM_EPS)
    assert torch.equal(x, total)
    found = dequantised(out) if isinstance(out, Quantised) else out
    assert error(found, expected) < (E4M3 if is_fp8 else BF16)


@pytest.mark.parametrize(("batch", "n", "heads", "dim"), [(2, 500, 32, 128), (1, 9, 3, 24), (3, 5, 1, 16)])
@pytest.mark.parametrize("rotated", [False, True])
def test_norm_heads(batch: int, n: int, heads: int, dim: int, rotated: bool) -> None:
    """Of the three projections side by side, two are changed."""
    x = random(batch, n, 3, heads * dim)
    weights = (random(dim), random(dim))
    half = torch.rand(n, dim // 2, device="cuda") * 6
    expected = x.float().unflatten(-1, (heads, dim))
    for i, weight in enumerate(weights):
        normed = F.rms_norm(expected[:, :, i], (dim,), weight.float(), eps=NORM_EPS)
        if rotated:
            angles = torch.cat([half, half], dim=-1)[None, :, None]
            normed = rotate(normed, angles.cos(), angles.sin())
        expected[:, :, i] = normed
    tables = (half.cos(), half.sin()) if rotated else None
    norm_heads(x, weights, tables, heads=heads, eps=NORM_EPS)
    assert error(x, expected.flatten(-2)) < BF16


@needs_fp8
@pytest.mark.parametrize(("batch", "n", "heads", "dim"), [(2, 500, 32, 128), (1, 9, 3, 24)])
def test_quantise_heads(batch: int, n: int, heads: int, dim: int) -> None:
    x = random(batch, n, 3, heads * dim)
    weights = (random(dim), random(dim))
    half = torch.rand(n, dim // 2, device="cuda") * 6
    tables, scales = (half.cos(), half.sin()), torch.tensor([20.0, 30.0, 50.0], device="cuda")
    out = quantise_heads(x, weights, tables, scales, heads=heads, eps=NORM_EPS).float() / scales[:, None]
    assert error(out[:, :, 2], x[:, :, 2]) < E4M3
    norm_heads(x, weights, tables, heads=heads, eps=NORM_EPS)
    assert error(out, x) < E4M3


@needs_fp8_attention
@pytest.mark.parametrize(("batch", "n", "heads"), [(2, 1000, 4), (1, 33, 2)])
def test_fp8_attention(batch: int, n: int, heads: int) -> None:
    """Against the same numbers in fp32: what is left is the rounding of the softmax and of the output."""
    x = random(batch, n, 3, heads * 128).float() * torch.tensor([2.0, 1.0, 9.0], device="cuda")[:, None]
    scales = torch.cat([torch.tensor([10.0, 20.0], device="cuda"), value_scale(x[:, :, 2])])
    quantised = (x * scales[:, None]).to(torch.float8_e4m3fn)
    q, k, v = (quantised.float() / scales[:, None]).unflatten(-1, (heads, -1)).permute(2, 0, 3, 1, 4)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    attention = Fp8Attention()
    assert error(dequantised(attention(quantised, scales, heads=heads)), expected) < 6e-2


@needs_fp8
@pytest.mark.parametrize(("rows", "k"), [(300, 16384), (7, 4096), (5, 80)])
@pytest.mark.parametrize("gelu", [False, True])
def test_quantise_rows(rows: int, k: int, gelu: bool) -> None:
    x = random(rows, k) * torch.logspace(-3, 2, rows, device="cuda").bfloat16()[:, None]
    x[0] = 0
    out = quantise_rows(x, gelu=gelu)
    expected = F.gelu(x.float()) if gelu else x.float()
    assert error(dequantised(out), expected) < E4M3
    assert not out.data[0].float().any()


@needs_fp8
def test_fp8_linear() -> None:
    linear = torch.nn.Linear(256, 144, bias=False).cuda().bfloat16().requires_grad_(False)
    x = random(2, 33, 256)
    assert error(Fp8Linear(linear)(quantise_rows(x)), linear(x)) < 6e-2


def random_network(seed: int = 0) -> DiffusionTransformer:
    torch.manual_seed(seed)
    network = DiffusionTransformer(SMALL).requires_grad_(False).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
        else:
            parameter.uniform_(0.5, 1.5)
    return network


def clip(grid: tuple[int, int, int] = (3, 5, 7), batch: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    frames, height, width = grid
    x = torch.randn(batch, SMALL.latent_channels, frames, 2 * height, 2 * width, device="cuda")
    tokens = torch.randint(SMALL.token_vocab_size, (batch, *grid), device="cuda")
    return x, tokens, torch.randn(batch, 11, SMALL.context_dim, device="cuda"), torch.full((batch,), 0.3, device="cuda")


def fused(network: DiffusionTransformer, precision: str = "bf16") -> Denoiser:
    return place_denoiser(network.cuda(), Placement("cuda"), precision)


@torch.inference_mode()
@pytest.mark.parametrize(("grid", "batch"), [((3, 5, 7), 1), ((2, 4, 4), 3), ((1, 1, 3), 2)])
@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        ("fp32", 2e-5),
        ("bf16", 3e-2),
        ("int8", 3e-2),
        pytest.param("fp8", 0.12, marks=needs_fp8),
        pytest.param("fp8-attention", 0.15, marks=needs_fp8_attention),
    ],
)
def test_a_guided_evaluation_is_the_plain_one(
    form: str, tolerance: float, grid: tuple[int, int, int], batch: int
) -> None:
    """int8 against its own weights; the others against fp32."""
    dtype = torch.float32 if form == "fp32" else torch.bfloat16
    plain, other = random_network(), random_network().to(dtype)
    if form == "int8":
        quantise(plain, DIFFUSION_QUANTISED)
        quantise(other, DIFFUSION_QUANTISED)
    x, tokens, context, c_noise = clip(grid, batch)
    expected = guided_outputs(plain.cuda(), tokens, context)(x, c_noise)
    network = fused(other, form)
    found = guided_outputs(network, tokens, context.to(dtype))(x.to(dtype), c_noise)
    assert error(found, expected) < tolerance


@torch.inference_mode()
@pytest.mark.parametrize("residency", ["offloaded", "streamed"])
@pytest.mark.parametrize(
    "precision",
    ["bf16", pytest.param("fp8", marks=needs_fp8), pytest.param("fp8-attention", marks=needs_fp8_attention)],
)
def test_offloaded_and_streamed_weights_give_the_same_bits(residency: Residency, precision: str) -> None:
    x, tokens, context, c_noise = clip()
    x, context = x.bfloat16(), context.bfloat16()
    resident = place_denoiser(random_network().cuda().bfloat16(), Placement("cuda"), precision)
    expected = guided_outputs(resident, tokens, context)(x, c_noise)
    placement = Placement("cuda", residency)
    network = place_denoiser(random_network().bfloat16(), placement, precision)
    for _ in range(2):
        with placement.on_device():
            assert torch.equal(guided_outputs(network, tokens, context)(x, c_noise), expected)


@torch.inference_mode()
def test_an_evaluation_gives_the_same_bits_every_time() -> None:
    x, tokens, context, c_noise = clip()
    outputs = guided_outputs(fused(random_network().cuda().bfloat16()), tokens, context.bfloat16())
    first = outputs(x.bfloat16(), c_noise)
    assert all(torch.equal(outputs(x.bfloat16(), c_noise), first) for _ in range(3))
