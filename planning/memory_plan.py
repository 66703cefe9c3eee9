"""The plan of GPU memory: a mode for each stage, so that a deployment keeps to a budget and is as fast as it can be.

A stage holds some memory always (its process's CUDA context, and its weights if they are resident) and some only while
it works (weights on their way through, activations). The second kind is what it asks the server's rate limiter for, out
of a pool that is the budget less everything that is held always. So the sum never passes the budget.

The plan is the fastest of all that fit, by the predicted seconds of one clip under load. A larger budget admits all
that a smaller one does, so more memory is never slower. The prediction is for one imaginary machine: it orders plans,
and promises nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from cosmos_triton.planning.footprints import NETWORKS, Network, key_of
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment

Mode = Literal["resident", "streamed", "offloaded", "cpu"]

GB = 10**9
MIB = 2**20

# As measured on an H200; `python benchmarks/memory.py` measures them on yours.
CONTEXTS = {  # of a stage's process that uses the GPU, idle or not: CUDA context and kernels that it has loaded
    "text_guardrail": 800 * MIB,  # not measured, as the next one
    "text_encoder": 800 * MIB,
    "video_tokenizer_encoder": 680 * MIB,
    "ar_sampler": 870 * MIB,
    "diffusion_decoder": 840 * MIB,
    "video_tokenizer_decoder": 680 * MIB,
    "video_guardrail": 790 * MIB,
}
SERVER_CONTEXT = 520 * MIB  # of the server itself, which loads none
LIBRARIES = 128 * MIB  # workspaces of cuBLAS and cuDNN while a stage works
SLACK = 1.1  # of activations: what the allocator rounds up and cannot join

# The imaginary machine: a card of the middle in a server of the middle.
PCIE = 25e9  # bytes/s from pinned memory to the GPU
BANDWIDTH = 900e9  # bytes/s of the GPU's own memory
GPU_FLOPS = 130e12  # of large products and fused attention
CPU_FLOPS = 0.3e12
BATCH_SECONDS = 0.1  # that a batch takes whatever is in it

EVALUATIONS = 16  # of the diffusion network, a clip
ANSWER_TOKENS = 4  # that Aegis writes until it is settled
GIVEN_FRAMES, CLIP_FRAMES = 2, 5  # latent frames
GUARDRAIL_PASSES = 5  # 33 frames, 8 at a time

# Networks of each stage, in the order of the pipeline; of the first the blocks can be streamed.
STAGES: dict[str, tuple[str, ...]] = {
    "text_guardrail": ("aegis",),
    "text_encoder": ("text_encoder",),
    "video_tokenizer_encoder": ("discrete_encoder",),
    "ar_sampler": ("ar",),
    "diffusion_decoder": ("diffusion", "continuous_decoder"),
    "video_tokenizer_decoder": ("discrete_decoder",),
    "video_guardrail": ("siglip", "video_safety", "face_detector"),
}
TEXT_STAGES = {"text_guardrail", "text_encoder"}
PRECISION = {"video_guardrail": "fp32"}  # as released; bf16 for the others
BATCHES = {"diffusion_decoder": (4, 2, 1), "text_encoder": (8, 1)}
SLOTS = (8, 4, 2, 1)
# Those that take a clip seconds on a CPU; there they run in fp32. A guardrail must not: it has a time limit.
ON_CPU = {"video_tokenizer_encoder", "video_tokenizer_decoder"}


@dataclass(frozen=True, slots=True)
class StagePlan:
    """How one stage is run.

    held: bytes on the GPU, always, its context included; 0 on the CPU.
    working: bytes more while it works; 0 for a resident AR sampler, which holds what it needs.
    host: bytes of pinned memory on the host.
    streamed_blocks: how many blocks of a streamed network do not stay.
    """

    stage: str
    mode: Mode
    precision: str
    held: int
    working: int
    seconds: float
    host: int = 0
    batch: int = 1
    slots: int = 0
    streamed_blocks: int = 0

    def __post_init__(self) -> None:
        """The rate limiter counts in MiB."""
        for name in ("held", "working"):
            object.__setattr__(self, name, math.ceil(getattr(self, name) / MIB) * MIB)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """`peak` and `pool` in bytes; when it does not fit, the plan that needs least, and how much that is."""

    deployment: str
    budget: int
    stages: tuple[StagePlan, ...]

    @property
    def held(self) -> int:
        """What is on the GPU while nothing works; the server itself has a context too."""
        return SERVER_CONTEXT + sum(stage.held for stage in self.stages)

    @property
    def fits(self) -> bool:
        return self.least <= self.budget

    @property
    def least(self) -> int:
        """What it takes when one stage works at a time."""
        return self.held + max(stage.working for stage in self.stages)

    @property
    def pool(self) -> int:
        """What stages at work may take together."""
        everything = sum(stage.working for stage in self.stages)
        return min(everything, max(self.budget, self.least) - self.held)

    @property
    def peak(self) -> int:
        return self.held + self.pool

    def share(self, stage: StagePlan) -> int:
        """The most that a stage's process may allocate: what the plan leaves to nobody may be anybody's. Its context is
        outside of the allocator's account."""
        return stage.held - CONTEXTS[stage.stage] + stage.working + max(self.budget - self.peak, 0)

    @property
    def host(self) -> int:
        return sum(stage.host for stage in self.stages)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


