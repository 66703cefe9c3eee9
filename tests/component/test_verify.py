"""What `checkpoints verify` says of a directory: ready, missing, broken, of another size."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import SiglipConfig, SiglipVisionModel

from cosmos_triton.cli.main import main
from cosmos_triton.export.checkpoints.catalogue import checkpoints_of
from cosmos_triton.export.checkpoints.convert import convert
from cosmos_triton.export.checkpoints.manifest import NAME as MANIFEST
from cosmos_triton.export.checkpoints.verify import require
from cosmos_triton.guardrail.lemmas import FILES
from cosmos_triton.runtime.checkpoints import network_shapes
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.mapped_file import Shapes
from cosmos_triton.runtime.releases import COSMOS_1_0, PREDICT1
from support.released_tree import GUARDRAIL, rename_to_predict1, write_released_tree

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

TINY = "Cosmos-1.0-Autoregressive-tiny/model.safetensors"
FULL = "Cosmos-1.0-Autoregressive-4B/model.safetensors"

Verify = Callable[..., tuple[int, dict[str, str], list[str]]]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("converted")
    write_released_tree(directory)
    for file in FILES:
        (directory / COSMOS_1_0.nltk_data / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / COSMOS_1_0.nltk_data / file).touch()
    convert(directory)
    return directory


@pytest.fixture
def tree(converted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(converted, tmp_path / "checkpoints"))


@pytest.fixture
def verify(tree: Path, capsys: pytest.CaptureFixture[str]) -> Verify:
    """Runs the command; gives the exit code, the table, and the lines under it."""

    def run(*options: str) -> tuple[int, dict[str, str], list[str]]:
        capsys.readouterr()
        code = main(["checkpoints", "verify", str(tree), *options])
        lines = capsys.readouterr().out.splitlines()
        rows = dict(re.split(" +", line, maxsplit=1) for line in lines if line.split()[0] in DEPLOYMENTS)
        return code, rows, [line for line in lines if line.split()[0] not in DEPLOYMENTS]

    return run


def write_sparse(path: Path, shapes: Shapes) -> None:
    """A bf16 safetensors file of these shapes that takes no room on disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def shapes_of(target: str, deployment: str) -> Shapes:
    (checkpoint,) = (checkpoint for checkpoint in checkpoints_of(COSMOS_1_0) if checkpoint.target == target)
    return dict(checkpoint.variants(Path("nowhere"))[deployment])


def test_a_whole_tiny_tree_is_ready_for_the_tiny_deployments_and_no_other(verify: Verify) -> None:
    code, rows, problems = verify()
    assert (code, problems) == (0, [])
    assert rows.keys() == DEPLOYMENTS.keys()
    assert {name for name, row in rows.items() if row == "ready"} == {"tiny", "tiny-video2world"}
    assert rows["4b"].startswith("missing Cosmos-1.0-Autoregressive-4B/model.pt; ")
    assert "of another size" in rows["4b"]


def test_the_deployment_that_is_named_decides(verify: Verify) -> None:
    assert verify("--deployment", "tiny")[:2] == (0, {"tiny": "ready"})
    code, rows, _ = verify("--deployment", "12b")
    assert code == 1
    assert "Cosmos-1.0-Autoregressive-12B/model.pt" in rows["12b"]


@pytest.mark.parametrize(
    ("gone", "still_ready"),
    [
        ("google-t5", {"tiny"}),
        (f"{GUARDRAIL}/aegis", {"tiny"}),
        (f"{GUARDRAIL}/blocklist", {"tiny"}),
        ("Cosmos-1.0-Autoregressive-tiny", {"tiny-video2world"}),
        (COSMOS_1_0.continuous_encoder, {"tiny", "tiny-video2world"}),
        ("Cosmos-1.0-Tokenizer-DV8x16x16", set()),
        (f"{GUARDRAIL}/video_content_safety_filter", set()),
        (f"{GUARDRAIL}/face_blur_filter", set()),
    ],
)
def test_a_missing_file_or_folder_stops_those_who_need_it(
    tree: Path, verify: Verify, gone: str, still_ready: set[str]
) -> None:
    path = tree / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, rows, problems = verify()
    assert {name for name, row in rows.items() if row == "ready"} == still_ready
    tiny = {"tiny", "tiny-video2world"}
    assert {name for name in tiny if gone in rows[name]} == tiny - still_ready
    assert (code, problems) == (0 if still_ready else 1, [])


def test_what_is_not_converted_is_not_ready(tree: Path, verify: Verify) -> None:
    (tree / TINY).unlink()
    code, rows, problems = verify("--deployment", "tiny")
    assert (code, problems) == (1, [])
    assert rows["tiny"] == f"missing {TINY} (not converted yet)"


def test_a_flipped_bit_is_found(tree: Path, verify: Verify) -> None:
    content = bytearray((tree / TINY).read_bytes())
    content[-1] ^= 1
    (tree / TINY).write_bytes(content)
    code, rows, problems = verify()
    assert code == 1
    assert rows["tiny"] == f"missing {TINY} (broken)"
    assert problems == [f"{tree / TINY}: its SHA-256 is not the one in the manifest: damaged or replaced"]


def test_a_file_cut_short_is_found(tree: Path, verify: Verify) -> None:
    size = (tree / TINY).stat().st_size
    with (tree / TINY).open("r+b") as file:
        file.truncate(size - 10)
    code, _, problems = verify()
    assert code == 1
    assert problems == [f"{tree / TINY}: {size - 10} bytes, its header says {size}: cut short or damaged"]


def test_the_full_size_networks_are_recognised_beside_tiny_ones(tree: Path, verify: Verify) -> None:
    write_sparse(tree / FULL, shapes_of(FULL, "4b"))
    code, rows, problems = verify()
    assert (code, problems) == (0, [])
    assert "Cosmos-1.0-Autoregressive-4B" not in rows["4b"]


