"""Generates clips with the real server at full size within a GPU memory budget, and measures the memory in use.

    python benchmarks/whole_pipeline.py --deployment 4b --gpu-memory 16
    python benchmarks/whole_pipeline.py --deployment 4b --at-once 4 --json clips.json
    python benchmarks/whole_pipeline.py                                    # the tiny deployment, on this CPU

First, random weights of the released shapes and precisions are written (23 GB for 4b): they take the memory and the
time of trained ones, without a download. Then `cosmos-triton serve` starts, and generates a first clip, during which
everything is compiled, then one alone, and then several at once. The tokens of a seed must be the same each time.

Memory in use is polled from nvidia-smi 20 times a second, minus what was in use before the server started. It includes
CUDA contexts, libraries and the server itself.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from memory import used_on_gpu
from torch import Tensor
from transformers import SiglipConfig

from cosmos_triton.client.world_client import WorldClient
from cosmos_triton.export.checkpoints.catalogue import CHECKPOINTS
from cosmos_triton.export.checkpoints.safetensors_writer import write_safetensors
from cosmos_triton.networks.siglip import PRESETS
from cosmos_triton.planning.units import GB
from cosmos_triton.runtime import checkpoints as paths
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.tiny.demo import served
from cosmos_triton.tiny.sample_media import write_samples

WITHOUT_TEXT = [name for name, deployment in DEPLOYMENTS.items() if not deployment.is_video2world]
IN_FP32 = (paths.VIDEO_SAFETY_ENCODER, paths.VIDEO_SAFETY, paths.FACE_DETECTOR)  # all others: bfloat16


def write_random_checkpoints(directory: Path, deployment: Deployment) -> None:
    """Write every converted file of the deployment. The guardrails find every frame safe and without faces."""
    siglip = directory / paths.VIDEO_SAFETY_ENCODER
    siglip.mkdir(parents=True)
    config = SiglipConfig(vision_config=PRESETS[deployment.video_safety].to_dict())
    (siglip / "config.json").write_text(config.to_json_string(use_diff=False))
    targets = [checkpoint.target for checkpoint in CHECKPOINTS if checkpoint.needed_by(deployment)]
    with ProcessPoolExecutor() as pool:
        list(pool.map(write_random_file, [directory] * len(targets), targets, [deployment] * len(targets)))


def write_random_file(directory: Path, target: str, deployment: Deployment) -> None:
    checkpoint = next(checkpoint for checkpoint in CHECKPOINTS if checkpoint.target == target)
    dtype = torch.float32 if target.startswith(IN_FP32) else torch.bfloat16
    shapes = checkpoint.shapes(directory, deployment)
    with torch.device("meta"):
        tensors = {
            name: torch.empty(shape, dtype=torch.int64 if name.endswith("num_batches_tracked") else dtype)
            for name, shape in shapes.items()
        }
    pattern = torch.rand(1 << 22, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def value(name: str, tensor: Tensor) -> Tensor:
        is_class_head = target == paths.FACE_DETECTOR and name.startswith("ClassHead")
        if tensor.ndim < 2 or target == paths.VIDEO_SAFETY or is_class_head:  # norms are identity
            ones = name.endswith(("norm.weight", "std", "running_var")) or (tensor.ndim == 1 and "weight" in name)
            filled = torch.full(tensor.shape, int(ones), dtype=tensor.dtype)
            if name.endswith("layers.6.bias"):
                filled[0] = 1  # safe
            if is_class_head and name.endswith("bias"):
                filled[::2] = 8  # background
            return filled
        scaled = (pattern * tensor[0].numel() ** -0.5).to(tensor.dtype)
        return scaled.repeat(-(-tensor.numel() // len(scaled)))[: tensor.numel()].view(tensor.shape)

    (directory / target).parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / target, tensors, value=value, progress=lambda _: None)


class GpuWatch(threading.Thread):
    """Polls the bytes in use on GPU 0 beyond those in use now: peak, and peak since `restart`; 0 without a GPU."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.has_gpu = torch.cuda.is_available()
        self.before = used_on_gpu() if self.has_gpu else 0
        self.peak = self.peak_since = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        while self.has_gpu and not self.stopped.wait(0.05):
            used = used_on_gpu() - self.before
            self.peak, self.peak_since = max(self.peak, used), max(self.peak_since, used)

    def restart(self) -> None:
        self.peak_since = 0


def generate(url: str, clip: Path, seed: int) -> dict[str, Any]:
    """Generate a clip; returns the report, with the hash of the video and the seconds that the client waited."""
    began = time.monotonic()
    with WorldClient(url) as client:
        world = client.generate(clip, seed=seed)
    waited = round(time.monotonic() - began, 2)
    return world.report | {"video_sha256": hashlib.sha256(world.video).hexdigest(), "waited": waited}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployment", choices=WITHOUT_TEXT, default="tiny", help="a base deployment")
    parser.add_argument("--gpu-memory", metavar="GB", help="as for `cosmos-triton serve`")
    parser.add_argument("--weights-8bit", action="store_true", help="as for `cosmos-triton serve`")
    parser.add_argument("--precision", metavar="STAGE=PRECISION", help="as for `cosmos-triton serve`")
    parser.add_argument("--at-once", type=int, default=3, metavar="N", help="clips at once in the end (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every request's report to a file")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="parent of the temporary folder (default: /tmp)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder, began = Path(scratch), time.monotonic()
        write_random_checkpoints(folder / "checkpoints", DEPLOYMENTS[args.deployment])
        clip, _ = write_samples(folder)
        print(f"checkpoints written: {time.monotonic() - began:.0f} s", flush=True)
        watch, began = GpuWatch(), time.monotonic()
        watch.start()
        arguments = ["--deployment", args.deployment, "--checkpoint-dir", str(folder / "checkpoints")]
        arguments += ["--gpu-memory", args.gpu_memory] if args.gpu_memory else []
        arguments += ["--weights-8bit"] if args.weights_8bit else []
        arguments += ["--precision", args.precision] if args.precision else []
        with served(arguments, folder / "log") as url, ThreadPoolExecutor(args.at_once) as pool:
            found = re.search(r": ([\d.]+) GB at most", (folder / "log").read_text())
            planned = found[1] if found else "no plan"
            print(f"ready: {time.monotonic() - began:.0f} s; {watch.peak / GB:.2f} GB in use at most", flush=True)
            digests, results = set(), {}
            for name, seeds in {"first": [0], "alone": [0], "at once": range(args.at_once)}.items():
                watch.restart()
                began = time.monotonic()
                reports = list(pool.map(lambda seed: generate(url, clip, seed), seeds))
                seconds = time.monotonic() - began
                tokens, video = (reports[0][f"{name}_sha256"] for name in ("tokens", "video"))
                digests.add(tokens)
                waits = [report["waited"] for report in reports]
                print(
                    f"{name}: {len(reports)} in {seconds:.1f} s, on average after {sum(waits) / len(waits):.1f} s; "
                    f"{watch.peak_since / GB:.2f} GB in use at most"
                )
                results[name] = {"seconds": seconds, "peak_bytes": watch.peak_since, "reports": reports}
                if args.json:
                    args.json.write_text(json.dumps(results, indent=1))
                print(f"  {json.dumps(reports[0]['seconds'])}; tokens {tokens[:8]}, video {video[:8]}", flush=True)
            watch.stopped.set()
        print(f"the whole: {watch.peak / GB:.2f} GB in use at most; planned: {planned}")
        if len(digests) != 1:
            raise SystemExit("the same seed gave other tokens")


if __name__ == "__main__":
    main()
