"""The command line `cosmos-triton export`."""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_triton.cli.commands import Commands, add_release, release_of
from cosmos_triton.cli.files import check_folder
from cosmos_triton.runtime.backends.graphs import FOLDER
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.runtime.stages import GRAPHS, STAGES


def add_export(commands: Commands[argparse.ArgumentParser]) -> None:
    export = commands.add_parser(
        "export",
        help="graphs of the stateless stages, for ONNX Runtime and TensorRT",
        description="Export the networks of stateless stages as graphs for ONNX Runtime or TensorRT, which "
        "`serve --engine STAGE=ENGINE` then runs. Export again after the checkpoints or the engine's version changed.",
    )
    kinds = export.add_subparsers(metavar="KIND", required=True)
    onnx = _add_kind(
        kinds,
        "onnx",
        _onnx,
        help="for ONNX Runtime, on the CPU",
        description="Export graphs in fp32 for ONNX Runtime, check them, and compare their outputs with torch's. Needs "
        "memory for a stage's weights in fp32, for the comparison, and twice their size on disk.",
    )
    onnx.epilog = "example: cosmos-triton export onnx --stage video_guardrail --deployment 4b"
    tensorrt = _add_kind(
        kinds,
        "tensorrt",
        _tensorrt,
        help="for TensorRT, on the GPU of this machine",
        description="Build plans for the GPU and the TensorRT of this machine, and compare their outputs with torch's. "
        "A plan runs only on the same GPU model and the same version of TensorRT.",
    )
    tensorrt.epilog = "example: cosmos-triton export tensorrt --deployment 4b"
    tensorrt.add_argument(
        "--precision",
        choices=["fp32", "bf16", "fp16", "fp8"],
        help="precision of the plan (default: the stage's precision with torch, fp32 for video_guardrail, bf16 for the "
        "others); fp8 needs --graphs",
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
    add_release(parser)
    parser.add_argument("--stage", choices=list(GRAPHS), help="default: every stage that the deployment has")
    parser.add_argument(
        "--checkpoint-dir", type=Path, default=Path("checkpoints"), metavar="DIR", help="default: checkpoints"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"default: {FOLDER} in the checkpoint directory, where serve looks"
    )
    return parser


def _deployment(args: argparse.Namespace) -> Deployment:
    return DEPLOYMENTS[args.deployment].of(release_of(args.checkpoint_dir, args.release))


def _stages(args: argparse.Namespace) -> list[str]:
    if args.stage:
        return [args.stage]
    return [stage for stage in GRAPHS if STAGES[stage].is_in(DEPLOYMENTS[args.deployment])]


def _root(args: argparse.Namespace) -> Path:
    """The folder of the graphs, which takes minutes to fill, so it is tried first."""
    root: Path = args.output or args.checkpoint_dir / FOLDER
    check_folder("--output", root)
    return root


# Each kind imports torch itself, so that other commands start without it.


def _onnx(args: argparse.Namespace) -> int:
    from cosmos_triton.export.graphs.onnx_export import export_onnx

    root = _root(args)
    for stage in _stages(args):
        export_onnx(stage, _deployment(args), args.checkpoint_dir, root)
    return 0


def _tensorrt(args: argparse.Namespace) -> int:
    from cosmos_triton.export.graphs.tensorrt_export import export_tensorrt

    root = _root(args)
    for stage in _stages(args):
        export_tensorrt(
            stage,
            _deployment(args),
            args.checkpoint_dir,
            root,
            precision=args.precision,
            graphs=args.graphs,
        )
    return 0
