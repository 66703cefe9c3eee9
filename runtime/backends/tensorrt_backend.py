"""TensorRT at run time. Only this module and export/graphs/tensorrt_builder.py use the package `tensorrt`."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos_triton.runtime.backends.graphs import BackendError, Target

try:
    import tensorrt
except ModuleNotFoundError:
    tensorrt = None


def require_tensorrt() -> Any:
    """The package. Raises BackendError where it or a GPU is missing."""
    if tensorrt is None or not torch.cuda.is_available():
        problem = "no CUDA GPU" if tensorrt is not None else "not installed: pip install 'cosmos-triton[tensorrt]'"
        raise BackendError(f"tensorrt: {problem}")
    return tensorrt


def current_target() -> Target:
    """The GPU and the TensorRT of this process. Raises BackendError where one of them is missing."""
    version = require_tensorrt().__version__
    major, minor = torch.cuda.get_device_capability()
    return Target(gpu=torch.cuda.get_device_name(), compute_capability=f"{major}.{minor}", tensorrt=version)


class TensorrtBackend:
    """One TensorRT plan on the current GPU, on torch's current stream.

    Raises:
        BackendError: TensorRT cannot load the plan.
    """

    def __init__(self, file: Path) -> None:
        trt = require_tensorrt()
        self._logger = trt.Logger(trt.Logger.WARNING)
        self._runtime = trt.Runtime(self._logger)
        with file.open("rb") as plan, mmap.mmap(plan.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            self._engine = self._runtime.deserialize_cuda_engine(mapped)
        if self._engine is None:
            raise BackendError(f"{file}: TensorRT cannot load it")
        self._context = self._engine.create_execution_context()
        self._dtypes = {
            trt.float32: torch.float32,
            trt.float16: torch.float16,
            trt.bfloat16: torch.bfloat16,
            trt.int64: torch.int64,
            trt.int32: torch.int32,
        }
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._outputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Raises ValueError where a shape is outside of the plan's optimization profile."""
        on_gpu = {name: tensor.cuda().contiguous() for name, tensor in inputs.items()}  # alive until the plan has run
        for name, tensor in on_gpu.items():
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise ValueError(f"{name}: shape {list(tensor.shape)} is outside of the plan's profile")
            self._context.set_tensor_address(name, tensor.data_ptr())
        outputs = {}
        for name in self._outputs:
            dtype = self._dtypes[self._engine.get_tensor_dtype(name)]
            shape = tuple(self._context.get_tensor_shape(name))
            outputs[name] = torch.empty(shape, dtype=dtype, device="cuda")
            self._context.set_tensor_address(name, outputs[name].data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not run the plan; its log says why")
        return outputs
