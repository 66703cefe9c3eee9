"""The table of stages: it is the one place that describes a stage, and a further stage is a row of it."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmos_triton.runtime.deployments import PRESET_OF
from cosmos_triton.runtime.stages import STAGES
from cosmos_triton.serving.run_directory import model_repository, read_config
from support.paths import ROOT

TABLE = Path("runtime/stages.py")
MAX_FILES = 3  # that name a stage, beside the table and the stage's own folder
MAX_TOUCHED = 6  # files, to add a stage
ROOMS = [path.name for path in (ROOT / "cosmos_triton").iterdir() if path.is_symlink()]
TOY = "upscaler"
ROW = f"""\
        StageSpec(
            "{TOY}",
            inputs=stage_inputs.clip_tokens,
            outputs=("video",),
            networks=("discrete_decoder",),
            graphs=("discrete_decoder",),
            runs_on_cpu=True,
        ),
"""
# In the copy: the toy stage planned, rendered, and its settings read back as its model.py reads them.
RENDER = f"""
import json, sys
from functools import partial
from pathlib import Path
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.planning.memory_plan import plan_memory
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.stage_settings import StageSettings
from cosmos_triton.serving.backend_choice import parse_backends
from cosmos_triton.serving.planned_config import write_plan
from cosmos_triton.serving.run_directory import model_repository, render

models, deployment = Path(sys.argv[1]), DEPLOYMENTS["4b"]
plan = plan_memory(deployment, 16)
settings = StageSettings(deployment, Path("/checkpoints"), "cuda", jobs_dir=Path("/jobs"))
edit = partial(write_plan, plan, settings)
config = render(model_repository(), models, parameters=settings.to_parameters(), edit=edit)["{TOY}"]
parameters = {{name: {{"string_value": value.string_value}} for name, value in config.parameters.items()}}
model_config = json.dumps({{"name": config.name, "parameters": parameters}})
read = Settings.read({{"model_config": model_config, "model_repository": str(models)}})
print(json.dumps({{
    "planned": next(stage.mode for stage in plan.stages if stage.stage == "{TOY}"),
    "read": read.parameters.mode,
    "engine": parse_backends(["{TOY}=onnxruntime"]),
}}))
"""


def literals(path: Path) -> set[str]:
    """The strings in a file's code."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def files_that_name(stage: str) -> Iterator[Path]:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            relative = path.relative_to(ROOT)
            if relative != TABLE and relative.parts[:2] != ("model_repository", stage) and stage in literals(path):
                yield relative


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_named_in_few_files(stage: str) -> None:
    named = sorted(map(str, files_that_name(stage)))
    assert len(named) <= MAX_FILES, named


def test_the_table_is_the_model_repository() -> None:
    assert set(STAGES) == {config.parent.name for config in model_repository().glob("*/config.pbtxt")}
    for name, spec in STAGES.items():
        config = read_config(model_repository() / name)
        assert set(spec.outputs) <= {output.name for output in config.output}
        assert set(spec.parameters) <= set(config.parameters)
        assert ("engine" in config.parameters) == bool(spec.graphs)
        assert spec.batch_sizes[0] == max(config.max_batch_size, 1)


def test_the_table_names_networks_and_graphs_that_exist() -> None:
    from cosmos_triton.export.graphs.graph_specs import SPECS

    assert {kind for spec in STAGES.values() for kind in spec.networks} == set(PRESET_OF)
    assert {graph for spec in STAGES.values() for graph in spec.graphs} == set(SPECS)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the product."""
    folder = tmp_path / "tree"
    shutil.copytree(ROOT / "cosmos_triton", folder / "cosmos_triton", symlinks=True)
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def add_toy_stage(tree: Path) -> None:
    """A stage that runs an existing network, as docs/extending.md says."""
    table = tree / TABLE
    before = '        StageSpec("media_encoder"'
    assert table.read_text().count(before) == 1
    table.write_text(table.read_text().replace(before, ROW + before))
    folder = shutil.copytree(tree / "model_repository" / "video_tokenizer_decoder", tree / "model_repository" / TOY)
    for path in (folder / "config.pbtxt", folder / "1" / "model.py"):
        path.write_text(path.read_text().replace("video_tokenizer_decoder", TOY))


def touched(tree: Path) -> list[str]:
    """Files of the copy that the product does not have, or has with another content."""
    files = (path.relative_to(tree) for room in ROOMS for path in (tree / room).rglob("*") if path.is_file())
    ours = (path for path in files if path.suffix != ".pyc")
    return sorted(str(path) for path in ours if read(ROOT / path) != read(tree / path))


def read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def test_a_toy_stage_is_planned_rendered_and_configured(tree: Path, tmp_path: Path) -> None:
    add_toy_stage(tree)
    # The call in the pipeline is the one other place, and in one file: the one that names a stage like this one.
    pipeline = {str(path) for path in files_that_name("media_encoder")}
    assert len(pipeline) == 1
    files = touched(tree)
    assert files == [f"model_repository/{TOY}/1/model.py", f"model_repository/{TOY}/config.pbtxt", str(TABLE)]
    assert len(files) + len(pipeline) <= MAX_TOUCHED

    def python(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=tree, check=True, stdout=subprocess.PIPE, text=True).stdout

    command = "import sys; from cosmos_triton.cli.main import main; sys.exit(main(sys.argv[1:]))"
    table = python("-c", command, "plan", "--deployment", "4b", "--gpu-memory", "80")
    assert re.search(rf"^{TOY} +resident +bf16 ", table, re.M)
    models = tmp_path / "models"
    models.mkdir()
    found = json.loads(python("-c", RENDER, str(models)))
    assert found["planned"] == found["read"]
    assert found["engine"] == {TOY: "onnxruntime"}
    assert (models / TOY / "1" / "model.py").is_file()