def plan_memory(deployment: Deployment, gpu_memory_gb: float, *, weights_8bit: bool = False) -> MemoryPlan:
    """The fastest plan for `gpu_memory_gb` times 10^9 bytes; the smallest there is, if none fits.

    Args:
        weights_8bit: whether the AR model and the diffusion network may have their weights in 8 bits. They get them
            where that is faster, or fits where bf16 does not.
    """
    budget = int(gpu_memory_gb * GB) // MIB * MIB
    plans = [MemoryPlan(deployment.name, budget, stages) for stages in _frontier(deployment.name, weights_8bit)]
    fitting = [plan for plan in plans if plan.fits]
    if fitting:
        return min(fitting, key=lambda plan: plan.seconds)
    return min(plans, key=lambda plan: (plan.least, plan.seconds))


@cache
def _frontier(deployment_name: str, weights_8bit: bool) -> list[tuple[StagePlan, ...]]:
    """Every combination that no other beats in all of: bytes held, most bytes at work, seconds."""
    deployment = DEPLOYMENTS[deployment_name]
    found: list[_Partial] = [_Partial((), 0, 0, 0.0)]
    for stage, kinds in STAGES.items():
        if stage in TEXT_STAGES and not deployment.is_video2world:
            continue
        networks = [NETWORKS[key_of(deployment, kind)] for kind in kinds]
        is_ar = stage == "ar_sampler"
        options = list(_ar_options(networks[0], weights_8bit) if is_ar else _options(stage, networks, weights_8bit))
        if deployment.is_tiny:  # it runs on a CPU anyway, where it plays what a GPU's memory would have it do
            options = [option for option in options if option.mode != "cpu"]
        found = _undominated([partial.plus(option) for partial in found for option in options])
    return [partial.stages for partial in found]


@dataclass(frozen=True, slots=True)
class _Partial:
    """Plans of the first stages, and what they come to."""

    stages: tuple[StagePlan, ...]
    held: int
    working: int
    seconds: float

    def plus(self, stage: StagePlan) -> _Partial:
        return _Partial(
            (*self.stages, stage),
            self.held + stage.held,
            max(self.working, stage.working),
            self.seconds + stage.seconds,
        )


def _undominated(partials: list[_Partial]) -> list[_Partial]:
    """Of equals the first, so that the order of the options is an order of preference."""
    kept: list[_Partial] = []
    for partial in sorted(partials, key=lambda p: (p.seconds, p.held, p.working)):
        if not any(other.held <= partial.held and other.working <= partial.working for other in kept):
            kept.append(partial)
    return kept


