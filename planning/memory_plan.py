"""The GPU memory plan: one mode for each stage, so that a deployment keeps to a budget and is as fast as it can be.

A stage has some memory always (its process's CUDA context, resident weights) and some only while it works (weights in
transit, activations). The second kind is its request to the server's rate limiter, whose pool is the budget less the
first kind of all stages. So the sum never passes the budget.

The plan is the fastest that fits, by the predicted seconds of one clip under load. A larger budget admits every plan
that a smaller one admits, so more memory is never slower. The cost model is of one mid-range GPU: it ranks plans, and
does not predict the time on another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from cosmos_triton.planning.footprints import FOOTPRINTS, footprint_key
from cosmos_triton.planning.stage_options import StagePlan, context_bytes, stage_options
from cosmos_triton.planning.units import GB, MIB
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.stages import STAGES, Precision

SERVER_CONTEXT = 520 * MIB  # CUDA context of the server itself, which loads no kernels; measured on an H200


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The plan of a deployment for a budget, in bytes; where nothing fits, the plan that needs the least memory."""

    deployment: str
    budget: int
    stages: tuple[StagePlan, ...]

    @property
    def resident_bytes(self) -> int:
        """On the GPU while no stage works, the server's own context included."""
        return SERVER_CONTEXT + sum(stage.resident_bytes for stage in self.stages)

    @property
    def minimum_bytes(self) -> int:
        """What the plan needs when one stage works at a time."""
        return self.resident_bytes + max(stage.workspace_bytes for stage in self.stages)

    @property
    def fits(self) -> bool:
        return self.minimum_bytes <= self.budget

    @property
    def pool_bytes(self) -> int:
        """The rate limiter's pool: what all stages at work may use together."""
        all_at_work = sum(stage.workspace_bytes for stage in self.stages)
        return min(all_at_work, max(self.budget, self.minimum_bytes) - self.resident_bytes)

    @property
    def peak_bytes(self) -> int:
        return self.resident_bytes + self.pool_bytes

    @property
    def pinned_bytes(self) -> int:
        """Of host memory."""
        return sum(stage.pinned_bytes for stage in self.stages)

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    def allocator_limit(self, stage: StagePlan) -> int:
        """The most that the allocator of a stage's process may hold: its own memory without the CUDA context, which the
        allocator does not count, and whatever the plan leaves free."""
        own = stage.resident_bytes - context_bytes(STAGES[stage.stage]) + stage.workspace_bytes
        return own + max(self.budget - self.peak_bytes, 0)


def plan_memory(
    deployment: Deployment,
    gpu_memory_gb: float,
    *,
    weights_8bit: bool = False,
    precisions: Mapping[str, Precision] | None = None,
) -> MemoryPlan:
    """The fastest plan for `gpu_memory_gb` times 10^9 bytes; where none fits, the one that needs the least memory.

    Args:
        weights_8bit: whether the AR model and the diffusion network may have 8-bit weights. They get them where that is
            faster, or fits where bf16 does not.
        precisions: of stages that are to have one whatever the memory.
    """
    budget = int(gpu_memory_gb * GB) // MIB * MIB
    combinations = _pareto_plans(deployment, weights_8bit, tuple((precisions or {}).items()))
    plans = [MemoryPlan(deployment.name, budget, stages) for stages in combinations]
    fitting = [plan for plan in plans if plan.fits]
    if fitting:
        return min(fitting, key=lambda plan: plan.seconds)
    return min(plans, key=lambda plan: (plan.minimum_bytes, plan.seconds))


@cache
def _pareto_plans(
    deployment: Deployment, weights_8bit: bool, precisions: tuple[tuple[str, Precision], ...]
) -> list[tuple[StagePlan, ...]]:
    """Every Pareto-optimal combination of the stages' options, whatever the budget.

    The objectives are resident bytes, the largest workspace, and seconds. All three only grow with a further stage, so
    dominated prefixes are dropped after each.
    """
    front = [_Candidate((), 0, 0, 0.0)]
    for spec in STAGES.values():
        if not spec.networks or not spec.is_in(deployment):
            continue
        networks = [FOOTPRINTS[footprint_key(deployment, kind)] for kind in spec.networks]
        precision = dict(precisions).get(spec.name)
        options = list(
            stage_options(spec, networks, release=deployment.release, weights_8bit=weights_8bit, precision=precision)
        )
        if deployment.is_tiny:  # it runs on a CPU anyway, where it does what it would do within a GPU's memory
            options = [option for option in options if option.mode != "cpu"]
        front = _pareto_front([candidate.extended(option) for candidate in front for option in options])
    return [candidate.stages for candidate in front]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Options of the first stages, and their objectives."""

    stages: tuple[StagePlan, ...]
    resident_bytes: int
    workspace_bytes: int
    seconds: float

    def extended(self, stage: StagePlan) -> _Candidate:
        return _Candidate(
            (*self.stages, stage),
            self.resident_bytes + stage.resident_bytes,
            max(self.workspace_bytes, stage.workspace_bytes),
            self.seconds + stage.seconds,
        )


def _pareto_front(candidates: list[_Candidate]) -> list[_Candidate]:
    """Candidates that no other dominates; the first of equal ones, so the order of options is one of preference."""
    front: list[_Candidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.seconds, c.resident_bytes, c.workspace_bytes)):
        if not any(
            other.resident_bytes <= candidate.resident_bytes and other.workspace_bytes <= candidate.workspace_bytes
            for other in front
        ):
            front.append(candidate)
    return front
