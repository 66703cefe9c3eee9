"""The run directory: what is rendered into it, and what it is protected from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cosmos_triton.serving.run_directory import (
    RunDirectoryError,
    RunFolders,
    model_repository,
    read_config,
    render,
    run_directory,
)
from support.paths import TOYS

MODELS = sorted(path.parent for path in model_repository().glob("*/config.pbtxt"))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_delivered_configuration_is_valid(model: Path) -> None:
    config = read_config(model)
    assert config.backend == "python"
    assert config.input
    assert config.output
    assert config.instance_group


def test_rendered_model_is_its_source_with_the_parameters_set(models: Path) -> None:
    awkward = 'a "quoted"\\path\nwith $holes {and} 世界'
    rendered = render(TOYS, models, parameters={"checkpoint_dir": awkward}, without={"slow"})
    assert sorted(rendered) == ["echo", "sampler", "world_generation", "world_generation_stream"]
    assert sorted(path.name for path in models.iterdir()) == sorted(rendered)
    for name in rendered:
        config = read_config(models / name)
        assert config.parameters["checkpoint_dir"].string_value == awkward
        config.parameters.clear()
        assert config == read_config(TOYS / name)
        assert (models / name / "1").resolve() == (TOYS / name / "1").resolve()


def test_rendering_again_replaces_the_models_and_spares_their_sources(models: Path, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(TOYS, tmp_path / "repository"))
    render(repository, models, parameters={})
    assert sorted(render(repository, models, parameters={}, without={"echo"})) == [
        "sampler",
        "slow",
        "world_generation",
        "world_generation_stream",
    ]
    assert not (models / "echo").exists()
    assert (repository / "echo" / "1" / "model.py").is_file()


@pytest.mark.parametrize("files", [["1/model.py"], ["1/model.py", "config.pbtxt"], ["config.pbtxt"], ["notes"], []])
@pytest.mark.parametrize("is_beside_ours", [False, True])
def test_folder_with_anything_else_in_it_is_left_alone(models: Path, files: list[str], is_beside_ours: bool) -> None:
    """Such as a model of the user's own, which has a folder 1 where ours has a link."""
    if is_beside_ours:
        render(TOYS, models, parameters={})
    precious = models / "precious"
    precious.mkdir()
    for file in files:
        (precious / file).parent.mkdir(exist_ok=True)
        (precious / file).touch()
    before = sorted(models.rglob("*"))
    with pytest.raises(RunDirectoryError, match="precious: is none of ours"):
        render(TOYS, models, parameters={})
    assert sorted(models.rglob("*")) == before


def test_folder_of_links_is_left_alone(models: Path) -> None:
    (models / "precious").mkdir()
    (models / "precious" / "1").symlink_to(TOYS / "echo" / "1")
    with pytest.raises(RunDirectoryError, match="precious: is none of ours"):
        render(TOYS, models, parameters={})
    assert (models / "precious" / "1").is_symlink()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("max_batch_size", "max_batch_sise"), r"config.pbtxt: 4:1 : .*max_batch_sise"),
        (("TYPE_FP32", "TYPE_FLOAT"), r"config.pbtxt: 5:.*TYPE_FLOAT"),
        (('"echo"', '"ecko"'), "name: value 'ecko'; accepted: the folder's, 'echo'"),
    ],
)
def test_wrong_configuration_is_named_with_its_file_and_line(
    tmp_path: Path, models: Path, edit: tuple[str, str], message: str
) -> None:
    repository = Path(shutil.copytree(TOYS, tmp_path / "repository"))
    config = repository / "echo" / "config.pbtxt"
    config.write_text(config.read_text().replace(*edit, 1))
    with pytest.raises(RunDirectoryError, match=message):
        render(repository, models, parameters={})
    assert list(models.iterdir()) == []


def test_model_without_its_code_is_refused(tmp_path: Path) -> None:
    repository = Path(shutil.copytree(TOYS, tmp_path / "repository"))
    shutil.rmtree(repository / "echo" / "1")
    with pytest.raises(RunDirectoryError, match=r"echo: no 1/model\.py"):
        read_config(repository / "echo")


def test_temporary_run_directory_is_removed() -> None:
    with run_directory(None) as folder:
        render(TOYS, folder, parameters={})
    assert not folder.exists()
    assert (TOYS / "echo" / "1" / "model.py").is_file()


def test_second_holder_of_a_run_directory_is_refused(tmp_path: Path) -> None:
    with (
        run_directory(tmp_path / "run"),
        pytest.raises(RunDirectoryError, match="no running server uses"),
        run_directory(tmp_path / "run"),
    ):
        pass
    with run_directory(tmp_path / "run") as folder:
        assert folder.is_dir()


def test_folders_are_closed_to_other_users_and_hold_no_jobs_of_an_earlier_server(tmp_path: Path) -> None:
    with run_directory(tmp_path / "run") as folder:
        jobs = folder / "jobs"
        jobs.mkdir(mode=0o755)
        (jobs / "job").touch()
        folders = RunFolders.make(folder)
        assert list(folders.jobs.iterdir()) == []
        for each in (folder, folders.models, folders.jobs, folders.libraries):
            assert each.stat().st_mode & 0o777 == 0o700


def test_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    folder.chmod(0o755)
    with run_directory(folder) as same:
        RunFolders.make(same)
    assert folder.stat().st_mode & 0o777 == 0o755
