"""Measures the serving overhead: one request at a time through the whole pipeline at full size, 33x640x1024, with the
networks replaced by stand-ins that sleep for a constant time (benchmarks/standins). No checkpoints and no GPU.

    python benchmarks/serving_overhead.py
    python benchmarks/serving_overhead.py --runs 30 --json

Everything else is as in a deployment: the server, both media stages, the pipeline and all configurations. The client
measures a plain infer call with a 40-frame clip:

- networks: the time that the stand-ins are meant to sleep; oversleeping counts as the rest
- media decode, media encode: compute time of these stages in the server's statistics
- the rest: calls between models, copies between processes, transport of the request, and the pipeline itself
- overhead: media decode, media encode and the rest

The lines below the rest break it down: a stage's time as seen by the pipeline minus its compute time; elsewhere is the
time outside of all stages. The pipeline polls ar_sampler every 20 ms, which costs 10 ms on average, and about that with
stand-ins of 70 ms. Every number is the best or the median of its own line over the runs, so lines do not quite add up.
Other load on the machine shows in the median and in the load average.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc

from cosmos_triton.client.world_client import WorldClient
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.stage_settings import StageSettings
from cosmos_triton.serving.addresses import Addresses
from cosmos_triton.serving.ports import free_ports
from cosmos_triton.serving.run_directory import model_repository
from cosmos_triton.serving.serve_repository import serve_repository
from cosmos_triton.tiny.sample_media import write_samples

DEPLOYMENT = DEPLOYMENTS["4b"]
STANDINS = Path(__file__).parent / "standins"
NETWORKS = ("video_tokenizer_encoder", "ar_sampler", "diffusion_decoder", "video_guardrail")  # of one request, in order
UNUSED = ("video_tokenizer_decoder",)  # loaded with the deployment, but not called
TEXT_STAGES = ("text_guardrail", "text_encoder")
MEDIA = ("media_decoder", "media_encoder")
WARM_UP = 6  # requests: each of four media decoders has its memory after its first
TARGETS = {"the rest": 200, "overhead": 700}  # ms
START_SECONDS, REQUEST_SECONDS, STOP_SECONDS = 120, 60, 60


def write_repository(folder: Path) -> None:
    """The model repository, with stand-ins for the network stages."""
    for config in model_repository().glob("*/config.pbtxt"):
        name = config.parent.name
        model = folder / name
        model.mkdir(parents=True)
        (model / config.name).symlink_to(config)
        (model / "1").symlink_to(STANDINS if name in NETWORKS + UNUSED else config.parent / "1")


def serve(repository: Path, addresses: Addresses, standin_seconds: float, log: Path) -> None:
    with log.open("w") as sink:
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
    serve_repository(
        repository,
        title="stand-ins",
        settings=StageSettings(DEPLOYMENT, Path("none"), "cpu"),
        parameters={"standin_seconds": str(standin_seconds)},
        without=TEXT_STAGES,
        addresses=addresses,
    )


@contextmanager
def served(folder: Path, standin_seconds: float) -> Iterator[Addresses]:
    """A server with the stand-ins; yields its addresses once it is ready."""
    repository, log = folder / "models", folder / "log"
    write_repository(repository)
    addresses = Addresses("127.0.0.1", *free_ports(3))
    context = multiprocessing.get_context("spawn")
    server = context.Process(target=serve, args=(repository, addresses, standin_seconds, log))
    server.start()
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(addresses):
            if not server.is_alive() or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.2)
        yield addresses
    finally:
        server.terminate()
        server.join(STOP_SECONDS)
        server.kill()


def is_ready(addresses: Addresses) -> bool:
    try:
        get(addresses, "health/ready")
    except OSError:
        return False
    return True


def get(addresses: Addresses, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{addresses.host}:{addresses.http_port}/v2/{path}", timeout=10) as response:
        return response.read()


def compute_ms(addresses: Addresses, stage: str) -> float:
    """Compute time of a stage since the server started, from the server's statistics."""
    [model] = json.loads(get(addresses, f"models/{stage}/stats"))["model_stats"]
    return model["inference_stats"]["compute_infer"]["ns"] / 1e6


