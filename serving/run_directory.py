"""The run directory: the model repository rendered for one deployment, which tritonserver is started on.

Each model's version folder is a link to its source; its config.pbtxt is the source's, with this deployment's
parameters set. Where another backend than torch runs a model, the folder of its graphs is linked beside them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from cosmos_triton.runtime.backends.graphs import LINKED_GRAPHS, ExportedStage
from cosmos_triton.runtime.errors import CosmosError
from cosmos_triton.runtime.stage_settings import BACKEND_PARAMETER

CONFIG, VERSION = "config.pbtxt", "1"


class RunDirectoryError(CosmosError):
    """A run directory that cannot be used, or a model that cannot be rendered into it."""


def model_repository() -> Path:
    """The folder of the product's models."""
    return Path(__file__).parent.parent / "model_repository"


def read_config(model: Path) -> ModelConfig:
    """The configuration of the model in folder `model`.

    Raises:
        RunDirectoryError: config.pbtxt is missing, has an unknown field or value, or names another model, or there
            is no version 1.
    """
    path = model / CONFIG
    try:
        config = text_format.Parse(path.read_text("utf-8"), ModelConfig())
    except FileNotFoundError:
        raise RunDirectoryError(f"{path}: no such file") from None
    except text_format.ParseError as error:
        raise RunDirectoryError(f"{path}: {error}") from None
    if config.name != model.name:
        raise RunDirectoryError(f"{path}: name: value {config.name!r}; accepted: the folder's, {model.name!r}")
    if config.backend == "python" and not (model / VERSION / "model.py").is_file():
        raise RunDirectoryError(f"{model}: no {VERSION}/model.py")
    return config


def render(
    repository: Path,
    models: Path,
    *,
    parameters: Mapping[str, str],
    exported: Mapping[str, ExportedStage] | None = None,
    without: Collection[str] = (),
    edit: Callable[[ModelConfig], None] | None = None,
) -> dict[str, ModelConfig]:
    """Write the models of `repository` to the folder `models`, with `parameters` set in each. Those of an earlier
    rendering are removed.

    Args:
        exported: the graphs of models that another backend than torch runs.
        without: models to leave out.
        edit: further changes of each configuration.

    Returns:
        The configurations written, by model.
    """
    configs = {
        folder.name: read_config(folder)
        for folder in sorted(repository.iterdir())
        if folder.is_dir() and folder.name not in without and not folder.name.startswith((".", "_"))
    }
    if not configs:
        raise RunDirectoryError(f"{repository}: holds no models")
    _empty(models)
    for name, config in configs.items():
        for key, value in parameters.items():
            config.parameters[key].string_value = value
        if edit:
            edit(config)
        model = models / name
        model.mkdir()
        if exported and (stage := exported.get(name)):
            config.parameters[BACKEND_PARAMETER].string_value = stage.backend
            (model / LINKED_GRAPHS).symlink_to(stage.folder.resolve())
        (model / VERSION).symlink_to((repository / name / VERSION).resolve())
        source = f"# Rendered from {repository / name / CONFIG}: edit that one.\n"
        text = source + text_format.MessageToString(config)
        (model / CONFIG).write_text(text, encoding="utf-8", errors="backslashreplace")
    return configs


def _empty(models: Path) -> None:
    """Remove an earlier rendering. Raises RunDirectoryError where anything else is in the folder."""
    for entry in models.iterdir():
        if not (entry / VERSION).is_symlink() or not (entry / CONFIG).is_file():
            raise RunDirectoryError(f"{entry}: is none of ours; accepted for a run directory: a new or empty folder")
    for entry in models.iterdir():
        shutil.rmtree(entry)


@dataclass(frozen=True, slots=True)
class RunFolders:
    """What is in a run directory.

    models: the rendered models.
    jobs: where stages and pipeline exchange progress and cancellation.
    libraries: links to shared libraries that the stages load.
    """

    models: Path
    jobs: Path
    libraries: Path

    @classmethod
    def make(cls, folder: Path) -> RunFolders:
        """In `folder`, closed to other users. What they hold of an earlier server is left, but for its jobs."""
        folders = cls(folder / "models", folder / "jobs", folder / "lib")
        for each in (folders.models, folders.jobs, folders.libraries):
            each.mkdir(mode=0o700, exist_ok=True)
            each.chmod(0o700)
        folders.clear_jobs()
        return folders

    def clear_jobs(self) -> None:
        """Nobody waits for the jobs of a server that has ended, and stages must not work for them."""
        for job in self.jobs.iterdir():
            job.unlink(missing_ok=True)


@contextmanager
def run_directory(wanted: Path | None) -> Iterator[Path]:
    """The folder `wanted`, created if missing and locked against a second server; a temporary one when None."""
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="cosmos-triton-") as temporary:
            yield Path(temporary).resolve()
        return
    wanted.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = os.open(wanted, os.O_RDONLY)  # the lock is on the folder itself, and ends with this process
    try:
        _lock(folder, wanted)
        yield wanted.resolve()
    finally:
        os.close(folder)


def _lock(folder: int, name: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunDirectoryError(f"--run-dir: value {name}; accepted: a folder that no running server uses") from None
