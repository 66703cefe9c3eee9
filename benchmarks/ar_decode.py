"""Speed of the autoregressive decoder, and its share of the memory bandwidth that bounds it.

    python benchmarks/ar_decode.py --preset 4b --device cuda --dtype bfloat16
    python benchmarks/ar_decode.py --preset tiny

Random weights: they take the same time as trained ones. All numbers come from one run on one machine.

- decode: tokens/s of all slots together, each in the middle of its clip; bytes that a step must read (weights once, and
  the keys and values of every slot), the resulting GB/s, and their share of the bandwidth of a large copy.
- kernels, on a GPU: time per kernel; the rest of a step is launch overhead.
- plain: a straightforward decoder of one sequence: separate projections, a static cache that is read whole with a mask,
  key/value heads repeated, and sampling from the sorted distribution. On a GPU it is compiled and captured in a CUDA
  graph.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_triton.networks.ar_config import PRESETS, ARConfig
from cosmos_triton.networks.ar_positions import rotate
from cosmos_triton.networks.ar_transformer import ARTransformer, fuse_projections
from cosmos_triton.runtime.ar.decoder import ARRequest, Decoder


def random_network(config: ARConfig, device: str, dtype: torch.dtype) -> ARTransformer:
    with torch.device("meta"):
        network = ARTransformer(config)
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            weight = torch.empty(parameter.shape, device=device, dtype=dtype)
            weight = weight.fill_(1.0) if parameter.ndim == 1 else weight.normal_(std=parameter.shape[-1] ** -0.5)
            setattr(module, name, nn.Parameter(weight, requires_grad=False))
    return network.to(device, dtype).eval()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


ROUNDS = 7
KERNELS_SHOWN = 12


def best_seconds(calls: dict[str, Callable[[], object]], repeat: int, device: str) -> dict[str, float]:
    """Seconds of each call, the best of ROUNDS rounds. A round times all calls, so that noise affects them alike."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            call()
            synchronize(device)
            start = time.perf_counter()
            for _ in range(repeat):
                call()
            synchronize(device)
            best[name] = min(best[name], (time.perf_counter() - start) / repeat)
    return best


def copy_call(device: str) -> tuple[Callable[[], object], int]:
    """A large copy, and the bytes that it reads and writes."""
    size = (4 << 30) if device == "cuda" else (256 << 20)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * size


def make_decoder(network: ARTransformer, slots: int, device: str, *, window: int = 1) -> Decoder:
    if device == "cuda":
        from cosmos_triton.runtime.ar.cuda_decoder import CudaDecoder

        return CudaDecoder(network, slots, window=window)
    return Decoder(network, slots, window=window)


def kernel_times(call: Callable[[], object], *, calls: int = 10) -> list[tuple[str, float, float]]:
    """Kernels of one call on a GPU, the slowest first: name, microseconds, launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    found = [(e.key, e.device_time_total / calls, e.count / calls) for e in profiler.key_averages()]
    return sorted(found, key=lambda kernel: -kernel[1])


def step_bytes(network: ARTransformer, slots: int, position: int) -> int:
    """Bytes that one step must read: all weights, one embedding row per slot, and each slot's keys and values."""
    config, width = network.config, network.output.weight.element_size()
    weights = sum(p.numel() for p in network.parameters()) - network.tok_embeddings.weight.numel()
    kv = 2 * config.n_layers * config.n_kv_heads * config.head_dim * position
    if config.is_video2world:
        kv += 2 * config.n_layers * config.n_kv_heads * config.head_dim * 512
    return (weights + slots * (kv + config.dim)) * width


def random_request(config: ARConfig, tokens: int, device: str) -> ARRequest:
    context = torch.randn(512, config.context_dim, device=device) if config.context_dim else None
    return ARRequest(torch.randint(config.vocab_size, (tokens,), device=device), context=context)


def decode_call(network: ARTransformer, slots: int, position: int, device: str) -> Callable[[], object]:
    """A step with every slot at `position`."""
    decoder = make_decoder(network, slots, device)
    decoder.target_len.fill_(decoder.clip_length)
    decoder.temperature.fill_(1.0)
    decoder.top_p.fill_(0.8)
    kv_len = decoder.kv_len_for(position)

    def step() -> None:
        decoder.num_tokens.fill_(position)
        decoder.step(kv_len=kv_len)
        decoder.read_num_tokens()

    return step


