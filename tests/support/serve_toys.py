"""`cosmos-triton serve` without checkpoints: on the model repository that the arguments name."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.errors import CosmosError
from cosmos_triton.runtime.stage_settings import StageSettings
from cosmos_triton.serving.addresses import Addresses
from cosmos_triton.serving.serve_repository import serve_repository

parser = argparse.ArgumentParser()
parser.add_argument("repository", type=Path)
parser.add_argument("--deployment", default="tiny")
parser.add_argument("--only", action="append", default=[])
parser.add_argument("--run-dir", type=Path)
for name in ("http", "grpc", "metrics"):
    parser.add_argument(f"--{name}-port", type=int)
args = parser.parse_args()
models = {model.name for model in args.repository.iterdir()}
try:
    exit_code = serve_repository(
        args.repository,
        title="toys",
        settings=StageSettings(DEPLOYMENTS[args.deployment], Path(), "cpu"),
        addresses=Addresses(http_port=args.http_port, grpc_port=args.grpc_port, metrics_port=args.metrics_port),
        without=models.difference(args.only) if args.only else (),
        run_dir=args.run_dir,
    )
except CosmosError as error:
    sys.exit(str(error))
sys.exit(exit_code)
