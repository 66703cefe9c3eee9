"""The decoder on a GPU: Triton kernels, and each step one CUDA graph.

A step is replayed without the host: the drawn tokens stay on the device and are the input of the next step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch

from cosmos_triton.networks.ar_transformer import ARKernels, ARTransformer, fuse_projections
from cosmos_triton.runtime.ar.attention_kernel import split_kv_attention
from cosmos_triton.runtime.ar.decoder import ARRequest, Decoder
from cosmos_triton.runtime.ar.layer_kernels import layer_forward, logits
from cosmos_triton.runtime.ar.sampling_kernel import draw_cuda
from cosmos_triton.runtime.ar.speculation import MAX_WINDOW

CUDA_KERNELS = ARKernels(layer_forward, split_kv_attention, logits, max_maskless_query_len=MAX_WINDOW)


class CudaDecoder(Decoder):
    """As `Decoder`. A seed gives the same tokens whatever the neighbouring slots do. Between different windows, and
    between GPU and CPU, rounding may decide a near-tie differently.

    Args:
        is_offloaded: whether the weights are offloaded between clips. If so, the step is captured by each `load`.
    """

    def __init__(self, network: ARTransformer, slots: int, *, window: int = 1, is_offloaded: bool = False) -> None:
        super().__init__(network, slots, window=window, kernels=CUDA_KERNELS, draw=draw_cuda)
        fuse_projections(network)
        self._pending: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()  # copies of num_tokens to the host
        self._last_num_tokens = self.num_tokens.tolist()
        self._graph: torch.cuda.CUDAGraph | None = None
        if not is_offloaded:
            self.load()

    def load(self) -> None:
        super().load()
        with torch.inference_mode():
            self._graph = self._capture_step()

    def offload(self) -> None:
        self._graph = None  # holds device addresses
        super().offload()

    def _capture_step(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # warm-up: compilation and allocation must not happen during capture
                super().step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            super().step()
        return graph

    def step(self, *, kv_len: int | None = None) -> None:
        """As `Decoder.step`. `kv_len` is ignored: the attention kernel reads each slot's length on the device."""
        assert self._graph is not None, "step called while offloaded"
        self._graph.replay()
        copy = torch.empty(self.slots, dtype=torch.int64, pin_memory=True)
        copy.copy_(self.num_tokens, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._pending.append((copied, copy))

    def prefill(self, slot: int, request: ARRequest) -> Iterator[None]:
        yield from super().prefill(slot, request)
        self._drop_pending()

    def release(self, slot: int) -> None:
        super().release(slot)
        self._drop_pending()

    def _drop_pending(self) -> None:
        """Drop the counts in flight: they predate what the host has just written."""
        self._pending.clear()
        self._last_num_tokens = self.num_tokens.tolist()

    def read_num_tokens(self) -> list[int]:
        """Counts as of the step before last: the GPU runs the last step while the host handles these."""
        while len(self._pending) > 1:
            copied, copy = self._pending.popleft()
            copied.synchronize()
            self._last_num_tokens = copy.tolist()
        return self._last_num_tokens
