"""The command line `cosmos-triton serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_triton.cli.commands import Commands, add_release, release_of
from cosmos_triton.cli.plan_command import add_gpu_memory
from cosmos_triton.runtime.ar.speculation import MAX_WINDOW
from cosmos_triton.runtime.backends.graphs import BACKENDS
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.stages import GRAPHS


def add_serve(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="start a server and keep it running",
        description="Start a server for one deployment, print one line when it is ready, and keep it ready: a stage "
        "that dies is restarted. The first SIGTERM or Ctrl-C lets running requests finish, the second does not.",
        epilog="example: cosmos-triton serve --deployment tiny --checkpoint-dir /tmp/checkpoints",
    )
    parser.set_defaults(run=_serve)
    parser.add_argument("--deployment", choices=list(DEPLOYMENTS), required=True)
    parser.add_argument(
        "--checkpoint-dir", type=Path, default=Path("checkpoints"), metavar="DIR", help="default: checkpoints"
    )
    add_release(parser)
    add_gpu_memory(parser, without="without a GPU, there is no plan")
    parser.add_argument(
        "--speculation",
        type=_window,
        default=1,
        metavar="TOKENS",
        help=f"speculative decoding: how many tokens a step of the AR model tries, up to {MAX_WINDOW} (default: 1, "
        "plain decoding). A seed gives the same tokens every time, and in fp32 those of plain decoding; in bf16 "
        "rounding may pick others. The speed-up on trained weights has not been measured",
    )
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="STAGE=ENGINE",
        help=f"backend of a stage: {', '.join(BACKENDS)}; may be given several times. The last two need graphs from "
        "`cosmos-triton export` (default: torch, or on a CPU onnxruntime where it is faster and has graphs). "
        f"Stages: {', '.join(GRAPHS)}",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every one (default: this machine alone)"
    )
    parser.add_argument("--http-port", type=int, default=8000, metavar="PORT", help="default: 8000")
    parser.add_argument("--grpc-port", type=int, default=8001, metavar="PORT", help="default: 8001")
    parser.add_argument("--metrics-port", type=int, default=8002, metavar="PORT", help="default: 8002")
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="where to write the models as served (default: a temporary folder)"
    )
    parser.add_argument(
        "--tritonserver", type=Path, metavar="PATH", help="default: the one on PATH, else the one of `make setup`"
    )


def _window(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= MAX_WINDOW:
        raise argparse.ArgumentTypeError(f"value {value}; accepted: 1 to {MAX_WINDOW}")
    return int(value)


def _serve(args: argparse.Namespace) -> int:
    from cosmos_triton.planning.precision_choice import parse_precisions
    from cosmos_triton.serving.addresses import Addresses
    from cosmos_triton.serving.backend_choice import parse_backends
    from cosmos_triton.serving.serve import serve

    return serve(
        DEPLOYMENTS[args.deployment].of(release_of(args.checkpoint_dir, args.release)),
        checkpoint_dir=args.checkpoint_dir,
        backends=parse_backends(args.engine),
        gpu_memory=args.gpu_memory,
        weights_8bit=args.weights_8bit,
        precisions=parse_precisions(args.precision),
        window=args.speculation,
        addresses=Addresses(args.host, args.http_port, args.grpc_port, args.metrics_port),
        run_dir=args.run_dir,
        tritonserver=args.tritonserver,
    )
