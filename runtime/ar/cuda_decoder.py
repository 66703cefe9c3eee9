"""The decoder on a GPU: kernels for few rows, and each step one CUDA graph.

A step is replayed without the host taking part: the tokens drawn stay on the device and feed the next step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import cast

import torch

from cosmos_triton.networks.ar_transformer import ARTransformer, Layer, fuse_projections
from cosmos_triton.runtime.ar.attention_kernel import attend_to_cache_cuda
from cosmos_triton.runtime.ar.decoder import Decoder, Prompt
from cosmos_triton.runtime.ar.layer_kernels import layer_forward, logits
from cosmos_triton.runtime.ar.sampling_kernel import draw_cuda
from cosmos_triton.runtime.ar.window_policy import MAX_WINDOW


def use_kernels(network: ARTransformer) -> None:
    """Have the kernels for few rows do what the network's own code does for them."""
    fuse_projections(network)
    network.attend, network.unmasked = attend_to_cache_cuda, MAX_WINDOW
    network.logits = partial(logits, network)  # type: ignore[method-assign]
    for layer in network.layers:  # the forward alone: hooks see to weights that move
        layer.forward = layer_forward(cast(Layer, layer))


class CudaDecoder(Decoder):
    """As `Decoder`. Exact in this sense: the same seed gives the same tokens, whatever the neighbours do; between
    windows of different length, and against a CPU, rounding may turn a near-tie.

    Args:
        windows: as for `Decoder`; each is captured once.
        moves: whether the weights come and go. Then steps are captured by `bring_in`, anew each time.
    """

    def __init__(
        self, network: ARTransformer, slots: int, *, windows: tuple[int, ...] = (1,), moves: bool = False
    ) -> None:
        super().__init__(network, slots, windows=windows)
        self._under_way: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        self._last_known = self.known.tolist()
        use_kernels(network)
        self.draw = draw_cuda
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        if not moves:
            self.bring_in()

    def bring_in(self) -> None:
        super().bring_in()
        with torch.inference_mode():
            self.graphs = {window: self._capture(window) for window in self.windows}

    def send_away(self) -> None:
        self.graphs.clear()  # they hold addresses
        super().send_away()

    def _capture(self, window: int) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                super().step(window)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            super().step(window)
        return graph

    def step(self, window: int, *, length: int | None = None) -> None:
        self.graphs[window].replay()
        copy = torch.empty(self.slots, dtype=torch.int64, pin_memory=True)
        copy.copy_(self.known, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        self._under_way.append((done, copy))

    def prefill(self, slot: int, prompt: Prompt) -> Iterator[None]:
        yield from super().prefill(slot, prompt)
        self._settle()

    def release(self, slot: int) -> None:
        super().release(slot)
        self._settle()

    def _settle(self) -> None:
        """Forget counts on their way: they are older than what was just written."""
        self._under_way.clear()
        self._last_known = self.known.tolist()

    def read_known(self) -> list[int]:
        """As of the step before last: the GPU computes the last one while the host looks after this."""
        while len(self._under_way) > 1:
            done, copy = self._under_way.popleft()
            done.synchronize()
            self._last_known = copy.tolist()
        return self._last_known
