"""Generates clips with the real server at full size within a GPU memory budget, and measures the memory in use.

    python benchmarks/whole_pipeline.py --deployment 4b --gpu-memory 16
    python benchmarks/whole_pipeline.py --deployment 4b --at-once 4 --json clips.json
    python benchmarks/whole_pipeline.py --deployment 13b-video2world --scratch /dev/shm
    python benchmarks/whole_pipeline.py                                    # the tiny deployment, on this CPU

First, random weights of the released shapes and precisions are written (25 GB for 4b, 67 for 13b-video2world), to
--scratch. Then `cosmos-triton serve` starts, and generates a first clip, during which everything is compiled, then one
alone, and then several at once. The tokens of a seed must be the same each time.

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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from memory import used_on_gpu
from random_checkpoints import write_random_checkpoints

from cosmos_triton.client.world_client import WorldClient
from cosmos_triton.planning.units import GB
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.tiny.demo import served
from cosmos_triton.tiny.sample_media import write_samples

# The source's README: seconds of a clip on one H100; peak GB with nothing offloaded, and with everything.
SOURCE = {
    "4b": ("62", "31.3", "18.7"),
    "12b": ("119", "47.5", "27.4"),
    "5b-video2world": ("73", "66.2", "21.1"),
    "13b-video2world": ("150", "over 80", "30.9"),
}
PROMPT = "a car drives along a wet street at night, past parked vans and street lights"


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


def generate(url: str, clip: Path, prompt: str | None, seed: int) -> dict[str, Any]:
    """Generate a clip; returns the report, with the hash of the video and the seconds that the client waited."""
    began = time.monotonic()
    with WorldClient(url) as client:
        world = client.generate(clip, prompt=prompt, seed=seed)
    waited = round(time.monotonic() - began, 2)
    return world.report | {"video_sha256": hashlib.sha256(world.video).hexdigest(), "waited": waited}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployment", choices=DEPLOYMENTS, default="tiny", help="default: tiny")
    parser.add_argument("--gpu-memory", metavar="GB", help="as for `cosmos-triton serve`")
    parser.add_argument("--weights-8bit", action="store_true", help="as for `cosmos-triton serve`")
    parser.add_argument("--precision", metavar="STAGE=PRECISION", help="as for `cosmos-triton serve`")
    parser.add_argument("--at-once", type=int, default=3, metavar="N", help="clips at once in the end (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every request's report to a file")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="parent of the temporary folder (default: /tmp)")
    args = parser.parse_args()
    prompt = PROMPT if DEPLOYMENTS[args.deployment].is_video2world else None
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
                reports = list(pool.map(lambda seed: generate(url, clip, prompt, seed), seeds))
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
        if args.deployment in SOURCE:
            seconds, most, least = SOURCE[args.deployment]
            print(f"the source, on an H100: {seconds} s a clip; {most} GB at most, {least} with everything offloaded")
        if len(digests) != 1:
            raise SystemExit("the same seed gave other tokens")


if __name__ == "__main__":
    main()
