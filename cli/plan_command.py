"""The command line `cosmos-triton plan`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from cosmos_triton.cli.checkpoints_command import Commands
from cosmos_triton.planning.gpu_memory import AUTO, read_gpu_memory
from cosmos_triton.planning.memory_plan import GB, SERVER_CONTEXT, MemoryPlan, StagePlan, plan_memory
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.errors import InvalidValue

MEANING = """\
resident   weights stay on the GPU
streamed   weights pass through the GPU block by block, from the host's memory, while the stage works
offloaded  weights come in when the stage begins to work, and leave when it ends
cpu        the stage runs on the CPU, in fp32
held       on the GPU always; each process there has a CUDA context as well
at work    more while the stage works; stages that do not fit into what is left do not work at the same time
"""


def add_gpu_memory(parser: argparse.ArgumentParser, *, without: str) -> None:
    """The options that a plan is made from.

    Args:
        without: what happens for `auto` on a machine that has no GPU.
    """
    parser.add_argument(
        "--gpu-memory",
        default=AUTO,
        metavar="GB",
        help=f"how much GPU memory may be used, in units of 10^9 bytes (default: auto, what is free; {without})",
    )
    parser.add_argument(
        "--weights-8bit",
        action="store_true",
        help="let the AR model and the diffusion network have weights in 8 bits, where that is faster or fits; "
        "this changes what is generated",
    )


def add_plan(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "plan",
        help="how a deployment would fit into GPU memory",
        description="Show how a deployment fits into a GPU's memory: what `serve` does with the same options.\n\n"
        + MEANING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: cosmos-triton plan --deployment 12b --gpu-memory 24",
    )
    parser.set_defaults(run=_plan)
    parser.add_argument("--deployment", choices=list(DEPLOYMENTS), required=True)
    add_gpu_memory(parser, without="without a GPU, give a number")
    parser.add_argument("--json", action="store_true", help="for programs")


def _plan(args: argparse.Namespace) -> int:
    gpu_memory = read_gpu_memory(args.gpu_memory)
    if gpu_memory is None:
        raise InvalidValue("--gpu-memory", args.gpu_memory, "GB, since this machine has no GPU")
    plan = plan_memory(DEPLOYMENTS[args.deployment], gpu_memory, weights_8bit=args.weights_8bit)
    print(json.dumps(as_json(plan), indent=2) if args.json else as_text(plan))
    return 0 if plan.fits else 1


def as_json(plan: MemoryPlan) -> dict[str, Any]:
    """Sizes in GB; what does not fit has the plan that needs least."""
    return {
        "deployment": plan.deployment,
        "budget_gb": plan.budget / GB,
        "fits": plan.fits,
        "peak_gb": round(plan.peak / GB, 3),
        "held_gb": round(plan.held / GB, 3),
        "pool_gb": round(plan.pool / GB, 3),
        "host_gb": round(plan.host / GB, 3),
        "model_seconds": round(plan.seconds, 1),
        "stages": [
            {
                "stage": stage.stage,
                "mode": stage.mode,
                "precision": stage.precision,
                "held_gb": round(stage.held / GB, 3),
                "working_gb": round(stage.working / GB, 3),
                "batch": stage.batch,
                "slots": stage.slots,
                "streamed_blocks": stage.streamed_blocks,
            }
            for stage in plan.stages
        ],
    }


def as_text(plan: MemoryPlan) -> str:
    """A title, a table and what they come to."""
    title = f"{plan.deployment} in {plan.budget / GB:.1f} GB of GPU memory"
    if plan.fits:
        title += f": {plan.peak / GB:.1f} GB at most"
    else:
        title += f": does not fit; it needs {plan.peak / GB:.1f} GB, used like this"
    rows: list[tuple[str, ...]] = [("stage", "mode", "precision", "held", "at work", "clips at once")]
    rows += [_row(stage) for stage in plan.stages]
    rows.append(("the server", "", "", _gb(SERVER_CONTEXT), "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    sums = f"{plan.held / GB:.1f} GB held, and {plan.pool / GB:.1f} GB for what is at work"
    if plan.host:
        sums += f"; {plan.host / GB:.0f} GB of the host's memory are pinned"
    speed = f"{plan.seconds:.0f} s a clip under load, by the plan's model of a card with 0.9 TB/s and 25 GB/s of PCIe"
    return "\n".join([title, "", *table, "", sums, speed])


def _row(stage: StagePlan) -> tuple[str, ...]:
    mode: str = stage.mode
    if stage.stage == "ar_sampler" and stage.streamed_blocks:
        mode = f"streamed ({stage.streamed_blocks} layers)"
    at_once = str(stage.slots or stage.batch)
    return stage.stage, mode, stage.precision, _gb(stage.held), _gb(stage.working), at_once


def _gb(nbytes: int) -> str:
    return f"{nbytes / GB:.2f} GB" if nbytes else "-"
