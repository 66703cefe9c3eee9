"""The download, against a hub of our own: all checks first, pinned commits, and no byte fetched twice."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from cosmos_triton.cli.main import main
from cosmos_triton.export.checkpoints import download as download_module
from cosmos_triton.export.checkpoints.catalogue import checkpoints_of
from cosmos_triton.export.checkpoints.hub_repositories import MD5
from cosmos_triton.export.checkpoints.manifest import NAME as MANIFEST
from cosmos_triton.export.checkpoints.released import MissingError
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.releases import COSMOS_1_0, PREDICT1
from support.hub_server import Hub, HubRepository, HubServer

AR = "Cosmos-1.0-Autoregressive-4B"
GUARDRAIL = "Cosmos-1.0-Guardrail"
LLAMA_GUARD = "meta-llama/LlamaGuard-7b"
DICE = random.Random(0)
FIRST, SECOND = "a" * 40, "b" * 40


def large() -> bytes:
    return DICE.randbytes(5000)


def released_files() -> dict[str, dict[str, bytes]]:
    """By repository: what is wanted of it, and what is not."""
    return {
        f"nvidia/{AR}": {"model.pt": large(), "config.json": b"{}", "README.md": b"no"},
        "nvidia/Cosmos-1.0-Autoregressive-5B-Video2World": {"model.pt": large(), "config.json": b"{}"},
        "nvidia/Cosmos-1.0-Tokenizer-DV8x16x16": {"encoder.jit": large(), "decoder.jit": large(), "model.onnx": b"no"},
        "nvidia/Cosmos-1.0-Tokenizer-CV8x8x8": {
            "decoder.jit": large(),
            "mean_std.pt": b"small",
            "encoder.jit": large(),
        },
        "nvidia/Cosmos-1.0-Diffusion-7B-Decoder-DV8x16x16ToCV8x8x8": {"model.pt": large(), "aux_vars.pt": large()},
        f"nvidia/{GUARDRAIL}": {
            "blocklist/custom/words": b"word\n",
            "blocklist/exact_match/words": b"word\n",
            "blocklist/nltk_data/corpora/wordnet.zip": large(),
            "face_blur_filter/Resnet50_Final.pth": large(),
            "video_content_safety_filter/safety_filter.pt": large(),
            "blocklist/../../../outside": b"no",
        },
        "google/siglip-so400m-patch14-384": {
            "config.json": b"{}",
            "preprocessor_config.json": b"{}",
            "model.safetensors": large(),
        },
        "google-t5/t5-11b": {
            "config.json": b"{}",
            "tokenizer.json": b"{}",
            "spiece.model": b"pieces",
            "pytorch_model.bin": large(),
            "tf_model.h5": b"no",
        },
        LLAMA_GUARD: {
            "config.json": b"{}",
            "tokenizer.json": b"{}",
            "model.safetensors.index.json": b'{"weight_map": {"w": "model-1-of-1.safetensors"}}',
            "model-1-of-1.safetensors": large(),
            "pytorch_model-1-of-1.bin": b"no",
            "pytorch_model.bin.index.json": b"no",
        },
        "nvidia/Aegis-AI-Content-Safety-LlamaGuard-Defensive-1.0": {
            "adapter_config.json": b"{}",
            "adapter_model.safetensors": large(),
        },
    }


@pytest.fixture
def server(empty_hub: HubServer) -> HubServer:
    empty_hub.hub.repositories = {name: HubRepository({FIRST: files}) for name, files in released_files().items()}
    return empty_hub


def run(directory: Path, deployment: str = "4b") -> int:
    return main(["checkpoints", "download", "--deployment", deployment, "--to", str(directory)])


def manifest(directory: Path) -> dict[str, dict[str, dict[str, object]]]:
    return json.loads((directory / MANIFEST).read_text())


def present(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()} - {MANIFEST}


@pytest.mark.parametrize("deployment", ["4b", "5b-video2world"])
def test_a_download_brings_what_conversion_needs_and_no_more(hub: Hub, tmp_path: Path, deployment: str) -> None:
    directory = tmp_path / "deep" / "checkpoints"
    assert run(directory, deployment) == 0
    for checkpoint in checkpoints_of(COSMOS_1_0):
        if checkpoint.needed_by(DEPLOYMENTS[deployment]):
            try:
                checkpoint.find(directory)
            except MissingError as missing:
                pytest.fail(str(missing))
    for path in directory.rglob("*"):
        assert path.is_dir() or path.read_bytes() != b"no", path
    assert any(".partial" in path.name for path in directory.rglob("*")) is False
    assert not (tmp_path / "outside").exists()


def test_files_arrive_unchanged_and_are_recorded(hub: Hub, tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    recorded = manifest(tmp_path)
    assert recorded["sources"].keys() == present(tmp_path)
    for name, record in recorded["sources"].items():
        assert record["sha256"] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert (tmp_path / AR / "model.pt").read_bytes() == hub.repositories[f"nvidia/{AR}"].versions[FIRST]["model.pt"]


def test_a_second_run_fetches_nothing(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    hub.requests.clear()
    assert run(tmp_path) == 0
    assert hub.fetched() == []
    assert "0 files fetched" in capsys.readouterr().out


def test_closed_repositories_are_all_named_before_anything_is_fetched(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[f"nvidia/{GUARDRAIL}"].gate = "gated"
    hub.repositories[LLAMA_GUARD].gate = "gated"
    hub.granted = False
    del hub.repositories["google-t5/t5-11b"]
    assert run(tmp_path / "new", "5b-video2world") == 1
    assert capsys.readouterr().err.splitlines() == [
        f"nvidia/{GUARDRAIL}: access is not granted: accept its licence at https://huggingface.co/nvidia/{GUARDRAIL}",
        "google-t5/t5-11b: no such repository, or a private one",
        f"{LLAMA_GUARD}: access is not granted: accept its licence at https://huggingface.co/{LLAMA_GUARD}",
    ]
    assert hub.fetched() == []
    assert not (tmp_path / "new").exists()


def test_without_a_token_the_message_says_how_to_log_in(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    hub.repositories[f"nvidia/{GUARDRAIL}"].gate = "gated"
    hub.repositories[f"nvidia/{AR}"].gate = "private"
    assert run(tmp_path) == 1
    private, gated = capsys.readouterr().err.splitlines()
    assert private == f"nvidia/{AR}: no such repository, or a private one, and no token to log in with"
    assert gated.endswith(
        f"https://huggingface.co/nvidia/{GUARDRAIL}, then log in with `hf auth login` or set HF_TOKEN"
    )


def test_a_granted_repository_is_fetched_with_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[f"nvidia/{AR}"].gate = "gated"
    assert run(tmp_path) == 0


def test_a_hub_out_of_reach_is_one_line_a_repository(
    server: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.close()
    assert run(tmp_path) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert all(f"{server.url} is out of reach: " in line for line in lines)


def test_a_repository_without_the_wanted_files_is_named(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[f"nvidia/{AR}"].versions[FIRST] = {"README.md": b""}
    assert run(tmp_path) == 1
    assert capsys.readouterr().err == f"nvidia/{AR}: it has none of model.pt, config.json\n"


def test_a_cut_connection_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after["model.pt"] = [1200, 0, 800]
    assert run(tmp_path) == 0
    spans = [span for name, span in hub.fetched() if name == "model.pt"][:4]
    assert spans == ["bytes=0-", "bytes=1200-", "bytes=1200-", "bytes=2000-"]
    content = hub.repositories[f"nvidia/{AR}"].versions[FIRST]["model.pt"]
    assert (tmp_path / AR / "model.pt").read_bytes() == content


def test_a_connection_that_breaks_again_and_again_is_enough_if_bytes_arrive_in_between(
    hub: Hub, tmp_path: Path
) -> None:
    cuts = ([0] * (download_module.MAX_ATTEMPTS - 1) + [1000]) * 4
    hub.cut_after["model.pt"] = list(cuts)
    assert run(tmp_path) == 0
    content = hub.repositories[f"nvidia/{AR}"].versions[FIRST]["model.pt"]
    assert (tmp_path / AR / "model.pt").read_bytes() == content
    spans = [span for name, span in hub.fetched() if name == "model.pt"][: len(cuts) + 1]
    assert spans[-1] == "bytes=4000-"


def test_a_later_run_takes_up_what_an_earlier_one_left(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.cut_after["model.pt"] = [1200] + [0] * download_module.MAX_ATTEMPTS
    assert run(tmp_path) == 1
    assert capsys.readouterr().err.endswith("run again to continue\n")
    assert not (tmp_path / AR / "model.pt").exists()
    hub.requests.clear()
    assert run(tmp_path) == 0
    assert ("model.pt", "bytes=1200-") in hub.fetched()
    assert sum(name == "config.json" for name, _ in hub.fetched()) == 1  # SigLIP's; the other was there already


def test_a_server_that_knows_no_ranges_sends_the_whole_file_again(hub: Hub, tmp_path: Path) -> None:
    hub.ignores_ranges = True
    hub.cut_after["model.pt"] = [1200]
    assert run(tmp_path) == 0
    assert (tmp_path / AR / "model.pt").stat().st_size == 5000


@pytest.mark.parametrize("name", ["model.pt", "config.json"])
def test_content_that_is_not_what_the_hub_names_is_not_kept(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    content = hub.repositories[f"nvidia/{AR}"].versions[FIRST][name]
    fetch = download_module._stream

    def tampered(file: download_module.RemoteFile, bar: object) -> None:
        fetch(file, bar)
        if file.path.name == name:
            file.partial.write_bytes(bytes(len(content)))

    monkeypatch.setattr(download_module, "_stream", tampered)
    assert run(tmp_path) == 1
    assert f"{AR}/resolve/{FIRST}/{name}: what arrived is not what the hub names" in capsys.readouterr().err
    assert not list((tmp_path / AR).glob(f"{name}*"))


def test_later_runs_stay_on_the_commit_of_the_first(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after["model.pt"] = [1200] + [0] * download_module.MAX_ATTEMPTS
    assert run(tmp_path) == 1
    repository = hub.repositories[f"nvidia/{AR}"]
    repository.versions[SECOND] = {"model.pt": large(), "config.json": b'{"new": 1}'}
    assert run(tmp_path) == 0
    assert (tmp_path / AR / "model.pt").read_bytes() == repository.versions[FIRST]["model.pt"]
    assert manifest(tmp_path)["revisions"][f"nvidia/{AR}"] == FIRST


def test_files_fetched_by_other_means_are_recognised(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / AR
    folder.mkdir()
    for name, content in hub.repositories[f"nvidia/{AR}"].versions[FIRST].items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_bytes(b"[]")  # of the same size
    assert run(tmp_path) == 0
    assert ("config.json", "bytes=0-") in hub.fetched()
    assert (folder / "config.json").read_bytes() == b"{}"
    assert sum(name == "model.pt" for name, _ in hub.fetched()) == 1  # the diffusion decoder's


def test_a_source_that_was_converted_and_taken_away_is_not_fetched_again(hub: Hub, tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    content = manifest(tmp_path)
    name = f"{AR}/model.pt"
    record = {"sha256": "0", "bytes": 0, "sources": {name: content["sources"][name]["sha256"]}}
    content["converted"][f"{AR}/model.safetensors"] = record
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    (tmp_path / AR / "model.safetensors").touch()
    (tmp_path / name).unlink()
    hub.requests.clear()
    assert run(tmp_path) == 0
    assert hub.fetched() == []
    (tmp_path / AR / "model.safetensors").unlink()
    assert run(tmp_path) == 0
    assert hub.fetched() == [("model.pt", "bytes=0-")]


@pytest.mark.parametrize("gone", ["one", "other"])
def test_a_source_of_two_files_is_fetched_again_if_one_of_them_is_gone(hub: Hub, tmp_path: Path, gone: str) -> None:
    assert run(tmp_path) == 0
    content = manifest(tmp_path)
    name = f"{AR}/model.pt"
    for target in ("one", "other"):
        record = {"sha256": "0", "bytes": 0, "sources": {name: content["sources"][name]["sha256"]}}
        content["converted"][f"{AR}/{target}"] = record
        (tmp_path / AR / target).touch()
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    (tmp_path / name).unlink()
    hub.requests.clear()
    assert run(tmp_path) == 0
    assert hub.fetched() == []
    (tmp_path / AR / gone).unlink()
    assert run(tmp_path) == 0
    assert hub.fetched() == [("model.pt", "bytes=0-")]


def test_a_disk_too_small_is_known_before_anything_is_fetched(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**4, 0, 10**4))
    assert run(tmp_path / "new") == 1
    assert "kB to fetch, 10.0kB free" in capsys.readouterr().err
    assert hub.fetched() == []
    assert not (tmp_path / "new").exists()


def test_the_endpoint_of_the_environment_is_used(server: HubServer, tmp_path: Path) -> None:
    code = "import sys; from cosmos_triton.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "checkpoints", "download", "--deployment", "4b", "--to", str(tmp_path)]
    result = subprocess.run(command, env=os.environ | {"HF_ENDPOINT": server.url}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"nvidia/{AR}: 2 files, " in result.stdout
    assert FIRST in result.stdout
    assert "Traceback" not in result.stderr


# Predict1


PREDICT1_AR = "nvidia/Cosmos-Predict1-4B"
SAFETY_FILTER = "video_content_safety_filter/safety_filter.pt"


@pytest.fixture
def predict1(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The same files under the names of Predict1, with published MD5 sums that fit."""
    renamed = {
        f"nvidia/{AR}": PREDICT1_AR,
        f"nvidia/{COSMOS_1_0.discrete_tokenizer}": f"nvidia/{PREDICT1.discrete_tokenizer}",
        f"nvidia/{COSMOS_1_0.continuous_tokenizer}": f"nvidia/{PREDICT1.continuous_tokenizer}",
        f"nvidia/{COSMOS_1_0.diffusion_decoder}": f"nvidia/{PREDICT1.diffusion_decoder}",
        f"nvidia/{GUARDRAIL}": f"nvidia/{PREDICT1.guardrails}",
    }
    hub.repositories = {renamed.get(name, name): repository for name, repository in hub.repositories.items()}
    sums = {
        f"{name.removeprefix('nvidia/')}/{file}": hashlib.md5(content).hexdigest()
        for name, repository in hub.repositories.items()
        for file, content in repository.versions[FIRST].items()
    }
    known = MD5["predict1"].keys()
    assert f"{PREDICT1_AR.removeprefix('nvidia/')}/model.pt" in known
    monkeypatch.setitem(MD5, "predict1", {path: sums[path] for path in known & sums.keys()})
    return hub


