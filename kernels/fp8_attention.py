"""Attention in fp8, by cuDNN's kernel for it.

torch does not offer that kernel; NVIDIA's package `nvidia-cudnn-frontend` does. It takes and gives e4m3: queries, keys,
values and output have one scale each. A norm bounds queries and keys, so that their scales depend on the weights alone.
The values' largest element is looked up in each call; no output is larger, which makes their scale that of the output.

Legend: B batch, A heads, N tokens, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cosmos_triton.kernels.elementwise import FP8_MAX, Quantised

WEIGHTS_SCALE = 256.0  # of the softmax, which is 1 at most
SCALARS = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")


def head_scale(weight: Tensor) -> Tensor:
    """[1] fp32: what brings every head that an RMS norm of this weight [D] has made into the range of e4m3."""
    return FP8_MAX / (math.sqrt(len(weight)) * weight.float().abs().amax().clamp(min=1e-6)).view(1)


def value_scale(v: Tensor) -> Tensor:
    """[1] fp32"""
    return FP8_MAX / torch.linalg.vector_norm(v, ord=math.inf).float().clamp(min=1e-6).view(1)


class Fp8Attention:
    """Graphs of cuDNN, one a shape, built when it is first seen."""

    def __init__(self) -> None:
        import cudnn

        self._cudnn = cudnn
        self._handle = cudnn.create_handle()
        self._graphs: dict[tuple[int, ...], Callable[..., None]] = {}

    def __call__(self, qkv: Tensor, scales: Tensor, *, heads: int) -> Quantised:
        """qkv [B, N, 3, A * D] e4m3, multiplied by scales [3] -> [B, N, A * D]."""
        batch, n, _, width = qkv.shape
        out = qkv.new_empty(batch, n, width)
        by_head = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (*qkv.unbind(2), out)]  # [B, A, N, D]
        key = (batch, n, heads, width)
        if key not in self._graphs:
            self._graphs[key] = self._build(*by_head)
        descales = 1 / scales
        weights = [scales.new_full((1,), scale) for scale in (1 / WEIGHTS_SCALE, WEIGHTS_SCALE)]
        scalars = torch.cat([descales, *weights, scales[2:]])[:, None].expand(-1, 4).contiguous()  # 16 bytes each
        self._cudnn.set_stream(handle=self._handle, stream=torch.cuda.current_stream().cuda_stream)
        self._graphs[key](*by_head, *scalars[:, :1].view(-1, 1, 1, 1, 1))
        return Quantised(out, descales[2:].expand(batch, n).contiguous())

    def _build(self, *tensors: Tensor) -> Callable[..., None]:
        data_type = self._cudnn.data_type
        graph = self._cudnn.pygraph(
            io_data_type=data_type.FP8_E4M3,
            intermediate_data_type=data_type.FLOAT,
            compute_data_type=data_type.FLOAT,
            handle=self._handle,
        )
        *inputs, target = tensors
        given = [graph.tensor(dim=list(x.shape), stride=list(x.stride()), data_type=data_type.FP8_E4M3) for x in inputs]
        scalar = {"dim": [1, 1, 1, 1], "stride": [1, 1, 1, 1]}
        scalars = {name: graph.tensor(**scalar, data_type=data_type.FLOAT) for name in SCALARS}
        out, _, *largest = graph.sdpa_fp8(
            *given, **scalars, is_inference=True, attn_scale=target.shape[-1] ** -0.5, use_causal_mask=False
        )
        out.set_output(True).set_dim(list(target.shape)).set_stride(list(target.stride()))
        out.set_data_type(data_type.FP8_E4M3)
        for unused in largest:
            unused.set_output(False).set_dim(scalar["dim"]).set_stride(scalar["stride"])
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([self._cudnn.heur_mode.A])
        graph.check_support()
        graph.build_plans()
        workspace = torch.empty(max(graph.get_workspace_size(), 1), device=target.device, dtype=torch.uint8)
        ports: list[Any] = [*given, out, *scalars.values()]

        def run(*values: Tensor) -> None:
            graph.execute(dict(zip(ports, values, strict=True)), workspace, handle=self._handle)

        return run