def grpc_call(url: str, data: bytes) -> Callable[[], dict[str, Any]]:
    """A plain infer call, which returns the report."""
    client = tritonclient.grpc.InferenceServerClient(url)
    visual_input = tritonclient.grpc.InferInput("visual_input", [1], "BYTES")
    visual_input.set_data_from_numpy(np.array([data], dtype=np.object_))

    def call() -> dict[str, Any]:
        result = client.infer("world_generation", [visual_input], client_timeout=REQUEST_SECONDS)
        assert result.as_numpy("video")[0], "there is no video"
        return json.loads(result.as_numpy("report")[0])

    return call


def http_call(url: str, data: bytes) -> Callable[[], dict[str, Any]]:
    client = WorldClient(url, protocol="http")
    return lambda: client.generate(data, deadline=REQUEST_SECONDS).report


def measure(call: Callable[[], dict[str, Any]], addresses: Addresses, standin_ms: float) -> dict[str, float]:
    """Milliseconds of each part of one request."""
    before = {stage: compute_ms(addresses, stage) for stage in MEDIA}
    started = time.perf_counter()
    report = call()
    total = 1e3 * (time.perf_counter() - started)
    decode, encode = (compute_ms(addresses, stage) - before[stage] for stage in MEDIA)
    networks = len(NETWORKS) * standin_ms
    seen = {stage: 1e3 * seconds for stage, seconds in report["seconds"].items() if stage != "total"}
    own = dict.fromkeys(NETWORKS, standin_ms) | {"media_decoder": decode, "media_encoder": encode}
    return {
        "total": total,
        "networks": networks,
        "media decode": decode,
        "media encode": encode,
        "the rest": total - networks - decode - encode,
        **{f"around {stage}": seen[stage] - own[stage] for stage in seen},
        "elsewhere": total - sum(seen.values()),
        "overhead": total - networks,
    }


def summarize(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Best and median of each part."""
    columns = {part: [run[part] for run in runs] for part in runs[0]}
    return {part: {"best": min(values), "median": statistics.median(values)} for part, values in columns.items()}


def run(args: argparse.Namespace) -> dict[str, Any]:
    standin_ms = args.standin_ms
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = write_samples(folder)[0].read_bytes()
        with served(folder, standin_ms / 1e3) as addresses:
            calls = {
                "grpc": grpc_call(f"{addresses.host}:{addresses.grpc_port}", data),
                "http": http_call(f"{addresses.host}:{addresses.http_port}", data),
            }
            for call in calls.values():
                for _ in range(WARM_UP):
                    call()
            runs: dict[str, list[dict[str, float]]] = {protocol: [] for protocol in calls}
            for _ in range(args.runs):  # alternately, so that both see the same load on the machine
                for protocol, call in calls.items():
                    runs[protocol].append(measure(call, addresses, standin_ms))
    return {
        "deployment": DEPLOYMENT.name,
        "video": [DEPLOYMENT.frames, DEPLOYMENT.height, DEPLOYMENT.width, 3],
        "input_bytes": len(data),
        "standin_ms": standin_ms,
        "runs": args.runs,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "ms": {protocol: summarize(each) for protocol, each in runs.items()},
        "targets_ms": TARGETS,
    }


def table(result: dict[str, Any]) -> str:
    grpc, http = result["ms"]["grpc"], result["ms"]["http"]
    frames, height, width, _ = result["video"]
    lines = [
        f"{frames}x{height}x{width}, from a clip of {result['input_bytes'] / 1e6:.1f} MB; {len(NETWORKS)} stand-ins of "
        f"{result['standin_ms']:g} ms; {result['runs']} runs each; "
        f"load average {result['load_average']:.1f} on {result['cores']} cores",
        "ms                               gRPC best  median   HTTP best  median   target",
    ]
    for part in grpc:
        name = "  " + part if part == "elsewhere" or part.startswith("around ") else part
        target = f"< {TARGETS[part]}" if part in TARGETS else ""
        lines.append(
            f"{name:<32}{grpc[part]['best']:>10.0f}{grpc[part]['median']:>8.0f}"
            f"{http[part]['best']:>12.0f}{http[part]['median']:>8.0f}{target:>9}".rstrip()
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="requests of each protocol (default: 10)")
    parser.add_argument("--standin-ms", type=float, default=70, help="time of each stand-in (default: 70)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    result = run(args)
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()
