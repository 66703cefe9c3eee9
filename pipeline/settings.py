"""The settings of a model: what the run directory wrote into the parameters of its configuration."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cosmos_triton.pipeline.jobs import Jobs
from cosmos_triton.runtime.backends.graphs import ENGINE, LINKED_GRAPHS, TORCH, ExportedStage
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment

if TYPE_CHECKING:
    from cosmos_triton.runtime.residency import Placement, Residency
    from cosmos_triton.runtime.stage_loader import Stages


@dataclass(frozen=True, slots=True)
class Settings:
    """The parameters that the run directory sets in every model's configuration.

    `exported` are the model's graphs where another engine than torch runs it.
    """

    name: str
    deployment: Deployment
    checkpoint_dir: Path
    device: str
    jobs: Jobs
    parameters: dict[str, str]
    exported: ExportedStage | None

    @classmethod
    def read(cls, args: dict[str, str]) -> Settings:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        return cls(
            name=config["name"],
            deployment=DEPLOYMENTS[parameters["deployment"]],
            checkpoint_dir=Path(parameters["checkpoint_dir"]),
            device=parameters["device"],
            jobs=Jobs(Path(parameters["jobs_dir"])),
            parameters=parameters,
            exported=None
            if parameters.get(ENGINE, TORCH) == TORCH
            else ExportedStage(parameters[ENGINE], Path(args["model_repository"], LINKED_GRAPHS)),
        )

    @classmethod
    def for_networks(cls, args: dict[str, str]) -> Settings:
        """The settings of a stage that runs networks, whose libraries are set up for a server."""
        import torch  # here, since the pipelines do without

        from cosmos_triton.runtime.residency import limit_gpu_memory

        settings = cls.read(args)
        if settings.device == "cpu" and settings.parameters.get("mode") != "cpu":
            torch.set_num_threads(1)  # the stages share the cores: each on all of them at once is slower
        if settings.device != "cpu" and "gpu_memory_mib" in settings.parameters:
            limit_gpu_memory(int(settings.parameters["gpu_memory_mib"]) << 20)
        if transformers := sys.modules.get("transformers"):  # slow to import where it has no use
            transformers.utils.logging.disable_progress_bar()
        return settings

    def placement(self) -> Placement:
        """How the memory plan has the stage keep its weights; without a plan they stay where they are."""
        from cosmos_triton.runtime.residency import Placement

        mode = self.parameters.get("mode", "resident")
        residency = cast("Residency", "resident" if mode == "cpu" else mode)
        count = self.parameters.get("streamed_blocks")
        return Placement(self.device, residency, None if count is None else int(count))

    def stages(self, placement: Placement) -> Stages:
        """What loads the stage's networks."""
        from cosmos_triton.runtime.stage_loader import Stages

        weights_8bit = self.parameters.get("precision") == "int8"
        return Stages(self.deployment, self.checkpoint_dir, placement, self.exported, weights_8bit=weights_8bit)
