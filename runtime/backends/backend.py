"""Backends: what runs a network. Stage libraries call a `Runnable` and do not know which backend is behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from cosmos_triton.runtime.backends.graphs import ONNXRUNTIME, BackendError, ExportedStage, Port

Config = TypeVar("Config")
Config_co = TypeVar("Config_co", covariant=True)


class Runnable(Protocol[Config_co]):
    """A callable network: a torch module, or its exported graph in another backend.

    It takes tensors of its `dtype` on its `device`, in the order of the module's forward, and has the same outputs.
    """

    @property
    def config(self) -> Config_co: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    def __call__(self, *inputs: Tensor) -> Any: ...


class Backend(Protocol):
    """One graph, loaded. Named tensors in and out, of the graph's dtypes and on any device."""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


class GraphNetwork(Generic[Config]):
    """A graph in its backend, called like the torch module that it was exported from."""

    def __init__(self, backend: Backend, inputs: Mapping[str, Port], config: Config, precision: str, device: str):
        self._backend = backend
        self._inputs = inputs
        self.config = config
        self.dtype: torch.dtype = getattr(torch, precision)
        self.device = torch.device(device)

    def __call__(self, *inputs: Tensor) -> Any:
        named = {
            name: tensor.to(getattr(torch, port.dtype))
            for (name, port), tensor in zip(self._inputs.items(), inputs, strict=True)
        }
        outputs = tuple(tensor.to(self.device) for tensor in self._backend.run(named).values())
        return outputs[0] if len(outputs) == 1 else outputs


def open_graph(stage: ExportedStage, graph: str, config: Config, device: str) -> GraphNetwork[Config]:
    """The graph of a stage, ready to run.

    Raises:
        BackendError: it is missing or damaged, its backend is not installed, or it is for another GPU or version.
    """
    record = stage.record(graph)
    backend: Backend
    if stage.backend == ONNXRUNTIME:
        from cosmos_triton.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend

        backend = OnnxRuntimeBackend(stage.file(graph), threads=torch.get_num_threads())
    else:
        from cosmos_triton.runtime.backends import tensorrt_backend

        check_target(stage, graph)
        backend = tensorrt_backend.TensorrtBackend(stage.file(graph))
    precision = "bfloat16" if record.precision == "float8" else record.precision
    return GraphNetwork(backend, record.inputs, config, precision, device)


def check_target(stage: ExportedStage, graph: str) -> None:
    """Raises BackendError unless the plan was built for this GPU and this TensorRT."""
    from cosmos_triton.runtime.backends import tensorrt_backend

    built_for, here = stage.record(graph).target, tensorrt_backend.current_target()
    if built_for != here:
        raise BackendError(f"{stage.file(graph)}: built for {built_for}; accepted: {here}, as here; export it again")