def test_a_wrong_shape_is_held_against_the_nearest_network(tree: Path, verify: Verify) -> None:
    shapes = shapes_of(FULL, "4b") | {"layers.3.attention.wq.weight": (4096, 4095)}
    write_sparse(tree / FULL, shapes)
    shapes = shapes_of(COSMOS_1_0.discrete_decoder, "tiny")
    del shapes["decoder.conv_in.0.conv3d.bias"]
    write_sparse(tree / COSMOS_1_0.discrete_decoder, shapes)
    (tree / MANIFEST).unlink()  # else the hash speaks first
    code, _, problems = verify()
    assert code == 1
    assert problems == [
        f"{tree / FULL}: layers.3.attention.wq.weight: shape [4096, 4095], expected [4096, 4096]",
        f"{tree / COSMOS_1_0.discrete_decoder}: decoder.conv_in.0.conv3d.bias: missing",
    ]


def test_a_vision_tower_that_the_classifier_cannot_read_is_refused(tree: Path, verify: Verify) -> None:
    """It fits its own config.json, as another SigLIP would."""
    folder = tree / COSMOS_1_0.video_safety_encoder
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_size"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    write_sparse(folder / "model.safetensors", network_shapes(SiglipVisionModel(SiglipConfig(**config).vision_config)))
    (tree / MANIFEST).unlink()
    code, _, problems = verify()
    assert code == 1
    (problem,) = problems
    assert problem.startswith(f"{folder}/model.safetensors: post_layernorm.weight: shape [64], expected [")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"revisions": {}, "sources": {"a": 1}, "converted": {}}'])
def test_a_manifest_that_cannot_be_read_is_one_line(tree: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tree / MANIFEST).write_text(text)
    assert main(["checkpoints", "verify", str(tree)]) == 1
    assert (
        capsys.readouterr().err == f"{tree / MANIFEST}: not a manifest of this program; delete it and convert again\n"
    )


def test_no_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", "verify", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err == f"{tmp_path / 'nowhere'}: no such folder\n"


def test_serving_needs_every_file_of_its_deployment_and_no_other(tree: Path) -> None:
    for deployment in ("tiny", "tiny-video2world"):
        require(tree, DEPLOYMENTS[deployment])
    with pytest.raises(CheckpointError, match=r"4b cannot run: missing Cosmos-1\.0-Autoregressive-4B"):
        require(tree, DEPLOYMENTS["4b"])


GUARDRAIL_FILES = [
    f"{COSMOS_1_0.blocklist}/custom/words.txt",
    f"{COSMOS_1_0.blocklist}/exact_match/words.txt",
    *(f"{COSMOS_1_0.nltk_data}/{file}" for file in FILES),
    *(f"{COSMOS_1_0.text_safety}/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")),
    *(f"{COSMOS_1_0.video_safety_encoder}/{name}" for name in ("config.json", "model.safetensors")),
    COSMOS_1_0.video_safety,
    COSMOS_1_0.face_detector,
]


@pytest.mark.parametrize("file", GUARDRAIL_FILES)
def test_serving_needs_every_file_of_the_guardrails_and_names_it(tree: Path, file: str) -> None:
    (tree / file).unlink()
    with pytest.raises(CheckpointError) as caught:
        require(tree, DEPLOYMENTS["tiny-video2world"])
    named = file.replace("words.txt", "*").replace("tokenizer.json", "tokenizer.*")
    assert named in str(caught.value)


def test_serving_refuses_a_policy_that_is_none(tree: Path) -> None:
    (tree / COSMOS_1_0.policy).write_text("be nice")
    require(tree, DEPLOYMENTS["tiny"])
    with pytest.raises(CheckpointError, match=r"policy\.txt: describes no category"):
        require(tree, DEPLOYMENTS["tiny-video2world"])


def test_predict1_is_recognised_ready_and_named(tree: Path, verify: Verify) -> None:
    rename_to_predict1(tree, guardrails=PREDICT1.guardrails)
    code, rows, problems = verify()
    assert (code, problems) == (0, [])
    assert rows["tiny"] == rows["tiny-video2world"] == "ready (release predict1)"
    assert rows["4b"].startswith("missing Cosmos-Predict1-4B/model.pt; ")
    require(tree, DEPLOYMENTS["tiny-video2world"].of(PREDICT1))
    code, rows, _ = verify("--release", "cosmos-1.0", "--deployment", "tiny")
    assert code == 1
    assert rows["tiny"].startswith("missing Cosmos-1.0-Autoregressive-tiny/model.pt; ")


OLD_AND_NEW = {
    COSMOS_1_0.diffusion_decoder: PREDICT1.diffusion_decoder,
    COSMOS_1_0.discrete_tokenizer: PREDICT1.discrete_tokenizer,
    "Cosmos-1.0-Autoregressive-tiny": "Cosmos-Predict1-tiny",
    COSMOS_1_0.guardrails: PREDICT1.guardrails,
}


@pytest.mark.parametrize("old", OLD_AND_NEW)
def test_a_tree_of_both_releases_is_refused_in_one_line_that_names_release_and_file(
    tree: Path, capsys: pytest.CaptureFixture[str], old: str
) -> None:
    new = OLD_AND_NEW[old]
    (tree / old).rename(tree / new)
    for options, missing, other in (
        ([], old, f"release cosmos-1.0; {new} is of predict1"),
        (["--release", "predict1"], "Cosmos-", "release predict1; Cosmos-1.0-"),
    ):
        assert main(["serve", "--deployment", "tiny", "--checkpoint-dir", str(tree), *options]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"{tree}: tiny cannot run: missing {missing}")
        assert other in error
        assert error.count("\n") == 1
