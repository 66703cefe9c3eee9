"""From a network and a checkpoint file to an ONNX graph, in the memory of one tensor.

The network is traced with weights that have shapes but no content. What the graph needs of them is read from the mapped
checkpoint file when it is written, brought to the graph's precision, and forgotten.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from onnxscript import optimizer
from torch import Tensor, nn
from torch.export import Dim
from tqdm import tqdm

from cosmos_triton.export.graphs.graph_specs import GraphSpec, LazyWeights, in_precision
from cosmos_triton.runtime.checkpoints import network_shapes, shape_problems, summary
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.mapped_file import SafetensorsFile

OPSET = 22  # the first that has convolutions in bf16
LARGE = 2**16  # elements; what has as many is a weight, and is not to be computed with while the graph is simplified
EXTERNAL_BYTES = 2**20  # weights from this size on lie beside the graph: a protobuf file ends at 2 GB
QUIET = ("torch.onnx", "onnxscript", "onnx_ir")


def export_graph(spec: GraphSpec, directory: Path, deployment: Deployment, dtype: torch.dtype, path: Path) -> None:
    """Write the graph to `path` and its large weights to `path`.data.

    Raises:
        CheckpointError: the checkpoint file is missing or damaged, or is not the network's.
    """
    network, stored = _hollow_network(spec, directory, deployment, dtype)
    sample = in_precision(spec, spec.sample(directory, deployment, spec.traced), dtype)
    with _quiet():
        traced = torch.export.export(
            network,
            sample,
            dynamic_shapes=tuple(dict.fromkeys(axes, Dim.DYNAMIC) for axes in spec.inputs.values()),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        program = torch.onnx.export(traced, opset_version=OPSET, optimize=False, verbose=False)
        assert program is not None
        model = program.model
        _fill(model.graph, stored, dtype)
        _transpose_weights(model.graph)
        optimizer.optimize_ir(model, input_size_limit=LARGE, output_size_limit=LARGE, should_fold=_is_small)
    for values, names in ((model.graph.inputs, tuple(spec.inputs)), (model.graph.outputs, spec.outputs)):
        for value, name in zip(values, names, strict=True):
            value.name = name
    _save(model, path)


def _hollow_network(
    spec: GraphSpec, directory: Path, deployment: Deployment, dtype: torch.dtype
) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network, and for each name of a weight without content the file's tensor."""
    source = spec.source
    if not isinstance(source, LazyWeights):
        return source.load(directory, deployment, "cpu").to(dtype), {}
    with torch.device("meta"):
        network = source.build(source.presets[spec.network_name(deployment)])
    path = directory / source.file(deployment.release)
    file = SafetensorsFile(path)
    if problems := shape_problems(file.shapes, network_shapes(network)):
        raise CheckpointError(f"{path}: {summary(problems)}")

    state = network.state_dict(keep_vars=True)
    owners = {id(tensor): name for name, tensor in reversed(state.items())}  # of tied names, the file has the first
    hollow: dict[int, Tensor] = {}
    for tensor in state.values():
        if id(tensor) not in hollow:
            # Memory that is never touched costs nothing.
            empty = torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
            is_parameter = isinstance(tensor, nn.Parameter)
            hollow[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    network.load_state_dict({name: hollow[id(tensor)] for name, tensor in state.items()}, assign=True)
    stored = {name: file.tensor(owners[id(tensor)]) for name, tensor in state.items()}
    return network.to(dtype).requires_grad_(False).eval(), stored


def _fill(graph: onnx_ir.Graph, stored: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Have every weight read from the file."""
    for name, value in graph.initializers.items():
        if name in stored:
            _set_lazy(value, partial(_read, stored[name], dtype))


def _read(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _set_lazy(value: onnx_ir.Value, read: Callable[[], Tensor]) -> None:
    assert value.shape is not None
    assert value.dtype is not None
    value.const_value = onnx_ir.LazyTensor(
        lambda: onnx_ir.tensor(read().contiguous()), dtype=value.dtype, shape=value.shape, name=value.name
    )


def _transpose_weights(graph: onnx_ir.Graph) -> None:
    """Write the weights of linear layers the way around that ONNX multiplies with.

    torch has them transposed, and an engine would do it at every start, in memory.
    """
    for node in list(graph):
        source, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != "Transpose" or source is None or source.name not in graph.initializers:
            continue
        if list(node.attributes["perm"].as_ints()) != [1, 0]:
            continue
        name = f"{source.name}.transposed"
        if name not in graph.initializers:  # a weight may be used twice
            assert source.shape is not None
            weight = onnx_ir.Value(name=name, shape=onnx_ir.Shape(list(source.shape)[::-1]), type=source.type)
            _set_lazy(weight, partial(_transposed, source.const_value))
            graph.initializers[name] = weight
        result.replace_all_uses_with(graph.initializers[name])
        graph.remove(node, safe=True)
        if not source.uses():
            del graph.initializers[str(source.name)]


def _transposed(tensor: Any) -> Tensor:
    read = tensor.raw().raw if isinstance(tensor, onnx_ir.LazyTensor) else tensor.raw
    return read.T


def _is_small(node: onnx_ir.Node) -> bool | None:
    """False for what would compute with a weight; None leaves it to the optimizer."""
    for value in node.inputs:
        if value is not None and value.const_value is not None and value.const_value.size >= LARGE:
            return False
    return None


def _save(model: onnx_ir.Model, path: Path) -> None:
    data = path.with_name(f"{path.name}.data")
    for file in (path, data):
        file.unlink(missing_ok=True)
    weights = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    total = sum(weight.nbytes for weight in weights if weight.nbytes >= EXTERNAL_BYTES)
    with tqdm(total=total, desc=path.name, unit="B", unit_scale=True, leave=False, disable=None) as bar:

        def progress(tensor: onnx_ir.TensorProtocol, _: object) -> None:
            bar.update(tensor.nbytes)

        onnx_ir.save(
            model,
            path,
            external_data=data.name,
            size_threshold_bytes=EXTERNAL_BYTES,
            callback=progress,
            max_workers=1,
        )
    if not data.stat().st_size:
        data.unlink()


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter tells of every optional package that it does not find."""
    loggers = [logging.getLogger(name) for name in QUIET]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
