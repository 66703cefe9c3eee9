"""Export of a stage's networks for ONNX Runtime: graph, check, comparison with torch, record."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from cosmos_triton.export.checkpoints.manifest import Manifest, sha256_of
from cosmos_triton.export.graphs.graph_specs import SPECS, GraphSpec, LazyWeights, in_precision
from cosmos_triton.export.graphs.onnx_graph import OPSET, export_graph
from cosmos_triton.runtime.backends.graphs import ONNXRUNTIME, BackendError, ExportedStage, GraphRecord, Port
from cosmos_triton.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from cosmos_triton.runtime.checkpoints import load_network
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.stages import GRAPHS

PACKAGES = ("cosmos-triton", "torch", "onnx", "onnxscript", "onnxruntime")


def export_onnx(
    stage: str,
    deployment: Deployment,
    checkpoint_dir: Path,
    root: Path,
    *,
    graphs: Sequence[str] | None = None,
    compare: bool = True,
) -> None:
    """Write the graphs of a stage below `root`, and print one line for each.

    Args:
        graphs: which of the stage's; all when None.
        compare: whether to compare with torch; False for random weights, or weights larger than memory. The record
            then has no error.

    Raises:
        CheckpointError: a checkpoint file is missing, or is not the network's.
        BackendError: a graph's outputs are not torch's. What was written has no record, and is not served.
    """
    exported = ExportedStage.below(root, stage, ONNXRUNTIME)
    exported.folder.mkdir(parents=True, exist_ok=True)
    for graph in graphs or GRAPHS[stage]:
        spec, path = SPECS[graph], exported.file(graph)
        exported.record_file(graph).unlink(missing_ok=True)
        export_graph(spec, checkpoint_dir, deployment, torch.float32, path)
        onnx.checker.check_model(path, full_check=True)
        error = None
        if compare:
            sizes = sorted({spec.sizes[0], spec.traced})
            samples = [spec.sample(checkpoint_dir, deployment, size) for size in sizes]
            expected = torch_outputs(spec, checkpoint_dir, deployment, torch.float32, samples, "cpu")
            backend = OnnxRuntimeBackend(path, threads=torch.get_num_threads(), pack_weights=False)
            found = [backend.run(dict(zip(spec.inputs, sample, strict=True))) for sample in samples]
            error = require_equal(path, expected, found, spec.tolerance)
            del backend
        graph_record(spec, checkpoint_dir, deployment, torch.float32, path, error).write(exported.record_file(graph))
        size = sum(file.stat().st_size for file in exported.folder.glob(f"{path.name}*"))
        compared = "not compared" if error is None else f"largest error {error:.1e}, at most {spec.tolerance:.0e}"
        print(f"{path}: {size / 1e6:,.1f} MB, opset {OPSET}, {compared}", flush=True)


@torch.inference_mode()
def torch_outputs(
    spec: GraphSpec,
    checkpoint_dir: Path,
    deployment: Deployment,
    dtype: torch.dtype,
    samples: Sequence[Sequence[Tensor]],
    device: str,
) -> list[dict[str, Tensor]]:
    """The outputs of the torch module for each of `samples`. The module is not kept."""
    source = spec.source
    network: nn.Module
    if isinstance(source, LazyWeights):
        config = source.presets[spec.network_name(deployment)]
        network = load_network(
            source.build, config, checkpoint_dir / source.file(deployment.release), dtype=dtype, device=device
        )
    else:
        network = source.load(checkpoint_dir, deployment, device).to(dtype)
    outputs = []
    for sample in samples:
        values = network(*(tensor.to(device) for tensor in sample))
        values = values if isinstance(values, tuple) else (values,)
        outputs.append(dict(zip(spec.outputs, values, strict=True)))
    return outputs


def require_equal(
    path: Path, expected: Sequence[Mapping[str, Tensor]], found: Sequence[Mapping[str, Tensor]], tolerance: float
) -> float:
    """The largest error of all outputs. BackendError where it is more than `tolerance`, or not a number."""
    largest = 0.0
    for theirs, ours in zip(expected, found, strict=True):
        for name, reference in theirs.items():
            error = _error(reference, ours[name])
            if not error <= tolerance:
                raise BackendError(f"{path}: {name} is {error:.1e} off what torch computes; accepted: {tolerance:.0e}")
            largest = max(largest, error)
    return largest


def _error(reference: Tensor, value: Tensor) -> float:
    if reference.shape != value.shape:
        return float("inf")
    value = value.to(reference.device)
    if not reference.is_floating_point():
        return (reference != value).float().mean().item()
    return ((reference.double() - value.double()).abs().max() / reference.double().abs().max()).item()


def graph_record(
    spec: GraphSpec,
    checkpoint_dir: Path,
    deployment: Deployment,
    dtype: torch.dtype,
    path: Path,
    largest_error: float | None,
) -> GraphRecord:
    """The record of the ONNX graph at `path`."""
    sample = in_precision(spec, spec.sample(checkpoint_dir, deployment, spec.traced), dtype)
    graph = onnx.load(path, load_external_data=False).graph
    symbols = {
        _axes(value)[axis]: name for value in reversed(graph.input) for axis, name in spec.inputs[value.name].items()
    }
    return GraphRecord(
        network=spec.network_name(deployment),
        precision=_name(dtype),
        opset=OPSET,
        inputs={
            name: Port(_name(tensor.dtype), tuple(axes.get(i, n) for i, n in enumerate(tensor.shape)))
            for (name, axes), tensor in zip(spec.inputs.items(), sample, strict=True)
        },
        outputs={output.name: _port(output, symbols) for output in graph.output},
        weights=weight_hashes(spec.source.files(deployment.release), checkpoint_dir),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        versions={package: version(package) for package in PACKAGES},
        largest_error=largest_error,
    )


def weight_hashes(files: Sequence[str], checkpoint_dir: Path) -> dict[str, str]:
    """SHA-256 of checkpoint files; those that the manifest has are not read."""
    known = Manifest.read(checkpoint_dir).converted
    return {
        file: known[file].sha256 if file in known else sha256_of(checkpoint_dir / file, lambda _: None)
        for file in files
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _axes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


def _port(value: onnx.ValueInfoProto, symbols: Mapping[int | str, str]) -> Port:
    """`symbols`: the exporter's names of axes, and ours."""
    dtype = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    shape = [re.sub(r"s\d+", lambda m: symbols.get(m[0], m[0]), n) if isinstance(n, str) else n for n in _axes(value)]
    return Port({"float": "float32"}.get(dtype, dtype), tuple(shape))
