"""Error of reduced precision: each network in a shorter format against itself in a longer one, on the same input.

    python benchmarks/precision.py                                       # tiny networks, on this CPU
    python benchmarks/precision.py --deployment 5b-video2world --device cuda

Random weights, scaled to keep the variance of activations: they show how rounding errors grow through the layers, and
nothing of the outliers of trained weights. Errors are relative RMS. The lines:

- T5: bf16 against fp32, next to fp32 whose output is rounded to bf16, as all readers of the embedding do;
- logits of the AR model: int8 against bf16, bf16 against fp32, and how often the arg-max differs;
- output of the diffusion network: int8 against bf16, bf16 against fp32.
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import Tensor, nn

from cosmos_triton.networks.int8 import quantise
from cosmos_triton.networks.kv_cache import KVCache
from cosmos_triton.planning.footprint_count import Subject, subjects
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.diffusion.windows import WINDOW
from cosmos_triton.runtime.prompt_encoder import embed

TOKENS = 64  # input of the AR model and T5
GRID = (WINDOW, 4, 4)  # of the diffusion network's tokens


def random_network(subject: Subject, device: str) -> nn.Module:
    """In fp32."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = subject.build()
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            weight = torch.ones(parameter.shape, device=device)
            if parameter.ndim > 1:
                weight.normal_(std=parameter.shape[-1] ** -0.5)
            setattr(module, name, nn.Parameter(weight, requires_grad=False))
    return network.to(device).eval()


def error(of: Tensor, against: Tensor) -> float:
    difference = of.double() - against.double()
    return (difference.norm() / against.double().norm()).item()


def text_encoder(network: nn.Module, device: str) -> None:
    ids = torch.randint(2, network.config.vocab_size, (1, TOKENS), device=device)
    exact = embed(network, ids, torch.ones_like(ids))
    short = embed(network.to(torch.bfloat16), ids, torch.ones_like(ids))
    print(f"T5 bf16 against fp32: error {error(short, exact):.1e}; fp32 rounded to bf16: ", end="")
    print(f"{error(exact.bfloat16(), exact):.1e}")


def forms(network: nn.Module, prefixes: tuple[str, ...]) -> dict[str, nn.Module]:
    short = copy.deepcopy(network).to(torch.bfloat16)
    eight = copy.deepcopy(short)
    quantise(eight, prefixes)
    return {"fp32": network, "bf16": short, "int8": eight}


def ar_model(network: nn.Module, device: str, prefixes: tuple[str, ...]) -> None:
    config = network.config
    tokens = torch.randint(config.vocab_size, (1, TOKENS), device=device)
    logits = {}
    for name, form in forms(network, prefixes).items():
        dtype = torch.float32 if name == "fp32" else torch.bfloat16
        cache = KVCache.allocate(config, 1, device=device, dtype=dtype)
        if config.context_dim:
            torch.manual_seed(1)
            form.write_context(
                torch.randn(1, config.context_length, config.context_dim, device=device).to(dtype), cache
            )
        logits[name] = form(tokens, torch.zeros(1, dtype=torch.int64, device=device), cache, kv_len=TOKENS)
    report("AR model, logits", logits)
    other = (logits["int8"].argmax(-1) != logits["bf16"].argmax(-1)).double().mean().item()
    baseline = (logits["bf16"].argmax(-1) != logits["fp32"].argmax(-1)).double().mean().item()
    print(f"  arg-max differs: int8 against bf16 {other:.0%}, bf16 against fp32 {baseline:.0%} of {TOKENS}")


def diffusion(network: nn.Module, device: str, prefixes: tuple[str, ...]) -> None:
    config = network.config
    torch.manual_seed(1)
    x = torch.randn(1, config.latent_channels, GRID[0], 2 * GRID[1], 2 * GRID[2], device=device)
    tokens = torch.randint(config.token_vocab_size, (1, *GRID), device=device)
    context = torch.randn(1, TOKENS, config.context_dim, device=device)
    level = torch.zeros(1, device=device)
    outputs = {}
    for name, form in forms(network, prefixes).items():
        dtype = torch.float32 if name == "fp32" else torch.bfloat16
        outputs[name] = form(x.to(dtype), tokens, context.to(dtype), level)
    report("diffusion network, output", outputs)


def report(what: str, outputs: dict[str, Tensor]) -> None:
    against_bf16 = error(outputs["int8"], outputs["bf16"])
    of_bf16 = error(outputs["bf16"], outputs["fp32"])
    print(f"{what}: int8 against bf16 {against_bf16:.1e}; bf16 against fp32 {of_bf16:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployment", choices=list(DEPLOYMENTS), default="tiny-video2world")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    found = subjects(DEPLOYMENTS[args.deployment])
    with torch.inference_mode():
        if "text_encoder" in found:
            text_encoder(random_network(found["text_encoder"], args.device), args.device)
        for kind, measure in (("ar", ar_model), ("diffusion", diffusion)):
            measure(random_network(found[kind], args.device), args.device, found[kind].eight_bit)


if __name__ == "__main__":
    main()