def move_guardrails_into_the_model(hub: Hub) -> None:
    guardrails = hub.repositories.pop(f"nvidia/{PREDICT1.guardrails}").versions[FIRST]
    model = hub.repositories[PREDICT1_AR].versions[FIRST]
    model |= {f"guardrail/{name}": content for name, content in guardrails.items()}


def run_predict1(directory: Path) -> int:
    return main(["checkpoints", "download", "--deployment=4b", "--release=predict1", "--to", str(directory)])


@pytest.mark.parametrize("in_model", [False, True])
def test_predict1_comes_with_its_guardrails_wherever_they_are(predict1: Hub, tmp_path: Path, in_model: bool) -> None:
    if in_model:
        move_guardrails_into_the_model(predict1)
    assert run_predict1(tmp_path) == 0
    for checkpoint in checkpoints_of(PREDICT1):
        if checkpoint.needed_by(DEPLOYMENTS["4b"]):
            checkpoint.find(tmp_path)
    assert (tmp_path / PREDICT1.blocklist / "custom/words").read_bytes() == b"word\n"
    assert not (tmp_path / "outside").exists()
    predict1.requests.clear()
    assert run(tmp_path) == 0, "the release of the directory is taken"
    assert predict1.fetched() == []


@pytest.mark.parametrize(
    ("published", "path"),
    [
        ("Cosmos-Predict1-4B/model.pt", "Cosmos-Predict1-4B/model.pt"),
        (f"guardrail/{SAFETY_FILTER}", f"{PREDICT1.guardrails}/{SAFETY_FILTER}"),
    ],
)
def test_what_is_not_the_published_file_is_not_kept(
    predict1: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], published: str, path: str
) -> None:
    move_guardrails_into_the_model(predict1)
    MD5["predict1"][published] = "0" * 32  # in a table of this test's own
    assert run_predict1(tmp_path) == 1
    error = capsys.readouterr().err
    file = published.removeprefix("Cosmos-Predict1-4B/")
    assert re.search(rf"/{file}: MD5: value [0-9a-f]{{32}}; accepted: 0{{32}}, as published$", error)
    assert not list((tmp_path / path).parent.glob(f"{Path(path).name}*"))


def test_a_repository_that_is_needed_twice_is_named_once(
    predict1: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    move_guardrails_into_the_model(predict1)
    predict1.repositories[PREDICT1_AR].gate = "gated"
    predict1.granted = False
    assert run_predict1(tmp_path) == 1
    licence = f"accept its licence at https://huggingface.co/{PREDICT1_AR}"
    assert capsys.readouterr().err == f"{PREDICT1_AR}: access is not granted: {licence}\n"
    assert predict1.fetched() == []


def test_both_gates_are_named_where_the_guardrails_have_a_repository_of_their_own(
    predict1: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gated = [PREDICT1_AR, f"nvidia/{PREDICT1.guardrails}"]
    for name in gated:
        predict1.repositories[name].gate = "gated"
    predict1.granted = False
    assert run_predict1(tmp_path) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == gated
