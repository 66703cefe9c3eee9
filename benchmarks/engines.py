"""torch against ONNX Runtime on this CPU: seconds a clip of each stage, and their ratio.

    python benchmarks/engines.py
    python benchmarks/engines.py --deployment 4b --checkpoint-dir checkpoints --stage video_guardrail
    python benchmarks/engines.py --json

The networks alone, with the shapes and the number of calls of one clip. The two backends alternate call by call, so
that both run on the same load of the machine; the ratio of a round is reported as median and range over the rounds. On
one thread, as the stages of a server run, and on all cores. Without checkpoints, tiny ones are made and exported.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from cosmos_triton.cli.main import main as cosmos_triton
from cosmos_triton.export.graphs.graph_specs import SPECS, LazyWeights
from cosmos_triton.runtime.backends.graphs import FOLDER, ONNXRUNTIME, ExportedStage
from cosmos_triton.runtime.backends.onnxruntime_backend import OnnxRuntimeBackend
from cosmos_triton.runtime.checkpoints import load_network
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.runtime.releases import COSMOS_1_0
from cosmos_triton.runtime.stages import GRAPHS

FRAMES = 33
CALLS = {  # a clip; 1 for the others
    "denoising_step": COSMOS_1_0.evaluations,
    "content_classifier": math.ceil(FRAMES / 8),
    "face_detector": math.ceil(FRAMES / 8),
}


def torch_network(graph: str, deployment: Deployment, checkpoint_dir: Path) -> Any:
    spec = SPECS[graph]
    if not isinstance(spec.source, LazyWeights):
        return spec.source.load(checkpoint_dir, deployment, "cpu")
    config = spec.source.presets[spec.network_name(deployment)]
    return load_network(
        spec.source.build, config, checkpoint_dir / spec.source.file(deployment.release), dtype=torch.float32
    )


def seconds_of(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@torch.inference_mode()
def measure(
    stage: str, deployment: Deployment, checkpoint_dir: Path, threads: int, rounds: int
) -> list[dict[str, float]]:
    """Seconds a clip of each backend, a round."""
    torch.set_num_threads(threads)
    exported = ExportedStage.below(checkpoint_dir / FOLDER, stage, ONNXRUNTIME)
    calls = []
    for graph in GRAPHS[stage]:
        spec = SPECS[graph]
        sample = (spec.served or spec.sample)(checkpoint_dir, deployment, spec.sizes[1])
        network = torch_network(graph, deployment, checkpoint_dir)
        backend = OnnxRuntimeBackend(exported.file(graph), threads=threads)
        named = dict(zip(spec.inputs, sample, strict=True))
        backends = {"torch": lambda n=network, s=sample: n(*s), ONNXRUNTIME: lambda b=backend, s=named: b.run(s)}
        calls.append((CALLS.get(graph, 1), backends))
    for _, backends in calls:
        for call in backends.values():
            call()
    results = []
    for _ in range(rounds):
        total = {"torch": 0.0, ONNXRUNTIME: 0.0}
        for count, backends in calls:
            for _ in range(count):
                for name, call in backends.items():
                    total[name] += seconds_of(call)
        results.append(total)
    return results


def summarize(rounds: list[dict[str, float]]) -> dict[str, Any]:
    ratios = [each["torch"] / each[ONNXRUNTIME] for each in rounds]
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    return {"seconds": medians, "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['deployment']}, {result['rounds']} rounds; load average {result['load_average']:.1f} on "
        f"{result['cores']} cores; seconds of a clip, and torch's over ONNX Runtime's",
        f"{'stage':26}{'threads':>8}{'torch':>10}{'ONNX Runtime':>14}{'ratio':>8}   range",
    ]
    for row in result["stages"]:
        low, high = row["ratio_range"]
        seconds = row["seconds"]
        lines.append(
            f"{row['stage']:26}{row['threads']:>8}{seconds['torch']:>10.3f}{seconds[ONNXRUNTIME]:>14.3f}"
            f"{row['ratio']:>8.2f}   {low:.2f} to {high:.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployment", choices=list(DEPLOYMENTS), default="tiny-video2world")
    parser.add_argument("--checkpoint-dir", type=Path, metavar="DIR", help="with exported graphs (default: tiny ones)")
    parser.add_argument("--stage", choices=list(GRAPHS), action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    deployment = DEPLOYMENTS[args.deployment]
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint_dir = args.checkpoint_dir or Path(scratch)
        if args.checkpoint_dir is None:
            for step in ("tiny", "convert"):
                cosmos_triton(["checkpoints", step, scratch])
            cosmos_triton(["export", "onnx", "--deployment", deployment.name, "--checkpoint-dir", scratch])
        rows = [
            {"stage": stage, "threads": threads}
            | summarize(measure(stage, deployment, checkpoint_dir, threads, args.rounds))
            for stage in args.stage or GRAPHS
            for threads in sorted({1, os.cpu_count() or 1})
        ]
    result = {
        "deployment": deployment.name,
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "stages": rows,
    }
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()
