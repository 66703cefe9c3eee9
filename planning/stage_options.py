"""Every way to run one stage, with its GPU memory and its predicted seconds: what the memory plan chooses from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cosmos_triton.planning.footprints import Footprint
from cosmos_triton.planning.units import MIB
from cosmos_triton.runtime.releases import Release
from cosmos_triton.runtime.stages import FP8_PRECISIONS, Mode, Precision, StageSpec

LIBRARY_WORKSPACE = 128 * MIB  # of cuBLAS and cuDNN while a stage works
ALLOCATOR_OVERHEAD = 1.1  # of activations: rounding and fragmentation
GENERATED_SHARE = 3 / 5  # of a clip's latent frames, where two of five are given
MEAN_CACHE_FILL = 0.7  # of the KV cache, over the steps of a clip
MIN_STREAMED_LAYERS = 3  # two buffers stay on the GPU, so that streaming two saves nothing


@dataclass(frozen=True, slots=True)
class CostModel:
    """The speeds that seconds are predicted from.

    pcie: bytes/s from pinned host memory to the GPU.
    bandwidth: bytes/s of the GPU's own memory.
    gpu_flops: of large GEMMs and fused attention.
    cpu_flops: of all cores.
    batch_seconds: overhead of one execution, whatever its batch size.
    """

    pcie: float
    bandwidth: float
    gpu_flops: float
    cpu_flops: float
    batch_seconds: float


MID_RANGE_GPU = CostModel(pcie=25e9, bandwidth=900e9, gpu_flops=130e12, cpu_flops=0.3e12, batch_seconds=0.1)


@dataclass(frozen=True, slots=True)
class StagePlan:
    """How one stage is run.

    resident_bytes: on the GPU always, the CUDA context included; 0 on the CPU.
    workspace_bytes: on top while the stage works; 0 for a resident AR sampler, which keeps all that it needs.
    pinned_bytes: of host memory.
    streamed_blocks: how many blocks of a streamed network do not stay on the GPU.
    """

    stage: str
    mode: Mode
    precision: Precision
    resident_bytes: int
    workspace_bytes: int
    seconds: float
    pinned_bytes: int = 0
    batch: int = 1
    slots: int = 0
    streamed_blocks: int = 0

    def __post_init__(self) -> None:
        """Rounds up to whole MiB, in which the rate limiter counts."""
        for name in ("resident_bytes", "workspace_bytes"):
            object.__setattr__(self, name, math.ceil(getattr(self, name) / MIB) * MIB)


def context_bytes(spec: StageSpec) -> int:
    return spec.context_mib * MIB


def stage_options(
    spec: StageSpec,
    networks: Sequence[Footprint],
    *,
    release: Release,
    weights_8bit: bool,
    precision: Precision | None = None,
    cost: CostModel = MID_RANGE_GPU,
) -> Iterator[StagePlan]:
    """Every way to run a stage, the plainest first.

    Args:
        networks: footprints of the networks that the stage loads, in the order of the table of stages.
        weights_8bit: whether the first may have 8-bit weights, where it has that form.
        precision: what the first has whatever the memory, where it was asked for.
    """
    first, *others = networks
    forms: list[tuple[Precision, Sequence[Footprint]]] = [(spec.gpu_precision, networks)]
    if precision in FP8_PRECISIONS:
        forms = [(precision, [_in_fp8(first), *others])]
    elif weights_8bit and first.weights_8bit and precision is None:
        forms.append(("int8", [_in_8_bits(first), *others]))
    if spec.slots:
        for precision, form in forms:
            yield from _continuous_batching_options(spec, form[0], precision, cost)
        return
    for batch in spec.batch_sizes:
        for precision, form in forms:
            yield from _batch_options(spec, form, precision, batch, spec.evaluations(release), cost)
    if spec.runs_on_cpu:
        seconds = sum(network.flops for network in networks) / cost.cpu_flops + cost.batch_seconds
        yield StagePlan(spec.name, "cpu", "fp32", resident_bytes=0, workspace_bytes=0, seconds=seconds)


def _batch_options(
    spec: StageSpec, networks: Sequence[Footprint], precision: Precision, batch: int, evaluations: int, cost: CostModel
) -> Iterator[StagePlan]:
    """A stage whose requests the server batches: resident, streamed, offloaded."""
    first, *others = networks
    weights, context = sum(network.weights for network in networks), context_bytes(spec)
    passes = evaluations * spec.weight_passes + spec.generated_tokens
    seconds = (first.flops * evaluations + sum(network.flops for network in others)) / cost.gpu_flops
    seconds += spec.generated_tokens * first.weights / cost.bandwidth
    active = _workspace(max(first.activations * batch, *(network.activations for network in others), 0))
    overhead = cost.batch_seconds / batch
    plan = StagePlan(spec.name, "resident", precision, context + weights, active, seconds + overhead, batch=batch)
    yield plan
    if first.blocks:
        blocks = first.block * first.blocks
        buffers = min(2 * first.block, blocks)
        transfer = passes * blocks / cost.pcie / batch
        yield replace(
            plan,
            mode="streamed",
            resident_bytes=context,
            workspace_bytes=active + weights - blocks + buffers,
            seconds=max(seconds, transfer) + (weights - blocks) / cost.pcie / batch + overhead,
            pinned_bytes=weights,
            streamed_blocks=first.blocks,
        )
    yield replace(
        plan,
        mode="offloaded",
        resident_bytes=context,
        workspace_bytes=active + weights,
        seconds=seconds + weights / cost.pcie / batch + overhead,
        pinned_bytes=weights,
    )


def _continuous_batching_options(
    spec: StageSpec, network: Footprint, precision: Precision, cost: CostModel
) -> Iterator[StagePlan]:
    """A stage that decodes token by token, bound by memory bandwidth alone. Without resident weights it generates one
    clip at a time."""
    context, steps = context_bytes(spec), GENERATED_SHARE * network.clip_tokens
    active = _workspace(network.activations)  # of a prefill; a step has fewer, whatever its slots and its window
    for slots in spec.slots:
        step = (network.weights + slots * network.kv_slot * MEAN_CACHE_FILL) / cost.bandwidth
        resident = context + network.weights + slots * network.kv_slot + active
        yield StagePlan(spec.name, "resident", precision, resident, 0, steps * step / slots, slots=slots)
    step = (network.weights + network.kv_slot * MEAN_CACHE_FILL) / cost.bandwidth
    for streamed in (0, *range(MIN_STREAMED_LAYERS, network.blocks + 1)):
        buffers = 2 * network.block if streamed else 0
        loaded = network.weights - streamed * network.block
        transfer = streamed * network.block / cost.pcie
        yield StagePlan(
            spec.name,
            "streamed" if streamed else "offloaded",
            precision,
            resident_bytes=context,
            workspace_bytes=active + network.kv_slot + loaded + buffers,
            seconds=steps * max(step, transfer) + loaded / cost.pcie + cost.batch_seconds,
            pinned_bytes=network.weights,
            slots=1,
            streamed_blocks=streamed,
        )


def _workspace(activations: int) -> int:
    return math.ceil(activations * ALLOCATOR_OVERHEAD) + LIBRARY_WORKSPACE


def _in_fp8(network: Footprint) -> Footprint:
    return replace(network, weights=network.weights_fp8, block=network.block_fp8, activations=network.activations_fp8)


def _in_8_bits(network: Footprint) -> Footprint:
    return replace(
        network, weights=network.weights_8bit, block=network.block_8bit, activations=network.activations_8bit
    )
