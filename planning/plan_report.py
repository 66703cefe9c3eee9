"""The memory plan for people and for programs."""

from __future__ import annotations

from typing import Any

from cosmos_triton.planning.memory_plan import SERVER_CONTEXT, MemoryPlan
from cosmos_triton.planning.stage_options import MID_RANGE_GPU, StagePlan
from cosmos_triton.planning.units import GB


def as_json(plan: MemoryPlan) -> dict[str, Any]:
    """Sizes in GB. Where nothing fits, the plan that needs the least memory."""
    return {
        "deployment": plan.deployment,
        "budget_gb": plan.budget / GB,
        "fits": plan.fits,
        "peak_gb": round(plan.peak_bytes / GB, 3),
        "held_gb": round(plan.resident_bytes / GB, 3),
        "pool_gb": round(plan.pool_bytes / GB, 3),
        "host_gb": round(plan.pinned_bytes / GB, 3),
        "model_seconds": round(plan.seconds, 1),
        "stages": [
            {
                "stage": stage.stage,
                "mode": stage.mode,
                "precision": stage.precision,
                "held_gb": round(stage.resident_bytes / GB, 3),
                "working_gb": round(stage.workspace_bytes / GB, 3),
                "batch": stage.batch,
                "slots": stage.slots,
                "streamed_blocks": stage.streamed_blocks,
            }
            for stage in plan.stages
        ],
    }


def as_text(plan: MemoryPlan) -> str:
    """A title, a table with a row a stage, and the totals."""
    title = f"{plan.deployment} in {plan.budget / GB:.1f} GB of GPU memory"
    if plan.fits:
        title += f": {plan.peak_bytes / GB:.1f} GB at most"
    else:
        title += f": does not fit; it needs {plan.peak_bytes / GB:.1f} GB, used like this"
    rows: list[tuple[str, ...]] = [("stage", "mode", "precision", "held", "at work", "clips at once")]
    rows += [_row(stage) for stage in plan.stages]
    rows.append(("the server", "", "", _gb(SERVER_CONTEXT), "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    sums = f"{plan.resident_bytes / GB:.1f} GB held, and {plan.pool_bytes / GB:.1f} GB for what is at work"
    if plan.pinned_bytes:
        sums += f"; {plan.pinned_bytes / GB:.0f} GB of the host's memory are pinned"
    speeds = f"{MID_RANGE_GPU.bandwidth / 1e12:.1f} TB/s and {MID_RANGE_GPU.pcie / 1e9:.0f} GB/s of PCIe"
    speed = f"{plan.seconds:.0f} s a clip under load, by the cost model of a mid-range GPU with {speeds}"
    return "\n".join([title, "", *table, "", sums, speed])


def _row(stage: StagePlan) -> tuple[str, ...]:
    mode: str = stage.mode
    if stage.slots and stage.streamed_blocks:
        mode = f"streamed ({stage.streamed_blocks} layers)"
    at_once = str(stage.slots or stage.batch)
    return stage.stage, mode, stage.precision, _gb(stage.resident_bytes), _gb(stage.workspace_bytes), at_once


def _gb(nbytes: int) -> str:
    return f"{nbytes / GB:.2f} GB" if nbytes else "-"
