"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from cosmos_triton.runtime.backends.graphs import BackendError


class OnnxRuntimeBackend:
    """One graph on the CPU.

    Args:
        pack_weights: copy weights into a layout that computes faster; else they stay mapped from their file.

    Raises:
        BackendError: the file is missing, or not a graph that ONNX Runtime can run.
    """

    def __init__(self, file: Path, *, threads: int, pack_weights: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other stages share the cores
        options.add_session_config_entry("session.disable_prepacking", str(int(not pack_weights)))
        options.log_severity_level = 3  # errors only: its warnings are about optimisations that it cannot make
        try:
            self._session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base class
            raise BackendError(f"{file}: ONNX Runtime cannot load it: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        feeds = {name: tensor.cpu().contiguous().numpy() for name, tensor in inputs.items()}
        values = self._session.run(self._outputs, feeds)
        return {name: torch.from_numpy(value) for name, value in zip(self._outputs, values, strict=True)}
