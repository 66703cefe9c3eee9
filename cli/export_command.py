"""The command line `cosmos-triton export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_triton.cli.checkpoints_command import Commands
from cosmos_triton.planning.memory_plan import TEXT_STAGES
from cosmos_triton.runtime.backends.graphs import FOLDER, GRAPHS
from cosmos_triton.runtime.deployments import DEPLOYMENTS


def add_export(commands: Commands[argparse.ArgumentParser]) -> None:
    export = commands.add_parser(
        "export",
        help="graphs of the stateless stages, for other engines than torch",
        description="Write the networks of stateless stages as graphs that other engines than torch run: "
        "`serve --engine STAGE=ENGINE` then uses them. Export again after the checkpoints or an engine changed.",
    )
    kinds = export.add_subparsers(metavar="KIND", required=True)
    onnx = _add_kind(
        kinds,
        "onnx",
        _onnx,
        help="for ONNX Runtime, on the CPU",
        description="Write graphs in fp32 for ONNX Runtime, check them, and compare their outputs with torch's. Needs "
        "memory for a stage's weights in fp32, for the comparison, and twice their size on disk.",
    )
    onnx.epilog = "example: cosmos-triton export onnx --stage video_guardrail --deployment 4b"
    tensorrt = _add_kind(
        kinds,
        "tensorrt",
        _tensorrt,
        help="for TensorRT, on the GPU of this machine",
        description="Build plans for the GPU and the TensorRT of this machine, and compare their outputs with torch's. "
        "A plan runs on the same kind of GPU and the same version only.",
    )
    tensorrt.epilog = "example: cosmos-triton export tensorrt --deployment 4b"
    tensorrt.add_argument(
        "--precision",
        choices=["fp32", "bf16", "fp16", "fp8"],
        help="what the plan computes in (default: what torch runs the stage in, fp32 for video_guardrail, "
        "bf16 for the others); fp8 needs --graphs",
    )
    tensorrt.add_argument(
        "--graphs",
        type=Path,
        metavar="DIR",
        help="build from these ONNX graphs, <graph>.onnx, instead of exporting: for graphs quantised to fp8",
    )


def _add_kind(
    kinds: Commands[argparse.ArgumentParser], name: str, run: object, *, help: str, description: str
) -> argparse.ArgumentParser:
    parser = kinds.add_parser(name, help=help, description=description)
    parser.set_defaults(run=run)
    parser.add_argument("--deployment", choices=list(DEPLOYMENTS), required=True)
    parser.add_argument("--stage", choices=list(GRAPHS), help="default: every stage that the deployment has")
    parser.add_argument(
        "--checkpoint-dir", type=Path, default=Path("checkpoints"), metavar="DIR", help="default: checkpoints"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"default: {FOLDER} in the checkpoint directory, where serve looks"
    )
    return parser


def _stages(args: argparse.Namespace) -> list[str]:
    if args.stage:
        return [args.stage]
    has_text = DEPLOYMENTS[args.deployment].is_video2world
    return [stage for stage in GRAPHS if has_text or stage not in TEXT_STAGES]


# Below, torch and its companions are loaded by the kind that needs them.


def _onnx(args: argparse.Namespace) -> int:
    from cosmos_triton.export.graphs.onnx_export import export_onnx

    for stage in _stages(args):
        root = args.output or args.checkpoint_dir / FOLDER
        export_onnx(stage, DEPLOYMENTS[args.deployment], args.checkpoint_dir, root)
    return 0


def _tensorrt(args: argparse.Namespace) -> int:
    from cosmos_triton.export.graphs.tensorrt_export import export_tensorrt

    for stage in _stages(args):
        root = args.output or args.checkpoint_dir / FOLDER
        export_tensorrt(
            stage,
            DEPLOYMENTS[args.deployment],
            args.checkpoint_dir,
            root,
            precision=args.precision,
            graphs=args.graphs,
        )
    return 0
