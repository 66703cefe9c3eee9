"""How much GPU memory the stages of a deployment take, next to the plan and to the reference's documentation.

    python benchmarks/memory.py --deployment 4b --gpu-memory 16      # on a GPU
    python benchmarks/memory.py --deployment 4b --compare diffusion_decoder
    python benchmarks/memory.py --deployment tiny --gpu-memory 3.5   # on this CPU, by counting bytes

Random weights of full size take the memory and the time of trained ones, and need no checkpoints. Each stage runs in
its own process, as on the server, with its weights where the plan has them. It runs once for warm-up and once for the
measurement: the diffusion decoder one of its 16 evaluations and one decoding, the AR sampler a prefill and 32 steps,
the others one clip or prompt. All processes stay until the last has been measured, as idle stages do.

- held: memory of the stage's process while it is idle, CUDA context included; working: memory on top while it works.
  Each process's allocator has the limit of the plan, as on the server.
- the whole (GPU only): peak memory in use on the GPU, less what was in use before.
- `--compare STAGE` times that stage as planned and with resident weights, in one process each, on the same GPU; the
  diffusion decoder for a whole clip.

On a CPU the bytes of tensors are counted instead: weights on the device, and live activations.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from cosmos_triton.cli.plan_command import add_gpu_memory
from cosmos_triton.networks.int8 import quantise
from cosmos_triton.planning.footprint_count import LiveBytes, Subject, subjects
from cosmos_triton.planning.gpu_memory import read_gpu_memory
from cosmos_triton.planning.memory_plan import SERVER_CONTEXT, MemoryPlan, plan_memory
from cosmos_triton.planning.stage_options import LIBRARY_WORKSPACE, StagePlan, context_bytes
from cosmos_triton.planning.units import GB, MIB
from cosmos_triton.runtime.ar.decoder import ARRequest, Decoder
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.runtime.releases import COSMOS_1_0
from cosmos_triton.runtime.residency import Placement, limit_gpu_memory
from cosmos_triton.runtime.stage_loader import place_ar_decoder
from cosmos_triton.runtime.stages import STAGES
from cosmos_triton.serving.triton_server import ALLOCATOR

AR_STEPS = 32
# GB with nothing and with everything offloaded, from the reference's documentation.
REFERENCE = {"4b": (31.3, 18.7), "12b": (47.5, 27.4), "5b-video2world": (66.2, 21.1), "13b-video2world": (80.0, 30.9)}


def random_network(subject: Subject, device: str, *, eight_bit: bool) -> nn.Module:
    with torch.device("meta"):
        network = subject.build()
    device = "cpu" if eight_bit else device
    pattern = torch.randn(1 << 20, device=device).mul_(0.02).to(subject.dtype)
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            weight = torch.empty(parameter.shape, device=device, dtype=subject.dtype)
            for part in weight.flatten().split(len(pattern)):
                part.copy_(pattern[: len(part)])
            setattr(module, name, nn.Parameter(weight, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, torch.ones(buffer.shape, dtype=buffer.dtype, device=device))
    network = network.to(device, subject.dtype).eval()
    if eight_bit:
        quantise(network, subject.eight_bit)
    return network


class Work:
    """One stage's networks, placed as planned, and one run of them."""

    def __init__(self, stage: StagePlan, deployment: Deployment, device: str, *, evaluations: int) -> None:
        self.evaluations = evaluations
        residency = "resident" if stage.mode == "cpu" else stage.mode
        self.stage, self.device = stage, device
        self.placement = Placement(self.device, residency, stage.streamed_blocks or None)
        self.spec = STAGES[stage.stage]
        self.subjects = [subjects(deployment)[kind] for kind in self.spec.networks]
        self.networks: list[Any] = []
        self.decoder: Decoder | None = None
        for subject in self.subjects:
            eight_bit = stage.precision == "int8" and bool(subject.eight_bit)
            network = random_network(subject, self.placement.load_device, eight_bit=eight_bit)
            network = network.to(self.placement.load_device)
            if self.spec.slots:
                self.decoder = place_ar_decoder(network, self.placement, stage.slots)
            else:
                self.placement.put(network, subject.blocks(network))
            self.networks.append(network)

    def __call__(self) -> None:
        with torch.inference_mode(), self.placement.on_device():
            if self.decoder:
                config = self.decoder.config
                context = torch.zeros(config.context_length, config.context_dim) if config.context_dim else None
                request = ARRequest(torch.zeros(2 * config.frame_tokens, dtype=torch.int64), context=context)
                for _ in self.decoder.prefill(0, request):
                    pass
                for _ in range(AR_STEPS):
                    self.decoder.step()
            else:
                blank = partial(torch.zeros, device=self.device)
                for number, (subject, network) in enumerate(zip(self.subjects, self.networks, strict=True)):
                    for _ in range(1 if number else self.evaluations):
                        subject.run(network, blank, self.stage.batch)
            if self.device != "cpu":
                torch.cuda.synchronize()
                self.used = used_here()  # the allocator frees nothing before the work ends

    def held(self) -> int:
        """Bytes of weights and KV cache on the device now."""
        tensors = [t for network in self.networks for t in (*network.parameters(), *network.buffers())]
        if self.decoder:
            tensors += [t for t in self.decoder.cache.tensors if t is not None]
        return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())

    def measure(self) -> dict[str, float]:
        """Resident and workspace bytes, and seconds, of one more run."""
        began = time.perf_counter()
        if self.device == "cpu":
            with LiveBytes() as live:
                self()
            loaded = sum(getattr(part, "device_bytes", 0) for part in self.placement.offloadables)
            if self.decoder and not self.placement.is_resident:
                loaded += sum(t.nbytes for t in self.decoder.cache.tensors if t is not None)
            held, working = (0, 0) if self.stage.mode == "cpu" else (self.held(), live.peak + loaded)
            return {"held": held, "working": working, "seconds": time.perf_counter() - began}
        torch.cuda.reset_peak_memory_stats()
        idle = used_here()
        self()
        seconds = time.perf_counter() - began
        allocated = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        return {"used": self.used, "working": self.used - idle, "allocated": allocated, "seconds": seconds}


