"""Cost of a speculation window, and the share of its tokens that differ from plain decoding.

    python benchmarks/speculation.py --preset 4b --device cuda --dtype bfloat16 --tokens 1000
    python benchmarks/speculation.py --preset tiny

Random weights: step times and differing tokens are representative, acceptance is not. Untrained networks overstate it,
so the table says nothing about speedup.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from ar_decode import make_decoder, random_network, random_request, synchronize
from torch import Tensor

from cosmos_triton.networks.ar_config import PRESETS
from cosmos_triton.networks.ar_transformer import ARTransformer, fuse_projections
from cosmos_triton.runtime.ar.decoder import ARRequest


def generate(network: ARTransformer, request: ARRequest, window: int, device: str) -> tuple[Tensor, int, float]:
    """Tokens of the clip, steps, seconds per step."""
    decoder = make_decoder(network, 1, device, window=window)
    for _ in decoder.prefill(0, request):
        pass
    decoder.step()
    synchronize(device)
    start, steps = time.perf_counter(), 1
    while (num_tokens := int(decoder.num_tokens[0])) < decoder.clip_length:
        decoder.step(kv_len=decoder.kv_len_for(num_tokens))
        steps += 1
    synchronize(device)
    return decoder.tokens(0).flatten(), steps, (time.perf_counter() - start) / max(steps - 1, 1)


@torch.inference_mode()
def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    network: ARTransformer = random_network(PRESETS[args.preset], args.device, getattr(torch, args.dtype))
    fuse_projections(network)
    request = random_request(network.config, network.config.clip_tokens - args.tokens, args.device)
    plain, _, plain_seconds = generate(network, request, 1, args.device)
    rows = []
    for window in args.windows:
        tokens, steps, seconds = generate(network, request, window, args.device)
        differ = (tokens != plain)[-args.tokens :]
        rows.append(
            {
                "window": window,
                "step_ms": 1e3 * seconds,
                "cost": seconds / plain_seconds,
                "accepted_per_forward": args.tokens / steps,
                "first_difference": int(differ.nonzero()[0]) if differ.any() else None,
                "differ": differ.double().mean().item(),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--tokens", type=int, default=480, help="tokens to generate")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    rows = run(args)
    if args.json:
        print(json.dumps(rows))
        return
    print("window  ms/step  x plain step  accepted (random weights)  tokens that differ  first at")
    for row in rows:
        first = "-" if row["first_difference"] is None else row["first_difference"]
        print(
            f"{row['window']:>6} {row['step_ms']:>8.2f} {row['cost']:>13.2f} {row['accepted_per_forward']:>26.2f}"
            f" {row['differ']:>19.2%} {first:>9}"
        )


if __name__ == "__main__":
    main()
