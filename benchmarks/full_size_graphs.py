"""Exports graphs of full size with random weights, and measures seconds, memory and disk.

    python benchmarks/full_size_graphs.py denoising_step
    python benchmarks/full_size_graphs.py text_encoder --compare

First a checkpoint of the released shapes and precision is written, then it is exported as by `cosmos-triton export
onnx`. Anonymous memory does not include pages of mapped files, which the system can reclaim. Some weights of the graph
are compared with the checkpoint's, bit for bit, and with --compare the outputs with torch's: both map their weights
from files then, but torch needs memory for weights in another precision than the graph's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from cosmos_triton.export.checkpoints.safetensors_writer import write_safetensors
from cosmos_triton.export.graphs.graph_specs import SPECS, GraphSpec, LazyWeights
from cosmos_triton.export.graphs.onnx_export import export_onnx
from cosmos_triton.runtime.backends.graphs import ONNXRUNTIME, ExportedStage
from cosmos_triton.runtime.checkpoints import network_shapes
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.mapped_file import SafetensorsFile
from cosmos_triton.runtime.stages import GRAPHS

DEPLOYMENT = DEPLOYMENTS["13b-video2world"]
RELEASED_DTYPES = {"text_encoder": torch.float32, "face_detector": torch.float32}  # of the others: bfloat16
SAMPLE_SECONDS = 0.05


def write_random(path: Path, spec: GraphSpec, dtype: torch.dtype) -> None:
    assert isinstance(spec.source, LazyWeights)
    with torch.device("meta"):
        network = spec.source.build(spec.source.presets[spec.network_name(DEPLOYMENT)])
        tensors = {name: torch.empty(shape, dtype=dtype) for name, shape in network_shapes(network).items()}
    path.parent.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)

    def random(_: str, tensor: Tensor) -> Tensor:
        scale = max(tensor.shape[-1], 1) ** -0.5
        return torch.empty(tensor.shape, dtype=dtype).uniform_(-scale, scale, generator=generator)

    write_safetensors(path, tensors, value=random, progress=lambda _: None)


class PeakMemory(threading.Thread):
    """Peak anonymous memory of this process, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0

    def run(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, int(status.split("RssAnon:")[1].split()[0]) * 1024)
            time.sleep(SAMPLE_SECONDS)


def weights_that_differ(graph_file: Path, checkpoint: SafetensorsFile, count: int = 5) -> list[str]:
    """Of the first, the last, and some weights between."""
    model = onnx.load(graph_file, load_external_data=False)
    named = {tensor.name: tensor for tensor in model.graph.initializer}
    large = [
        name for name in named if name.removesuffix(".transposed") in checkpoint.shapes and named[name].external_data
    ]
    chosen = [large[i * (len(large) - 1) // (count - 1)] for i in range(count)]
    wrong = []
    for name in chosen:
        value = torch.from_numpy(numpy_helper.to_array(named[name], base_dir=str(graph_file.parent)))
        expected = checkpoint.tensor(name.removesuffix(".transposed")).float()
        if not torch.equal(value, expected.T if name.endswith(".transposed") else expected):
            wrong.append(name)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graph", choices=[name for name, spec in SPECS.items() if isinstance(spec.source, LazyWeights)])
    parser.add_argument("--compare", action="store_true", help="run the graph and the torch module as well")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where to write, and clear away (default: /tmp)")
    args = parser.parse_args()
    stage = next(stage for stage, graphs in GRAPHS.items() if args.graph in graphs)
    spec = SPECS[args.graph]
    assert isinstance(spec.source, LazyWeights)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        directory = Path(scratch)
        checkpoint = directory / spec.source.file
        write_random(checkpoint, spec, RELEASED_DTYPES.get(args.graph, torch.bfloat16))
        memory, began = PeakMemory(), time.monotonic()
        memory.start()
        export_onnx(stage, DEPLOYMENT, directory, directory, graphs=(args.graph,), compare=args.compare)
        seconds = time.monotonic() - began
        file = ExportedStage.below(directory, stage, ONNXRUNTIME).file(args.graph)
        result = {
            "graph": args.graph,
            "network": spec.network_name(DEPLOYMENT),
            "checkpoint_bytes": checkpoint.stat().st_size,
            "graph_bytes": sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*")),
            "seconds": round(seconds, 1),
            "peak_anonymous_bytes": memory.peak,
            "weights_that_differ": weights_that_differ(file, SafetensorsFile(checkpoint)),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