def used_here() -> int:
    """Bytes in use on this process's GPU, by all processes."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def used_on_gpu() -> int:
    """The same, queried by a process without a CUDA context."""
    command = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * MIB


def stage_process(
    stage: StagePlan, deployment_name: str, device: str, share: int, evaluations: int, pipe: Connection
) -> None:
    """Warm up, measure on request, and stay until the pipe is closed."""
    if device != "cpu":
        limit_gpu_memory(share)
    try:
        work = Work(stage, DEPLOYMENTS[deployment_name], device, evaluations=evaluations)
        work()
        pipe.send(None)
        pipe.recv()
        pipe.send(work.measure())
        pipe.recv()
    except EOFError:
        pass


class StageProcess:
    """A process that has warmed up."""

    def __init__(self, plan: MemoryPlan, stage: StagePlan, device: str, *, evaluations: int = 1) -> None:
        context = multiprocessing.get_context("spawn")
        device = "cpu" if stage.mode == "cpu" else device
        self.pipe, other = context.Pipe()
        arguments = (stage, plan.deployment, device, plan.allocator_limit(stage), evaluations, other)
        self.process = context.Process(target=stage_process, args=arguments, daemon=True)
        self.process.start()
        other.close()
        self.pipe.recv()

    def measure(self) -> dict[str, float]:
        self.pipe.send(None)
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.close()
        self.process.join()


def measure_all(plan: MemoryPlan, device: str) -> tuple[list[dict[str, Any]], float]:
    """A row for each stage, and the peak of all together."""
    on_gpu, rows, whole = device != "cpu", [], 0.0
    used = [used_on_gpu() if on_gpu else 0]
    with ExitStack() as stack:
        processes = []
        for stage in tqdm(plan.stages, desc="stages start and warm up"):
            processes.append(StageProcess(plan, stage, device))
            stack.callback(processes[-1].close)
            used.append(used_on_gpu() if on_gpu else 0)
        for number, (stage, process) in enumerate(zip(plan.stages, processes, strict=True)):
            planned = {"held": stage.resident_bytes, "working": stage.workspace_bytes}
            measured = process.measure()
            if on_gpu:
                measured["held"] = used[number + 1] - used[number]
                whole = max(whole, measured.get("used", 0) - used[0])  # a stage on the CPU uses nothing
            else:
                planned = {
                    "held": max(stage.resident_bytes - context_bytes(STAGES[stage.stage]), 0),
                    "working": max(stage.workspace_bytes - LIBRARY_WORKSPACE, 0),
                }
                if stage.slots and not stage.workspace_bytes:  # a resident sampler's workspace is resident too
                    planned["held"] -= LIBRARY_WORKSPACE
            rows.append({"stage": stage.stage, "mode": stage.mode, "planned": planned, "measured": measured})
            say(rows[-1])
    return rows, whole


def say(row: dict[str, Any]) -> None:
    planned, measured = row["planned"], row["measured"]
    sizes = "  ".join(f"{name} {measured[name] / GB:7.3f} of {planned[name] / GB:7.3f} GB" for name in planned)
    print(f"{row['stage']:24} {row['mode']:9} {sizes}  {measured['seconds']:8.2f} s", flush=True)


def compare(plan: MemoryPlan, stage: StagePlan, device: str) -> dict[str, float]:
    """Seconds as planned and with resident weights."""
    seconds = {}
    for form in (stage, replace(stage, mode="resident")):
        process = StageProcess(plan, form, device, evaluations=STAGES[stage.stage].evaluations(COSMOS_1_0))
        seconds[form.mode] = process.measure()["seconds"]
        process.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deployment", choices=list(DEPLOYMENTS), default="tiny")
    parser.add_argument(
        "--compare",
        choices=[name for name, spec in STAGES.items() if spec.networks],
        metavar="STAGE",
        help="time it against resident weights",
    )
    parser.add_argument("--json", action="store_true")
    add_gpu_memory(parser, without="without a GPU, what the tiny deployment needs at least")
    args = parser.parse_args()
    os.environ.update(ALLOCATOR | os.environ)  # the stages' processes inherit it
    device = "cuda" if torch.cuda.is_available() else "cpu"
    budget = read_gpu_memory(args.gpu_memory)
    plan = plan_memory(DEPLOYMENTS[args.deployment], budget or 0, weights_8bit=args.weights_8bit)
    if budget and not plan.fits:
        raise SystemExit(f"{args.deployment} needs {plan.peak_bytes / GB:.1f} GB")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, bytes counted"
    print(f"{args.deployment}, {plan.peak_bytes / GB:.1f} GB by the plan, on {name}: measured of planned", flush=True)
    if args.compare:
        stages = {stage.stage: stage for stage in plan.stages}
        if args.compare not in stages:
            raise SystemExit(f"--compare: value {args.compare}; accepted for {args.deployment}: {', '.join(stages)}")
        print(json.dumps({"seconds": compare(plan, stages[args.compare], device)}))
        return
    rows, whole = measure_all(plan, device)
    reference = REFERENCE.get(args.deployment)
    if args.json:
        print(json.dumps({"stages": rows, "whole": whole, "planned": plan.peak_bytes, "reference_gb": reference}))
    elif device == "cuda":
        planned = (plan.peak_bytes - SERVER_CONTEXT) / GB
        print(f"the whole: {whole / GB:.2f} of {planned:.2f} GB in use at most, without the server's context")
    if reference:
        print(f"the reference: {reference[0]} GB, and {reference[1]} GB with everything offloaded")


if __name__ == "__main__":
    main()
