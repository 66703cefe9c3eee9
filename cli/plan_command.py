"""The command line `cosmos-triton plan`."""

from __future__ import annotations

import argparse
import json

from cosmos_triton.cli.commands import Commands, add_release
from cosmos_triton.planning.gpu_memory import AUTO, read_gpu_memory
from cosmos_triton.planning.memory_plan import plan_memory
from cosmos_triton.planning.plan_report import as_json, as_text
from cosmos_triton.planning.precision_choice import parse_precisions
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.releases import COSMOS_1_0, RELEASES
from cosmos_triton.runtime.stages import PRECISIONS

MODES = """\
resident   weights stay on the GPU
streamed   weights are copied to the GPU block by block, from pinned host memory, while the stage works
offloaded  weights are copied to the GPU when the stage begins to work, and freed when it ends
cpu        the stage runs on the CPU, in fp32
held       on the GPU always; each process on the GPU has a CUDA context as well
at work    on top of that while the stage works; stages that do not fit into the rest of the budget take turns
"""


def add_gpu_memory(parser: argparse.ArgumentParser, *, without: str) -> None:
    """The options that a memory plan is made from.

    Args:
        without: for the help text: what `auto` means on a machine without a GPU.
    """
    parser.add_argument(
        "--gpu-memory",
        default=AUTO,
        metavar="GB",
        help=f"GPU memory budget in units of 10^9 bytes (default: auto, what is free; {without})",
    )
    parser.add_argument(
        "--weights-8bit",
        action="store_true",
        help="allow 8-bit weights for the AR model and the diffusion network, where that is faster or fits; "
        "this changes what is generated",
    )

    parser.add_argument(
        "--precision",
        action="append",
        default=[],
        metavar="STAGE=PRECISION",
        help="precision of a stage's first network on a GPU; fp8 is faster and changes the video, fp8-attention more "
        "so (accepted: "
        + "; ".join(f"{stage}={'|'.join(precisions)}" for stage, precisions in PRECISIONS.items())
        + "; default: bf16)",
    )


def add_plan(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "plan",
        help="how a deployment would fit into GPU memory",
        description="Show how a deployment fits into a GPU's memory: what `serve` does with the same options.\n\n"
        + MODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: cosmos-triton plan --deployment 12b --gpu-memory 24",
    )
    parser.set_defaults(run=_plan)
    parser.add_argument("--deployment", choices=list(DEPLOYMENTS), required=True)
    add_release(parser, "cosmos-1.0")
    add_gpu_memory(parser, without="without a GPU, give a number")
    parser.add_argument("--json", action="store_true", help="for programs")


def _plan(args: argparse.Namespace) -> int:
    gpu_memory = read_gpu_memory(args.gpu_memory)
    if gpu_memory is None:
        raise InvalidValue("--gpu-memory", args.gpu_memory, "GB, since this machine has no GPU")
    precisions = parse_precisions(args.precision)
    deployment = DEPLOYMENTS[args.deployment].of(RELEASES[args.release or COSMOS_1_0.name])
    plan = plan_memory(deployment, gpu_memory, weights_8bit=args.weights_8bit, precisions=precisions)
    print(json.dumps(as_json(plan), indent=2) if args.json else as_text(plan))
    return 0 if plan.fits else 1
