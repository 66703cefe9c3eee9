"""How fast the diffusion decoder is, next to the products and the attention that bound it.

    python benchmarks/diffusion_decode.py --preset 7b-decoder --device cuda    # one clip of 33 frames, 1024 x 640
    python benchmarks/diffusion_decode.py                                      # tiny networks, on this CPU

Random weights: they cost the same time as trained ones. Every number comes from one run on one machine; networks are
timed in turns, so that none has a cooler GPU. The lines:

- roofs: a large matrix product in bf16 and fp8, and attention at the decoder's shape;
- evaluation: one guided evaluation (conditional and unconditional) of the network. `plain` is the module as it is
  written in networks/, with the attention that torch chooses; `compiled`, the same with its blocks through
  torch.compile; `bf16`, `fp8` and `fp8-attention` are what a server runs on a GPU. TFLOP/s and share of the roof
  count what must be computed: no cross-attention of the unconditional half. Error is that of the outputs before
  guidance, against fp32, on a small grid, root mean square over root mean square;
- tokenizer: the continuous tokenizer's decoder, plain with all latent frames, and as a server runs it, fused and with
  those that are kept;
- clip: all evaluations and the tokenizer, and how far the video is off that of bf16.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_triton.networks import diffusion_transformer, tokenizer
from cosmos_triton.networks.diffusion_transformer import MLP_RATIO, PATCH, DiffusionConfig, DiffusionTransformer
from cosmos_triton.networks.tokenizer import ContinuousDecoder, TokenizerConfig
from cosmos_triton.runtime.diffusion.decoder import DiffusionDecoder
from cosmos_triton.runtime.diffusion.sampler import (
    Denoiser,
    GuidedOutputs,
    MultistepSampler,
    guided_denoise,
    guided_outputs,
)
from cosmos_triton.runtime.diffusion.windows import WINDOW
from cosmos_triton.runtime.fp8_support import supported_precisions
from cosmos_triton.runtime.releases import COSMOS_1_0
from cosmos_triton.runtime.residency import Placement
from cosmos_triton.runtime.stage_loader import place_denoiser
from cosmos_triton.runtime.stages import FP8_PRECISIONS
from cosmos_triton.runtime.video_tokenizer import LatentStatistics

TEXT_TOKENS = 512
FRAMES, KEPT = 33, 5  # of a clip, and the latent frames that they come from
GRIDS = {"7b-decoder": (40, 64), "tiny": (4, 6)}  # tokens of a frame
TOKENIZERS = {"7b-decoder": "cv8x8x8", "tiny": "tiny-cv"}
SMALL_GRID = (WINDOW, 4, 4)
ROUNDS = 3
SIGMA = 1.0


def random_network(build: Callable[[Any], nn.Module], config: Any, device: str, dtype: torch.dtype) -> Any:
    """The same weights each time, to the rounding of dtype."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = build(config)
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            weight = torch.full(parameter.shape, 1.0 if name == "weight" else 0.0, device=device)
            if parameter.ndim > 1:
                weight.normal_(std=parameter[0].numel() ** -0.5)
            setattr(module, name, nn.Parameter(weight.to(dtype), requires_grad=False))
    return network.eval()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def in_turns(calls: dict[str, Callable[[], object]], device: str, *, rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each call, after one that is not counted."""
    for call in calls.values():
        call()
    rounds = rounds if device == "cuda" else 1
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, device))
    return {name: statistics.median(found) for name, found in times.items()}


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def psnr(found: Tensor, expected: Tensor) -> float:
    """dB, of videos in [0, 1]."""
    return -10 * math.log10(max((found.double() - expected.double()).square().mean().item(), 1e-12))


# ---- roofs ----


def roofs(config: DiffusionConfig, tokens: int, device: str, dtype: torch.dtype) -> dict[str, float]:
    """TFLOP/s."""
    size = 8192 if device == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    q = torch.randn(2, config.n_heads, tokens, config.head_dim, device=device, dtype=dtype)
    calls: dict[str, tuple[Callable[[], object], float]] = {"product": (lambda: a @ b, 2 * size**3)}
    attention_flops = 4 * 2 * tokens**2 * config.dim
    if device == "cuda":
        from cosmos_triton.kernels.attention import choose_attention
        from cosmos_triton.kernels.elementwise import quantise_rows
        from cosmos_triton.kernels.fp8_attention import Fp8Attention
        from cosmos_triton.kernels.fp8_linear import Fp8Linear

        if "fp8" in supported_precisions(device):
            linear = Fp8Linear(nn.Linear(size, size, bias=False, device=device, dtype=dtype))
            rows = quantise_rows(a)
            calls["fp8 product"] = (lambda: linear(rows), 2 * size**3)
        if "fp8-attention" in supported_precisions(device):
            in_fp8 = Fp8Attention()
            qkv = torch.randn(2, tokens, 3, config.dim, device=device).to(torch.float8_e4m3fn)
            scales = torch.ones(3, device=device)
            calls["fp8 attention"] = (lambda: in_fp8(qkv, scales, heads=config.n_heads), attention_flops)
        attend = choose_attention(device, dtype, heads=config.n_heads, head_dim=config.head_dim)
        calls[f"attention ({attend.name})"] = (lambda: attend(q, q, q), attention_flops)
    calls["attention (torch's choice)"] = (lambda: F.scaled_dot_product_attention(q, q, q), attention_flops)
    repeat = 20 if device == "cuda" else 1

    def repeated(call: Callable[[], object]) -> Callable[[], object]:
        return lambda: [call() for _ in range(repeat)]

    times = in_turns({name: repeated(call) for name, (call, _) in calls.items()}, device)
    return {name: flops * repeat / times[name] / 1e12 for name, (_, flops) in calls.items()}


def work(config: DiffusionConfig, tokens: int) -> tuple[float, float]:
    """Operations of the products of one guided evaluation, and of its attention."""
    both, one, c = 2 * tokens, tokens, config.dim
    products = (4 + 2 * MLP_RATIO) * both + 2 * one  # q, k, v, out and the MLP; q and out of cross-attention
    attention = 2 * both * tokens * c + 2 * one * TEXT_TOKENS * c
    return config.n_blocks * 2.0 * c * c * products, config.n_blocks * 2.0 * attention


# ---- networks ----


def raw_outputs(network: Denoiser, device: str) -> Tensor:
    """On a small grid, before guidance, which amplifies what is wrong."""
    x, outputs = inputs(network, SMALL_GRID, device)
    return outputs(x.to(network.dtype), torch.zeros(1, device=device))


def networks(config: DiffusionConfig, device: str, *, compiled: bool) -> dict[str, Denoiser]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    found: dict[str, Denoiser] = {"plain": random_network(DiffusionTransformer, config, device, dtype)}
    if compiled:
        found["compiled"] = random_network(DiffusionTransformer, config, device, dtype)
        for block in found["compiled"].blocks.values():  # type: ignore[attr-defined]
            block.compile()
    for name in served_precisions(device):
        network = random_network(DiffusionTransformer, config, device, dtype)
        found[name] = place_denoiser(network, Placement(device), name)
    return found


def served_precisions(device: str) -> list[str]:
    """What a server offers on this GPU."""
    if device == "cpu":
        return []
    return ["bf16", *supported_precisions(device)]


def inputs(network: Denoiser, grid: tuple[int, int, int], device: str) -> tuple[Tensor, GuidedOutputs]:
    """Noisy latents, and the network's outputs for tokens and text."""
    config = network.config
    torch.manual_seed(1)
    frames, height, width = grid
    x = torch.randn(1, config.latent_channels, frames, PATCH * height, PATCH * width, device=device)
    tokens = torch.randint(config.token_vocab_size, (1, *grid), device=device)
    context = torch.randn(1, TEXT_TOKENS, config.context_dim, device=device).to(network.dtype)
    return x, guided_outputs(network, tokens, context)


def evaluation(network: Denoiser, grid: tuple[int, int, int], device: str) -> Callable[[], Tensor]:
    x, outputs = inputs(network, grid, device)
    return lambda: guided_denoise(outputs, x, SIGMA, network.dtype, guidance=1.8)


# ---- the tokenizer's decoder, and a clip ----


def tokenizers(config: TokenizerConfig, device: str) -> dict[str, nn.Module]:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    found = {"plain": random_network(ContinuousDecoder, config, device, dtype)}
    if device == "cuda":
        from cosmos_triton.kernels.fused_tokenizer import fuse_tokenizer

        found["fused"] = fuse_tokenizer(random_network(ContinuousDecoder, config, device, dtype))
    return found


def tokenizer_calls(found: dict[str, nn.Module], grid: tuple[int, int], device: str) -> dict[str, Any]:
    [network, *_] = found.values()
    height, width = grid
    shape = (1, network.config.latent_channels, WINDOW, PATCH * height, PATCH * width)
    latents = torch.randn(shape, device=device).to(next(network.parameters()).dtype)
    calls: dict[str, Any] = {"plain, all latents": lambda: found["plain"](latents)}
    for name, decoder in found.items():
        calls[f"{name}, kept latents"] = lambda decoder=decoder: decoder(latents[:, :, :KEPT])
    return calls


def clip_call(network: Denoiser, decoder: Any, grid: tuple[int, int], device: str) -> Callable[[], Tensor]:
    torch.manual_seed(2)
    tokens = torch.randint(network.config.token_vocab_size, (1, KEPT, *grid), device=device)
    context = torch.randn(1, TEXT_TOKENS, network.config.context_dim, device=device)
    shape = (1, decoder.config.latent_channels, WINDOW, 1, 1)
    scale = LatentStatistics(torch.zeros(shape, device=device), torch.ones(shape, device=device))
    stage = DiffusionDecoder(network, decoder, scale, MultistepSampler(), COSMOS_1_0.noise_seed)
    return lambda: stage.decode(tokens, context, frames=FRAMES)


@torch.inference_mode()
def run(args: argparse.Namespace) -> dict[str, Any]:
    config, device, grid = diffusion_transformer.PRESETS[args.preset], args.device, GRIDS[args.preset]
    torch._dynamo.config.allow_unspec_int_on_nn_module = True
    tokens = WINDOW * grid[0] * grid[1]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    result: dict[str, Any] = {
        "preset": args.preset,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "roofs_tflop_s": roofs(config, tokens, device, dtype),
    }
    say(args, "roofs, TFLOP/s", result["roofs_tflop_s"])
    reference = raw_outputs(random_network(DiffusionTransformer, config, device, torch.float32), device)
    built = networks(config, device, compiled=args.compile)
    result["first_evaluation_s"] = {
        name: seconds(evaluation(network, (WINDOW, *grid), device), device) for name, network in built.items()
    }
    say(args, "first evaluation, s", result["first_evaluation_s"])
    times = in_turns({n: evaluation(network, (WINDOW, *grid), device) for n, network in built.items()}, device)
    wrong = {n: error(raw_outputs(network, device), reference) for n, network in built.items()}
    result["evaluation"] = {
        n: figures(s, n, result["roofs_tflop_s"], config, tokens, wrong[n]) for n, s in times.items()
    }
    say(args, "evaluation", result["evaluation"])
    decoders = tokenizers(tokenizer.PRESETS[TOKENIZERS[args.preset]], device)
    result["tokenizer_ms"] = {
        name: 1e3 * s for name, s in in_turns(tokenizer_calls(decoders, grid, device), device, rounds=7).items()
    }
    say(args, "tokenizer, ms", result["tokenizer_ms"])
    decoder = decoders.get("fused", decoders["plain"])
    names = served_precisions(device) or ["plain"]
    calls = {name: clip_call(built[name], decoder, grid, device) for name in names}
    videos: dict[str, Tensor] = {}
    result["clip_s"] = {
        n: seconds(lambda n=n, call=call: videos.update({n: call()}), device) for n, call in calls.items()
    }
    exact = videos.pop(names[0])
    result["clip_against_bf16"] = {
        name: {"error": error(video, exact), "psnr_db": psnr(video, exact)} for name, video in videos.items()
    }
    return result


def figures(
    s: float, name: str, roof: dict[str, float], config: DiffusionConfig, tokens: int, wrong: float
) -> dict[str, float]:
    products, attention = work(config, tokens)
    product_roof = roof["fp8 product" if name in FP8_PRECISIONS else "product"]
    attention_roof = max(rate for kind, rate in roof.items() if kind.startswith("attention"))
    if name == "fp8-attention":
        attention_roof = roof["fp8 attention"]
    least = (products / product_roof + attention / attention_roof) / 1e12
    return {"ms": 1e3 * s, "tflop_s": (products + attention) / s / 1e12, "of_roof": least / s, "error": wrong}


def say(args: argparse.Namespace, what: str, numbers: dict[str, Any]) -> None:
    """As it is measured: a run on a large network takes minutes."""
    if not args.json:
        print(what)
        for name, value in numbers.items():
            values = value if isinstance(value, dict) else {"": value}
            print(f"  {name:<28}" + "  ".join(f"{v:.4g} {unit}" for unit, v in values.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(GRIDS), default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="also time the plain blocks through torch.compile")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    result = run(args)
    if args.json:
        print(json.dumps(result))
    else:
        say(args, "clip, s", result["clip_s"])
        say(args, "clip against bf16", result["clip_against_bf16"])


if __name__ == "__main__":
    main()