def _options(stage: str, networks: Sequence[Network], weights_8bit: bool) -> Iterator[StagePlan]:
    """Every way to run a stage that is not the AR sampler, the plainest first."""
    precision = PRECISION.get(stage, "bf16")
    for batch in BATCHES.get(stage, (1,)):
        yield from _moving_options(stage, networks, precision, batch)
        if weights_8bit and networks[0].weights_8bit:
            yield from _moving_options(stage, [_in_8_bits(networks[0]), *networks[1:]], "int8", batch)
    if stage in ON_CPU:
        seconds = sum(network.flops for network in networks) / CPU_FLOPS + BATCH_SECONDS
        yield StagePlan(stage, "cpu", "fp32", held=0, working=0, seconds=seconds)


def _moving_options(stage: str, networks: Sequence[Network], precision: str, batch: int) -> Iterator[StagePlan]:
    first, weights, context = networks[0], sum(network.weights for network in networks), CONTEXTS[stage]
    runs, passes = {"diffusion_decoder": (EVALUATIONS, EVALUATIONS)}.get(stage, (1, 1))
    seconds = (first.flops * runs + sum(network.flops for network in networks[1:])) / GPU_FLOPS
    if stage == "text_guardrail":
        passes = 1 + ANSWER_TOKENS
        seconds += ANSWER_TOKENS * first.weights / BANDWIDTH
    elif stage == "video_guardrail":
        passes = GUARDRAIL_PASSES
    active = _working(max(first.activations * batch, *(n.activations for n in networks[1:]), 0))
    once = BATCH_SECONDS / batch
    plan = StagePlan(stage, "resident", precision, context + weights, active, seconds + once, batch=batch)
    yield plan
    if first.blocks:
        blocks = first.block * first.blocks
        ring = min(2 * first.block, blocks)
        arriving = passes * blocks / PCIE / batch
        yield replace(
            plan,
            mode="streamed",
            held=context,
            working=active + weights - blocks + ring,
            seconds=max(seconds, arriving) + (weights - blocks) / PCIE / batch + once,
            host=weights,
            streamed_blocks=first.blocks,
        )
    coming = weights / PCIE / batch
    yield replace(
        plan, mode="offloaded", held=context, working=active + weights, seconds=seconds + coming + once, host=weights
    )


def _ar_options(network: Network, weights_8bit: bool) -> Iterator[StagePlan]:
    """The AR sampler: memory alone bounds a step. Where it does not stay, it makes one clip at a time."""
    context = CONTEXTS["ar_sampler"]
    for precision, ar in [("bf16", network)] + ([("int8", _in_8_bits(network))] if weights_8bit else []):
        steps = (CLIP_FRAMES - GIVEN_FRAMES) / CLIP_FRAMES * ar.clip_tokens
        active = _working(ar.activations)  # of a prefill; a step has fewer, however many slots and tokens it takes
        for slots in SLOTS:
            step = (ar.weights + slots * ar.kv_slot * 0.7) / BANDWIDTH  # a clip's cache is 70 % full on average
            held = context + ar.weights + slots * ar.kv_slot + active
            yield StagePlan("ar_sampler", "resident", precision, held, 0, steps * step / slots, slots=slots)
        step = (ar.weights + ar.kv_slot * 0.7) / BANDWIDTH
        for streamed in (0, *range(3, ar.blocks + 1)):  # streaming two blocks saves nothing
            ring = 2 * ar.block if streamed else 0
            inside = ar.weights - streamed * ar.block
            yield StagePlan(
                "ar_sampler",
                "streamed" if streamed else "offloaded",
                precision,
                held=context,
                working=active + ar.kv_slot + inside + ring,
                seconds=steps * max(step, streamed * ar.block / PCIE) + inside / PCIE + BATCH_SECONDS,
                host=ar.weights,
                slots=1,
                streamed_blocks=streamed,
            )


def _working(activations: int) -> int:
    return math.ceil(activations * SLACK) + LIBRARIES


def _in_8_bits(network: Network) -> Network:
    return replace(
        network, weights=network.weights_8bit, block=network.block_8bit, activations=network.activations_8bit
    )
