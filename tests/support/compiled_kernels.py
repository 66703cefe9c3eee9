"""Compiles the GPU kernels without a GPU, and prints the shared memory and stack of each as JSON.

Run as a program: a process that interprets kernels cannot compile them.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cosmos_triton.kernels import elementwise as diffusion_kernels
from cosmos_triton.kernels import frame_norm
from cosmos_triton.networks.ar_config import PRESETS
from cosmos_triton.runtime.ar import attention_kernel, layer_kernels, sampling_kernel
from cosmos_triton.runtime.ar.sampling import MIX_1, MIX_2

CONFIG = PRESETS["12b"]
ADA = 89  # the least shared memory; Hopper's kernels are compiled and run by tests/gpu
AMPERE = 80  # for kernels without fp8


def kernels() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], int]]:
    """Name, kernel, types of arguments that are not bf16 pointers or int32, constants, warps."""
    widths = {"gate": (CONFIG.ffn_dim, CONFIG.dim, True), "down": (CONFIG.dim, CONFIG.ffn_dim, False)}
    widths["logits"] = (CONFIG.vocab_size, CONFIG.dim, False)
    for (name, (n, k, has_up)), eight_bit in product(widths.items(), (False, True)):
        flags = {"K": k, "HAS_SCALE": eight_bit, "HAS_UP": has_up, "HAS_RESIDUAL": not has_up}
        types = {"w_ptr": "*i8", "up_ptr": "*i8"} if eight_bit else {}
        label = f"{name}{' int8' if eight_bit else ''}"
        gemv = {"BLOCK_N": layer_kernels.GEMV_BLOCK_N, "BLOCK_K": layer_kernels.GEMV_BLOCK_K}
        yield f"GEMV, {label}", layer_kernels._gemv, types, flags | gemv, 8
        for m in (8, layer_kernels.MAX_M):
            tile = layer_kernels.skinny_gemm_tile(m, n, has_up=has_up, itemsize=2)
            constants = flags | tile | {"NUM_STAGES": layer_kernels.NUM_STAGES}
            yield f"skinny GEMM, M = {m}, {label}", layer_kernels._skinny_gemm, types, constants, 4
    norm = {"K": CONFIG.dim, "BLOCK": triton.next_power_of_2(CONFIG.dim)}
    yield "RMS norm", layer_kernels._rms_norm_kernel, {"eps": "fp32"}, norm, 8
    heads = {"HEADS": CONFIG.n_heads, "KV_HEADS": CONFIG.n_kv_heads, "HALF": CONFIG.head_dim // 2, "BLOCK": 64}
    yield (
        "QK-norm, RoPE, cache write",
        layer_kernels._qk_norm_rope_cache_write,
        {"positions_ptr": "*i64", "eps": "fp32"},
        heads,
        1,
    )
    types = {"keys_ptr": "*i64", "positions_ptr": "*i64", "tokens_ptr": "*i64", "drawn_ptr": "*i64"}
    types |= {"temperature_ptr": "*fp32", "top_p_ptr": "*fp32"}
    constants = {"V": CONFIG.vocab_size, "MIX_1": MIX_1, "MIX_2": MIX_2, "BLOCK": sampling_kernel.BLOCK}
    yield "draw", sampling_kernel._draw, types, constants, sampling_kernel.WARPS
    for block_m in (16, 64):
        constants = {"DIM": CONFIG.head_dim, "BLOCK_D": CONFIG.head_dim, "BLOCK_M": block_m}
        constants |= {"BLOCK_N": attention_kernel.BLOCK_N, "SPLIT": attention_kernel.SPLIT}
        types = {"positions_ptr": "*i64", "scale": "fp32"}
        types |= dict.fromkeys(("partial_ptr", "row_max_ptr", "row_sum_ptr"), "*fp32")
        yield f"attention, {block_m} queries", attention_kernel._attend_split, types, constants, 4


def diffusion_kernels_of_full_size() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], int]]:
    """Of the diffusion decoder and the video tokenizers, at the released width."""
    width, heads, half = 4096, 32, 64
    for quantised in (False, True):
        types = {"eps": "fp32"} | ({"out_ptr": "*fp8e4nv", "row_scale_ptr": "*fp32"} if quantised else {})
        constants = {"C": width, "BLOCK": width, "ROWS": diffusion_kernels.ROWS, "ADDED": True, "QUANTISED": quantised}
        name = f"residual norm{', fp8' if quantised else ''}"
        yield name, diffusion_kernels._residual_norm, types, constants, diffusion_kernels._warps(width)
    for quantised in (False, True):
        types = {"cos_ptr": "*fp32", "sin_ptr": "*fp32", "scales_ptr": "*fp32", "eps": "fp32"}
        types |= {"out_ptr": "*fp8e4nv"} if quantised else {}
        constants = {"HEADS": heads, "HALF": half, "BLOCK_H": heads, "BLOCK_D": half, "ROTATED": True}
        constants["QUANTISED"] = quantised
        name = f"head norms{', fp8' if quantised else ''}"
        yield name, diffusion_kernels._norm_heads, types, constants, diffusion_kernels._warps(width)
    types = {"out_ptr": "*fp8e4nv", "row_scale_ptr": "*fp32"}
    constants = {"K": 4 * width, "BLOCK": 4 * width, "GELU": True}
    yield "GELU, fp8", diffusion_kernels._quantise_rows, types, constants, diffusion_kernels._warps(4 * width)
    moments = dict.fromkeys(("mean_ptr", "distance_ptr", "frame_mean_ptr", "frame_factor_ptr", "factor_ptr"), "*fp32")
    moments["eps"] = "fp32"
    piece, warps = frame_norm.PIECE, frame_norm.WARPS
    yield "moments of pieces", frame_norm._piece_moments, moments, {"PIECE": piece}, warps
    yield "moments of frames", frame_norm._frame_moments, moments, {"PIECE": piece, "BLOCK": 2048}, 4
    constants = {"C": 256, "LEAD": 2, "SILU": True, "BLOCK_C": 256, "ROWS": piece // 256}
    yield "frame norm", frame_norm._normalise, moments, constants, warps


def every_kernel() -> Iterator[tuple[tuple[str, Any, dict[str, str], dict[str, Any], int], int]]:
    """Each with the capabilities that it is for."""
    yield from product(kernels(), [ADA])
    for kernel in diffusion_kernels_of_full_size():
        needs_fp8 = kernel[0].endswith("fp8")
        yield from product([kernel], [ADA] if needs_fp8 else [AMPERE, ADA])


def compiled(kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, capability: int) -> Any:
    names = [parameter.name for parameter in kernel.params]
    signature = {name: types.get(name, "*bf16" if name.endswith("_ptr") else "i32") for name in names}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = [i for i, name in enumerate(names) if name.endswith("_ptr") or "stride" in name or name == "n"]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(name),): value for name, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def stack_bytes(cubin: bytes) -> int:
    """Bytes that spill out of registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    return int(usage.stdout.split("STACK:")[1].split()[0])


def main() -> None:
    found = []
    for (name, kernel, types, constants, warps), capability in every_kernel():
        binary = compiled(kernel, types, constants, warps, capability)
        found.append(
            {
                "kernel": name,
                "capability": capability,
                "shared": binary.metadata.shared,
                "stack": stack_bytes(binary.asm["cubin"]),
            }
        )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
