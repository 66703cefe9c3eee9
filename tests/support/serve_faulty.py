"""`cosmos-triton serve` with the guardrails of faulty_guardrail/, and with a pipeline that waits less long for them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.stage_settings import StageSettings
from cosmos_triton.serving.addresses import Addresses
from cosmos_triton.serving.run_directory import model_repository
from cosmos_triton.serving.serve_repository import serve_repository

HERE = Path(__file__).parent
REPLACED = {
    "text_guardrail": HERE / "faulty_guardrail",
    "video_guardrail": HERE / "faulty_guardrail",
    "world_generation": HERE / "impatient_pipeline",
}

parser = argparse.ArgumentParser()
parser.add_argument("--deployment")
for name in ("--checkpoint-dir", "--run-dir", "--repository", "--fault-file"):
    parser.add_argument(name, type=Path)
for name in ("http", "grpc", "metrics"):
    parser.add_argument(f"--{name}-port", type=int)
args = parser.parse_args()

for config in model_repository().glob("*/config.pbtxt"):
    model = args.repository / config.parent.name
    model.mkdir(parents=True)
    (model / config.name).symlink_to(config)
    (model / "1").symlink_to(REPLACED.get(model.name, config.parent / "1"))
sys.exit(
    serve_repository(
        args.repository,
        title=args.deployment,
        settings=StageSettings(DEPLOYMENTS[args.deployment], args.checkpoint_dir, "cpu"),
        parameters={"fault_file": str(args.fault_file)},
        addresses=Addresses(http_port=args.http_port, grpc_port=args.grpc_port, metrics_port=args.metrics_port),
        run_dir=args.run_dir,
    )
)