def measure_clip(network: ARTransformer, given_frames: int, device: str) -> tuple[float, float]:
    """Seconds of prefill and of decoding for one clip from its first latent frames."""
    decoder = make_decoder(network, 1, device)
    request = random_request(network.config, given_frames * network.config.frame_tokens, device)
    for _ in range(2):  # the first pass compiles
        synchronize(device)
        start = time.perf_counter()
        for _ in decoder.prefill(0, request):
            pass
        synchronize(device)
        prefilled = time.perf_counter()
    num_tokens = len(request.prompt_tokens) + network.config.leading_tokens
    for position in range(num_tokens, decoder.clip_length):
        decoder.step(kv_len=decoder.kv_len_for(position))
    decoder.tokens(0)
    return prefilled - start, time.perf_counter() - prefilled


def plain_norm(norm: nn.Module, x: Tensor) -> Tensor:
    x32 = x.float()
    return (x32 * torch.rsqrt(torch.mean(x32 * x32, dim=-1, keepdim=True) + norm.eps)).type_as(x) * norm.weight


class PlainDecoder:
    """The straightforward decoder of one sequence."""

    def __init__(self, network: ARTransformer) -> None:
        self.network, config = network, network.config
        weight = network.output.weight
        shape = (config.n_layers, 1, config.n_kv_heads, config.max_seq_len, config.head_dim)
        self.k = torch.zeros(shape, device=weight.device, dtype=weight.dtype)
        self.v = torch.zeros_like(self.k)
        self.mask = torch.ones(config.max_seq_len, config.max_seq_len, dtype=torch.bool, device=weight.device).tril()
        self.temperature = torch.ones(1, 1, device=weight.device)
        self.context = torch.zeros(1, 512, config.context_dim or 1, device=weight.device, dtype=weight.dtype)

    def step(self, token: Tensor, position: Tensor) -> Tensor:
        """token [1, 1], position [1] -> the next token [1, 1]."""
        probs = torch.softmax(self.logits(token, position).float() / self.temperature, dim=-1)
        ordered, order = probs.sort(dim=-1, descending=True)
        ordered = torch.where(ordered.cumsum(-1) - ordered > 0.8, 0.0, ordered)
        ordered = ordered / ordered.sum(-1, keepdim=True)
        choice = (ordered / torch.empty_like(ordered).exponential_(1)).argmax(-1, keepdim=True)
        return order.gather(-1, choice)

    def logits(self, token: Tensor, position: Tensor) -> Tensor:
        network = self.network
        x = network.tok_embeddings(token)
        cos, sin = network.rope_cos[position], network.rope_sin[position]
        for i, layer in enumerate(network.layers):
            if network.abs_pos_emb is not None:
                x = x + network.abs_pos_emb[position].to(x.dtype)
            x = x + self.self_attention(layer.attention, plain_norm(layer.attention_norm, x), i, position, cos, sin)
            if network.config.is_video2world:
                x = x + self.cross_attention(layer.cross_attention, plain_norm(layer.cross_attention_norm, x))
            y, ff = plain_norm(layer.ffn_norm, x), layer.feed_forward
            x = x + ff.w2(F.silu(ff.w1(y)) * ff.w3(y))
        return network.output(plain_norm(network.norm, x))[:, -1]

    def self_attention(self, a: nn.Module, x: Tensor, i: int, position: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (self.heads(y) for y in (a.wq(x), a.wk(x), a.wv(x)))
        self.k[i].index_copy_(2, position, rotate(plain_norm(a.k_norm, k), cos, sin))
        self.v[i].index_copy_(2, position, v)
        return self.attend(a, rotate(plain_norm(a.q_norm, q), cos, sin), self.k[i], self.v[i], self.mask[position])

    def cross_attention(self, a: nn.Module, x: Tensor) -> Tensor:
        k, v = self.heads(a.wk(self.context)), self.heads(a.wv(self.context))
        return self.attend(a, plain_norm(a.q_norm, self.heads(a.wq(x))), plain_norm(a.k_norm, k), v, None)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.network.config.head_dim)).transpose(1, 2)

    def attend(self, a: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        groups = self.network.config.n_heads // self.network.config.n_kv_heads
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return a.wo(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


def plain_call(network: ARTransformer, position: int, device: str) -> Callable[[], object]:
    decoder = PlainDecoder(network)
    if device == "cuda":
        torch._dynamo.mark_static_address(decoder.k)
        torch._dynamo.mark_static_address(decoder.v)
        decoder.logits = torch.compile(decoder.logits, mode="reduce-overhead")  # type: ignore[method-assign]
    token, at = torch.zeros(1, 1, dtype=torch.int64, device=device), torch.tensor([position], device=device)
    return lambda: decoder.step(token, at)


@torch.inference_mode()
def run(args: argparse.Namespace) -> dict[str, Any]:
    config, device = PRESETS[args.preset], args.device
    network = random_network(config, device, getattr(torch, args.dtype))
    position = (
        2 * config.frame_tokens + config.clip_tokens
    ) // 2  # halfway through the tokens generated from 9 input frames
    fuse_projections(network)  # before a CUDA graph captures the addresses of the weights
    plain = plain_call(network, position, device)
    for _ in range(3):
        plain()
    copy, copied = copy_call(device)
    steps = {str(slots): decode_call(network, slots, position, device) for slots in args.slots}
    ends = {at: decode_call(network, 1, at, device) for at in (config.frame_tokens, config.clip_tokens - 1)}
    calls = {"plain": plain, **steps, **{f"at {at}": call for at, call in ends.items()}}
    best = best_seconds(calls, args.steps, device)
    copy_gb_s = copied / best_seconds({"copy": copy}, 3, device)["copy"] / 1e9
    moved = {slots: step_bytes(network, slots, position) for slots in args.slots}
    prefill, decode = measure_clip(network, 2, device)
    kernels = {slots: kernel_times(steps[str(slots)]) for slots in args.slots if device == "cuda"}
    return {
        "preset": args.preset,
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "dtype": args.dtype,
        "position": position,
        "decode_tokens_per_s": {slots: slots / best[str(slots)] for slots in args.slots},
        "step_ms": {slots: 1e3 * best[str(slots)] for slots in args.slots},
        "step_gb": {slots: moved[slots] / 1e9 for slots in args.slots},
        "bandwidth_gb_s": {slots: moved[slots] / best[str(slots)] / 1e9 for slots in args.slots},
        "copy_bandwidth_gb_s": copy_gb_s,
        "step_ms_at": {at: 1e3 * best[f"at {at}"] for at in ends},
        "step_gb_at": {at: step_bytes(network, 1, at) / 1e9 for at in ends},
        "plain_tokens_per_s": 1 / best["plain"],
        "prefill_tokens_per_s": 2 * config.frame_tokens / prefill,
        "clip_seconds": {"prefill": prefill, "decode": decode},
        "kernels": kernels,
    }


def report(r: dict[str, Any]) -> str:
    lines = [
        f"{r['preset']}, {r['dtype']}, {r['device']}; decoding at position {r['position']}",
        f"copy: {r['copy_bandwidth_gb_s']:.0f} GB/s. Plain single sequence: {r['plain_tokens_per_s']:.0f} tokens/s",
        "slots  tokens/s  x one  x plain  ms/step  GB/step    GB/s  of copy",
    ]
    one = next(iter(r["decode_tokens_per_s"].values()))
    for slots, rate in r["decode_tokens_per_s"].items():
        gb_s = r["bandwidth_gb_s"][slots]
        of_copy = gb_s / r["copy_bandwidth_gb_s"]
        lines.append(
            f"{slots:>5} {rate:>9.0f} {rate / one:>6.2f} {rate / r['plain_tokens_per_s']:>8.2f}"
            f" {r['step_ms'][slots]:>8.3f} {r['step_gb'][slots]:>8.3f} {gb_s:>7.0f} {of_copy:>8.1%}"
        )
    (first, last), gb = r["step_ms_at"], r["step_gb_at"]
    lines.append(
        f"one slot, from position {first} to {last}:"
        f" time a step x {r['step_ms_at'][last] / r['step_ms_at'][first]:.2f},"
        f" bytes it must read x {gb[last] / gb[first]:.2f}"
    )
    clip = r["clip_seconds"]
    lines.append(
        f"one clip from 9 frames, one slot: prefill {clip['prefill']:.2f} s"
        f" ({r['prefill_tokens_per_s']:.0f} tokens/s), decode {clip['decode']:.2f} s"
    )
    for slots, kernels in r["kernels"].items():
        launches, total = sum(kernel[2] for kernel in kernels), sum(kernel[1] for kernel in kernels)
        lines.append(f"a step of {slots}: {launches:.0f} kernels, {total / 1e3:.3f} ms")
        lines += [f"{us:>10.1f} us {count:>6.1f} x {name[:80]}" for name, us, count in kernels[:KERNELS_SHOWN]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=20, help="steps a round")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    result = run(args)
    print(json.dumps(result) if args.json else report(result))


if __name__ == "__main__":
    main()
