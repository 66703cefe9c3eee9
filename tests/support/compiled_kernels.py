"""Compiles the GPU's kernels for GPUs that need not be here, and prints what each takes, as JSON.

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

from cosmos_triton.networks.ar_transformer import PRESETS
from cosmos_triton.runtime.ar import attention_kernel, layer_kernels, sampling_kernel
from cosmos_triton.runtime.ar.sampling import MIX_1, MIX_2

CONFIG = PRESETS["12b"]
CAPABILITIES = (89, 90)  # GPUs with the least shared memory, and those that we have measured on


def kernels() -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], int]]:
    """Name, kernel, types of arguments that are not bf16 pointers or int32, constants, warps."""
    widths = {"gate": (CONFIG.ffn_dim, CONFIG.dim, True), "down": (CONFIG.dim, CONFIG.ffn_dim, False)}
    widths["logits"] = (CONFIG.vocab_size, CONFIG.dim, False)
    for (name, (n, k, gated)), eight_bit in product(widths.items(), (False, True)):
        flags = {"K": k, "SCALED": eight_bit, "GATED": gated, "ADDED": not gated}
        types = {"w_ptr": "*i8", "second_ptr": "*i8"} if eight_bit else {}
        label = f"{name}{' int8' if eight_bit else ''}"
        one = {"BLOCK_N": layer_kernels.ONE_ROW_N, "BLOCK_K": layer_kernels.ONE_ROW_K}
        yield f"one row, {label}", layer_kernels._one_row, types, flags | one, 8
        for rows in (8, layer_kernels.MAX_ROWS):
            tile = layer_kernels.few_rows_tile(rows, n, gated=gated, itemsize=2)
            constants = flags | tile | {"STAGES": layer_kernels.STAGES}
            yield f"{rows} rows, {label}", layer_kernels._few_rows, types, constants, 4
    norm = {"K": CONFIG.dim, "BLOCK": triton.next_power_of_2(CONFIG.dim)}
    yield "norm", layer_kernels._norm_row, {"eps": "fp32"}, norm, 8
    heads = {"HEADS": CONFIG.n_heads, "KV_HEADS": CONFIG.n_kv_heads, "HALF": CONFIG.head_dim // 2, "BLOCK": 64}
    yield "heads", layer_kernels._place_heads, {"rows_ptr": "*i64", "eps": "fp32"}, heads, 1
    types = {"keys_ptr": "*i64", "positions_ptr": "*i64", "tokens_ptr": "*i64", "drawn_ptr": "*i64"}
    types |= {"temperature_ptr": "*fp32", "top_p_ptr": "*fp32"}
    constants = {"V": CONFIG.vocab_size, "MIX_1": MIX_1, "MIX_2": MIX_2, "BLOCK": sampling_kernel.BLOCK}
    yield "draw", sampling_kernel._draw, types, constants, sampling_kernel.WARPS
    for block_m in (16, 64):
        constants = {"DIM": CONFIG.head_dim, "BLOCK_D": CONFIG.head_dim, "BLOCK_M": block_m}
        constants |= {"BLOCK_N": attention_kernel.BLOCK_N, "SPLIT": attention_kernel.SPLIT}
        types = {"rows_ptr": "*i64", "scale": "fp32"} | dict.fromkeys(("partial_ptr", "peak_ptr", "total_ptr"), "*fp32")
        yield f"attention, {block_m} queries", attention_kernel._attend_split, types, constants, 4


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
    """What spills out of the registers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    return int(usage.stdout.split("STACK:")[1].split()[0])


def main() -> None:
    found = []
    for (name, kernel, types, constants, warps), capability in product(list(kernels()), CAPABILITIES):
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
