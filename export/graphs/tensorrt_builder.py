"""TensorRT at build time. Only this module and runtime/backends/tensorrt_backend.py use the package `tensorrt`.

Written for TensorRT 11, whose networks are strongly typed: a plan computes in the types of its graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cosmos_triton.runtime.backends.graphs import BackendError
from cosmos_triton.runtime.backends.tensorrt_backend import require_tensorrt


def build_plan(graph: Path, plan_file: Path, profiles: Mapping[str, list[list[int]]], timing_cache: Path) -> None:
    """Write the plan of an ONNX graph for the current GPU.

    Args:
        profiles: the min, opt and max shape of every input.
        timing_cache: file of kernel timings, kept from one build to the next.

    Raises:
        BackendError: TensorRT cannot read the graph, or build a plan of it.
    """
    trt = require_tensorrt()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):  # by name: it looks for weights beside the file
        raise BackendError(f"{graph}: TensorRT cannot read it: {parser.get_error(0).desc()}")

    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, (min_shape, opt_shape, max_shape) in profiles.items():
        profile.set_shape(name, tuple(min_shape), tuple(opt_shape), tuple(max_shape))
    config.add_optimization_profile(profile)
    cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, False):  # of another GPU or version
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)

    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"{graph}: TensorRT cannot build a plan; its log says why")
    plan_file.write_bytes(memoryview(plan))
    timing_cache.write_bytes(memoryview(cache.serialize()))
