"""The settings of a model that runs: what the run directory wrote into the parameters of its configuration."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_triton.pipeline.job_files import JobFiles
from cosmos_triton.runtime.backends.graphs import LINKED_GRAPHS, TORCH, ExportedStage
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.stage_settings import StageSettings
from cosmos_triton.runtime.stages import STAGES

if TYPE_CHECKING:
    from cosmos_triton.runtime.residency import Placement, Residency
    from cosmos_triton.runtime.stage_loader import StageLoader


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of the model `name`, and what they stand for in its process.

    `exported` are the model's graphs where another backend than torch runs it.
    """

    name: str
    deployment: Deployment
    checkpoint_dir: Path
    device: str
    jobs: JobFiles
    parameters: StageSettings
    exported: ExportedStage | None

    @classmethod
    def read(cls, args: dict[str, str]) -> Settings:
        """From what Triton hands to `initialize`.

        Raises:
            InvalidValue: a parameter is missing or has a value that is not accepted.
        """
        name = json.loads(args["model_config"])["name"]
        required = ("jobs_dir", *STAGES[name].parameters)
        parameters = StageSettings.from_parameters(parameters_of(args), required=required)
        assert parameters.jobs_dir is not None
        backend = parameters.backend or TORCH
        graphs = Path(args["model_repository"], LINKED_GRAPHS)
        return cls(
            name=name,
            deployment=parameters.deployment,
            checkpoint_dir=parameters.checkpoint_dir,
            device=parameters.device,
            jobs=JobFiles(parameters.jobs_dir),
            parameters=parameters,
            exported=None if backend == TORCH else ExportedStage(backend, graphs),
        )

    @classmethod
    def for_networks(cls, args: dict[str, str]) -> Settings:
        """The settings of a stage that runs networks, whose libraries are set up for a server."""
        import torch  # here, since the pipelines do without

        from cosmos_triton.runtime.residency import limit_gpu_memory

        settings = cls.read(args)
        parameters = settings.parameters
        if settings.device == "cpu" and parameters.mode != "cpu":
            torch.set_num_threads(1)  # the stages share the cores: each on all of them at once is slower
        if settings.device != "cpu":
            settings._log_cuda_libraries()
            if parameters.gpu_memory_mib:
                limit_gpu_memory(parameters.gpu_memory_mib << 20)
        if transformers := sys.modules.get("transformers"):  # slow to import where it has no use
            transformers.utils.logging.disable_progress_bar()
        return settings

    def _log_cuda_libraries(self) -> None:
        import triton_python_backend_utils as pb  # here, since tests read settings without a server

        from cosmos_triton.runtime.cuda_libraries import differences, loaded_libraries

        libraries = loaded_libraries()
        pb.Logger.log_info(f"{self.name}: {', '.join(map(str, libraries))}")
        for difference in differences(libraries):
            pb.Logger.log_warn(f"{self.name}: {difference}")

    def placement(self) -> Placement:
        """How the memory plan has the stage keep its weights; without a plan they are resident."""
        from cosmos_triton.runtime.residency import Placement

        mode = self.parameters.mode or "resident"
        residency: Residency = "resident" if mode == "cpu" else mode
        return Placement(self.device, residency, self.parameters.streamed_blocks or None)

    def warm_up(self, placement: Placement, run: Callable[[], object]) -> None:
        """On a GPU, call `run` before the stage is ready. One run at the size that it serves compiles its kernels and
        has the libraries choose theirs, so that the first clip is as fast as the next."""
        if self.device == "cpu":
            return
        import torch
        import triton_python_backend_utils as pb

        began = time.monotonic()
        try:
            with placement.on_device():
                run()
        except torch.cuda.OutOfMemoryError as error:  # after a restart of this process alone, others are at work
            pb.Logger.log_warn(f"{self.name}: not warmed up, so that the first clip is slower: {error}")
        else:
            pb.Logger.log_info(f"{self.name}: warmed up in {time.monotonic() - began:.1f} s")

    def loader(self, placement: Placement) -> StageLoader:
        """What loads the stage's networks."""
        from cosmos_triton.runtime.stage_loader import StageLoader

        precision = self.parameters.precision or "bf16"
        return StageLoader(self.deployment, self.checkpoint_dir, placement, self.exported, precision)


def parameters_of(args: dict[str, str]) -> dict[str, str]:
    """All parameters of a model's configuration, from what Triton hands to `initialize`."""
    parameters = json.loads(args["model_config"])["parameters"]
    return {name: value["string_value"] for name, value in parameters.items()}
