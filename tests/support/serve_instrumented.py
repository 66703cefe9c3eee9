"""`cosmos-triton` with the given command line, on models that note when they work.

    python serve_instrumented.py FOLDER serve --deployment tiny ...

Each stage's model.py is the delivered one, and around its `execute` two looks at the clock, which all processes share.
FOLDER gets the model repository and the file `intervals`, one line an execution: stage, begin, end.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from unittest import mock

from cosmos_triton.cli.main import main
from cosmos_triton.runtime.stages import STAGES
from cosmos_triton.serving.run_directory import model_repository

MODEL = """
import importlib.util
import time

spec = importlib.util.spec_from_file_location("delivered", {source!r})
delivered = importlib.util.module_from_spec(spec)
spec.loader.exec_module(delivered)


class TritonPythonModel(delivered.TritonPythonModel):
    def execute(self, requests):
        begin = time.monotonic()
        try:
            return super().execute(requests)
        finally:
            with open({intervals!r}, "a") as file:
                file.write(f"{stage} {{begin}} {{time.monotonic()}}\\n")
"""


def instrumented(folder: Path) -> Path:
    """The model repository, with the stages that the memory plan is about instrumented."""
    repository = folder / "repository"
    shutil.copytree(model_repository(), repository, ignore=shutil.ignore_patterns("__pycache__", "*.py[co]"))
    for stage in (name for name, spec in STAGES.items() if spec.networks):
        source = model_repository() / stage / "1" / "model.py"
        text = MODEL.format(source=str(source), intervals=str(folder / "intervals"), stage=stage)
        (repository / stage / "1" / "model.py").write_text(text)
    return repository


if __name__ == "__main__":
    repository = instrumented(Path(sys.argv[1]))
    with mock.patch("cosmos_triton.serving.serve.model_repository", return_value=repository):
        sys.exit(main(sys.argv[2:]))
