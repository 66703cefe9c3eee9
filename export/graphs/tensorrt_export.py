"""Export of a stage's networks for TensorRT: graph, plan, comparison with torch on the GPU, record."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from cosmos_triton.export.graphs import tensorrt_builder
from cosmos_triton.export.graphs.graph_specs import SPECS, in_precision
from cosmos_triton.export.graphs.onnx_export import graph_record, require_equal, torch_outputs
from cosmos_triton.export.graphs.onnx_graph import export_graph
from cosmos_triton.runtime.backends import tensorrt_backend
from cosmos_triton.runtime.backends.graphs import TENSORRT, BackendError, ExportedStage
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.stages import GRAPHS, STAGES

DEVICE = "cuda"
# Of inputs, outputs and the torch module that the plan is compared with.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
# Largest difference from torch in the same precision, relative to the largest value: kernels round at other places,
# and fp32 products are computed in TF32.
TOLERANCES = {"fp32": 1e-2, "fp16": 1e-2, "bf16": 5e-2, "fp8": 2e-1}
TOKEN_TOLERANCE = 0.25  # share of tokens: a latent between two levels goes to either with its last bit
TIMING_CACHE = "timing.cache"


def export_tensorrt(
    stage: str,
    deployment: Deployment,
    checkpoint_dir: Path,
    root: Path,
    *,
    precision: str | None = None,
    graphs: Path | None = None,
) -> None:
    """Build the plans of a stage below `root`, and print one line for each.

    Args:
        precision: fp32, bf16, fp16 or fp8; when None, the stage's own with torch.
        graphs: a folder of ONNX graphs to build from, <graph>.onnx; without it they are exported, and not kept.

    Raises:
        CheckpointError: a checkpoint file is missing, or is not the network's.
        BackendError: there is no GPU or no TensorRT, a plan cannot be built, or its outputs are not torch's.
    """
    precision = precision or STAGES[stage].gpu_precision
    if precision == "fp8" and graphs is None:
        raise BackendError(
            "--precision: value fp8; accepted: with --graphs DIR, a folder of graphs that were quantised to fp8 "
            "(by NVIDIA's Model Optimizer, say), since scales must be measured on real clips"
        )
    target = tensorrt_backend.current_target()
    exported = ExportedStage.below(root, stage, TENSORRT)
    exported.folder.mkdir(parents=True, exist_ok=True)
    dtype = DTYPES[precision]
    for graph in GRAPHS[stage]:
        spec, path, began = SPECS[graph], exported.file(graph), time.monotonic()
        exported.record_file(graph).unlink(missing_ok=True)
        profiles = spec.profiles(checkpoint_dir, deployment)
        with ExitStack() as scratch:
            folder = graphs or Path(scratch.enter_context(tempfile.TemporaryDirectory(dir=exported.folder)))
            onnx = folder / f"{graph}.onnx"
            if graphs is None:
                export_graph(spec, checkpoint_dir, deployment, dtype, onnx)
            elif not onnx.is_file():
                raise BackendError(f"{onnx}: no such graph")
            record = graph_record(spec, checkpoint_dir, deployment, dtype, onnx, None)
            tensorrt_builder.build_plan(onnx, path, profiles, root / TIMING_CACHE)
        seconds = time.monotonic() - began

        sample = (spec.served or spec.sample)(checkpoint_dir, deployment, spec.sizes[1])
        samples = [tuple(tensor.to(DEVICE) for tensor in in_precision(spec, sample, dtype))]
        expected = torch_outputs(spec, checkpoint_dir, deployment, dtype, samples, DEVICE)
        backend = tensorrt_backend.TensorrtBackend(path)
        found = [backend.run(dict(zip(spec.inputs, sample, strict=True))) for sample in samples]
        tolerance = TOLERANCES[precision] if expected[0][spec.outputs[0]].is_floating_point() else TOKEN_TOLERANCE
        error = require_equal(path, expected, found, tolerance)
        del backend, expected, found
        record = replace(
            record,
            precision="float8" if precision == "fp8" else record.precision,
            largest_error=error,
            target=target,
            profiles=profiles,
        )
        record.write(exported.record_file(graph))
        print(
            f"{path}: {path.stat().st_size / 1e6:,.1f} MB, {precision}, for {target}, in {seconds:.0f} s, "
            f"largest error {error:.1e}, at most {tolerance:.0e}",
            flush=True,
        )
