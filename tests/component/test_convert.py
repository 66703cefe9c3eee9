"""Released files to safetensors: the same bits, no code run, little memory, and never half a file."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM, SiglipVisionModel

from cosmos_triton.cli.main import main
from cosmos_triton.export.checkpoints import convert as convert_module
from cosmos_triton.export.checkpoints.catalogue import checkpoints_of
from cosmos_triton.export.checkpoints.convert import convert
from cosmos_triton.export.checkpoints.manifest import NAME as MANIFEST
from cosmos_triton.export.checkpoints.safetensors_writer import write_safetensors
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.releases import COSMOS_1_0, PREDICT1
from support.paths import RELEASED_MANIFESTS
from support.released_tree import DIFFUSION, GUARDRAIL, ReleasedTree, rename_to_predict1, write_released_tree

TINY = "Cosmos-1.0-Autoregressive-tiny"
ADAPTER = f"{GUARDRAIL}/aegis/models--nvidia--Aegis-AI-Content-Safety-LlamaGuard-Defensive-1.0/snapshots/def"
SIGLIP = f"{GUARDRAIL}/video_content_safety_filter/models--google--siglip-so400m-patch14-384/snapshots/abc"
LLAMA_GUARD = "meta-llama/LlamaGuard-7b"

# Released file -> converted file.
CONVERTED = {
    f"{TINY}/model.pt": f"{TINY}/model.safetensors",
    f"{TINY}-Video2World/model.pt": f"{TINY}-Video2World/model.safetensors",
    "Cosmos-1.0-Tokenizer-DV8x16x16/encoder.jit": COSMOS_1_0.discrete_encoder,
    "Cosmos-1.0-Tokenizer-DV8x16x16/decoder.jit": COSMOS_1_0.discrete_decoder,
    "Cosmos-1.0-Tokenizer-CV8x8x8/encoder.jit": COSMOS_1_0.continuous_encoder,
    "Cosmos-1.0-Tokenizer-CV8x8x8/decoder.jit": COSMOS_1_0.continuous_decoder,
    "Cosmos-1.0-Tokenizer-CV8x8x8/mean_std.pt": COSMOS_1_0.latent_statistics,
    f"{DIFFUSION}/model.pt": COSMOS_1_0.diffusion_network,
    f"{DIFFUSION}/aux_vars.pt": COSMOS_1_0.generic_prompt,
    f"{GUARDRAIL}/video_content_safety_filter/safety_filter.pt": COSMOS_1_0.video_safety,
    f"{GUARDRAIL}/face_blur_filter/Resnet50_Final.pth": COSMOS_1_0.face_detector,
    f"{SIGLIP}/model.safetensors": f"{COSMOS_1_0.video_safety_encoder}/model.safetensors",
    "google-t5/t5-11b/pytorch_model.bin": f"{COSMOS_1_0.t5_encoder}/model.safetensors",
    "merged": f"{COSMOS_1_0.text_safety}/model.safetensors",
}

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> ReleasedTree:
    return write_released_tree(tmp_path_factory.mktemp("released"))


@pytest.fixture
def tree(released: ReleasedTree, tmp_path: Path) -> ReleasedTree:
    """A copy that a test may change."""
    directory = tmp_path / "checkpoints"
    shutil.copytree(released.directory, directory)
    return ReleasedTree(directory, released.weights)


def only(tree: ReleasedTree, *folders: str) -> Path:
    """The tree with these folders alone, for tests that look at one file."""
    for folder in tree.directory.iterdir():
        if folder.name not in folders:
            shutil.rmtree(folder)
    return tree.directory


def test_every_converted_file_holds_exactly_the_networks_tensors(tree: ReleasedTree) -> None:
    assert convert(tree.directory) == []
    assert tree.weights.keys() == CONVERTED.keys()
    targets = {checkpoint.target for checkpoint in checkpoints_of(COSMOS_1_0)}
    assert {target for target in targets if "tiny" in target} < set(CONVERTED.values())
    for source, target in CONVERTED.items():
        found, expected = load_file(tree.directory / target), tree.weights[source]
        assert found.keys() == expected.keys(), target
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype, f"{target}: {name}"
            assert torch.equal(found[name], tensor), f"{target}: {name}"


def test_the_manifest_holds_what_is_on_disk(tree: ReleasedTree) -> None:
    convert(tree.directory)
    manifest = json.loads((tree.directory / MANIFEST).read_text())
    assert set(manifest["converted"]) == set(CONVERTED.values())
    for name, record in manifest["converted"].items():
        content = (tree.directory / name).read_bytes()
        assert (record["sha256"], record["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
        for source, sha256 in record["sources"].items():
            assert hashlib.sha256((tree.directory / source).read_bytes()).hexdigest() == sha256


def test_a_second_run_does_nothing_and_says_so(tree: ReleasedTree, capsys: pytest.CaptureFixture[str]) -> None:
    convert(tree.directory)
    before = {path: path.stat().st_mtime_ns for path in tree.directory.rglob("*.safetensors")}
    capsys.readouterr()
    assert convert(tree.directory) == []
    assert capsys.readouterr().out == f"{len(CONVERTED)} up to date, nothing to do\n"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_only_what_changed_is_converted_again(tree: ReleasedTree, capsys: pytest.CaptureFixture[str]) -> None:
    convert(tree.directory)
    changed = tree.directory / TINY / "model.pt"
    state = {name: tensor + 1 for name, tensor in tree.weights[f"{TINY}/model.pt"].items()}
    torch.save(state, changed)
    touched = tree.directory / f"{DIFFUSION}/model.pt"
    os.utime(touched, ns=(1, 1))  # copied elsewhere, say: the same content
    capsys.readouterr()
    convert(tree.directory)
    assert capsys.readouterr().out.endswith(f"1 converted, {len(CONVERTED) - 1} up to date\n")
    assert torch.equal(load_file(changed.with_suffix(".safetensors"))["norm.weight"], state["norm.weight"])


def test_a_converted_file_of_the_wrong_length_is_made_again(tree: ReleasedTree) -> None:
    directory = only(tree, TINY)
    convert(directory)
    target = directory / TINY / "model.safetensors"
    whole = target.read_bytes()
    target.write_bytes(whole[:-1])
    convert(directory)
    assert target.read_bytes() == whole


def test_sources_may_be_taken_away_after_conversion(tree: ReleasedTree, capsys: pytest.CaptureFixture[str]) -> None:
    directory = only(tree, TINY)
    convert(directory)
    (directory / TINY / "model.pt").unlink()
    capsys.readouterr()
    assert convert(directory) == []
    assert capsys.readouterr().out == "1 up to date, nothing to do\n"


def test_an_interrupted_conversion_leaves_no_file(tree: ReleasedTree, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = only(tree, TINY)
    target = directory / TINY / "model.safetensors"
    seen = []

    def interrupt(_: int) -> None:
        seen.extend(path.name for path in target.parent.iterdir())
        raise KeyboardInterrupt

    tensors = tree.weights[f"{TINY}/model.pt"]
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(target, tensors, value=lambda _, tensor: tensor, progress=interrupt)
    assert any(name.startswith(target.name) for name in seen)  # it was being written
    assert [path.name for path in target.parent.iterdir()] == ["model.pt"]


def test_one_bad_file_does_not_stop_the_others(tree: ReleasedTree, capsys: pytest.CaptureFixture[str]) -> None:
    directory = only(tree, TINY, f"{TINY}-Video2World", DIFFUSION)
    state = tree.weights[f"{TINY}/model.pt"] | {"layers.1.attention.wq.weight": torch.zeros(64, 63)}
    torch.save(state, directory / TINY / "model.pt")
    (directory / DIFFUSION / "aux_vars.pt").write_bytes(b"no checkpoint")
    assert main(["checkpoints", "convert", str(directory)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"{directory}/{TINY}/model.pt: layers.1.attention.wq.weight: shape [64, 63], expected [64, 64]",
        f"{directory}/{DIFFUSION}/aux_vars.pt: not a whole torch file: invalid load key, 'n'.",
    ]
    assert not (directory / TINY / "model.safetensors").exists()
    assert (directory / f"{TINY}-Video2World" / "model.safetensors").exists()
    assert (directory / COSMOS_1_0.diffusion_network).exists()


@pytest.mark.parametrize(("name", "message"), [("nowhere", "no such folder"), (".", "no released files")])
def test_nothing_to_convert_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    assert main(["checkpoints", "convert", str(tmp_path / name)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_full_disk_is_one_line(
    tree: ReleasedTree, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = only(tree, TINY)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    assert main(["checkpoints", "convert", str(directory)]) == 1
    error = capsys.readouterr().err
    assert re.fullmatch(rf"{re.escape(str(directory / TINY))}: 10\.0B free, 4\d\dkB needed\n", error)


def test_ctrl_c_ends_the_command_quietly(
    tree: ReleasedTree, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, "write_safetensors", interrupted)
    assert main(["checkpoints", "convert", str(tree.directory)]) == 130
    assert capsys.readouterr().err == ""


def test_the_networks_have_the_keys_and_shapes_of_the_released_files() -> None:
    """The full-size networks, against a list made from the public implementation."""
    released = json.loads(gzip.decompress(RELEASED_MANIFESTS.read_bytes()))["files"]
    unused = ("net.pos_embedder.seq", "logvar.", "context_mask")
    checked = 0
    for checkpoint in checkpoints_of(COSMOS_1_0):
        stem = checkpoint.target.removesuffix(".safetensors").replace("t5-11b/encoder/model", "t5-11b (encoder part)")
        name = next((name for name in released if name.startswith(stem)), None)
        if name is None or name.endswith("mean_std.pt"):
            continue
        expected = {
            re.sub(r"^(model|net|module)\.", "", key): tuple(shape)
            for key, (shape, _) in released[name]["keys"].items()
            if not key.startswith(unused)
        }
        full_size = next(shapes for user, shapes in checkpoint.variants(Path("nowhere")).items() if "tiny" not in user)
        assert full_size == expected, checkpoint.target
        checked += 1
    assert checked == len(released) - 1


# --- Hugging Face folders ---


def test_transformers_loads_the_merged_guard_and_the_vision_tower_without_a_missing_weight(tree: ReleasedTree) -> None:
    convert(tree.directory)
    for model, folder in (
        (LlamaForCausalLM, COSMOS_1_0.text_safety),
        (SiglipVisionModel, COSMOS_1_0.video_safety_encoder),
    ):
        _, info = model.from_pretrained(
            tree.directory / folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        assert not any(info.values()), (folder, info)
    assert (tree.directory / COSMOS_1_0.text_safety / "tokenizer.json").is_file()
    assert (tree.directory / COSMOS_1_0.t5_encoder / "tokenizer.json").is_file()


def test_the_base_model_may_be_pickles_in_shards(tree: ReleasedTree) -> None:
    convert(tree.directory)
    expected = (tree.directory / COSMOS_1_0.text_safety / "model.safetensors").read_bytes()
    folder = tree.directory / LLAMA_GUARD
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for shard in set(index["weight_map"].values()):
        torch.save(
            load_file(folder / shard), folder / shard.replace("model-", "pytorch_model-").replace("safetensors", "bin")
        )
        (folder / shard).unlink()
    weight_map = {
        name: shard.replace("model-", "pytorch_model-").replace("safetensors", "bin")
        for name, shard in index["weight_map"].items()
    }
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert convert(tree.directory) == []
    assert (tree.directory / COSMOS_1_0.text_safety / "model.safetensors").read_bytes() == expected


def test_a_missing_shard_is_named(tree: ReleasedTree) -> None:
    shard = sorted((tree.directory / LLAMA_GUARD).glob("model-*"))[2]
    shard.unlink()
    assert convert(tree.directory) == [f"{shard}: no such file, and model.safetensors.index.json names it"]


def test_a_hub_cache_with_two_snapshots_follows_its_ref(tree: ReleasedTree) -> None:
    snapshot = tree.directory / ADAPTER
    shutil.copytree(snapshot, snapshot.with_name("old"))
    (problem,) = convert(tree.directory)
    assert "2 snapshots, def, old: keep one" in problem
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("def\n")
    assert convert(tree.directory) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("bias", "all"),
        ("fan_in_fan_out", True),
        ("modules_to_save", ["lm_head"]),
        ("use_dora", True),
        ("use_rslora", True),
        ("rank_pattern", {"q_proj": 4}),
        ("a_setting_of_next_year", 3),
        ("init_lora_weights", "pissa"),
        ("peft_type", "IA3"),
        ("target_modules", ["q_proj", "v_proj", "k_proj"]),
        ("r", 3),
    ],
)
def test_adapters_that_a_plain_merge_would_get_wrong_are_refused(
    tree: ReleasedTree, setting: str, value: object
) -> None:
    path = tree.directory / ADAPTER / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    problems = convert(only(tree, LLAMA_GUARD.split("/")[0], GUARDRAIL))
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}: ")
    assert not (tree.directory / COSMOS_1_0.text_safety / "model.safetensors").exists()


def test_an_adapter_for_another_model_is_refused(tree: ReleasedTree) -> None:
    path = tree.directory / ADAPTER / "adapter_model.safetensors"
    save_file(
        {name: torch.cat([tensor, tensor]) if "lora_B" in name else tensor for name, tensor in load_file(path).items()},
        path,
    )
    (problem,) = convert(tree.directory)
    assert "adapts model.layers.0.self_attn.q_proj.weight of shape [32, 16], the model has no such weight" in problem


def test_wordnet_is_unpacked(tree: ReleasedTree) -> None:
    corpora = tree.directory / COSMOS_1_0.nltk_data / "corpora"
    corpora.mkdir(parents=True)
    (corpora / "wordnet.zip").write_text("no archive")
    assert convert(tree.directory) == [f"{corpora}/wordnet.zip: File is not a zip file"]
    with zipfile.ZipFile(corpora / "wordnet.zip", "w") as archive:
        archive.writestr("wordnet/index.noun", "words")
    assert convert(tree.directory) == []
    assert (corpora / "wordnet" / "index.noun").read_text() == "words"


# --- memory ---

MEASURE = """
import sys, threading
from pathlib import Path
from cosmos_triton.export.checkpoints.safetensors_writer import write_safetensors
from cosmos_triton.export.checkpoints.torch_files import read_torch_file

def anonymous_memory():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

source, target = map(Path, sys.argv[1:])
before = peak = anonymous_memory()
done = threading.Event()

def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, anonymous_memory())

watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
write_safetensors(target, read_torch_file(source), value=lambda _, tensor: tensor, progress=lambda _: None)
done.set()
watcher.join()
print(peak - before)
"""


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_conversion_needs_memory_for_no_more_than_a_tensor(tmp_path: Path, is_zip: bool) -> None:
    """256 MB of weights in tensors of 32 MB, in a process of its own; one of them is transposed, hence copied."""
    source, target = tmp_path / "model.pt", tmp_path / "model.safetensors"
    count, side = 8, 4096
    zeros = map_sparse(tmp_path / "zeros", 2 * count * side * side)
    tensors = dict(enumerate(zeros.view(count, side, side).unbind()))
    tensors[5] = tensors[5].t()
    torch.save(tensors, source, _use_new_zipfile_serialization=is_zip)
    run = subprocess.run([sys.executable, "-c", MEASURE, source, target], capture_output=True, text=True, check=True)
    assert target.stat().st_size > 256 * 2**20
    assert int(run.stdout) < 64 * 2**20


def map_sparse(path: Path, size: int) -> Tensor:
    """A bf16 vector of zeros over a file that takes no room on disk."""
    with path.open("wb") as file:
        file.truncate(size)
    return torch.from_file(str(path), shared=True, size=size // 2, dtype=torch.bfloat16)


@pytest.mark.parametrize("guardrails", ["Cosmos-Guardrail1", "Cosmos-Predict1-tiny/guardrail"])
def test_a_tree_of_predict1_is_converted_wherever_its_guardrails_are(tree: ReleasedTree, guardrails: str) -> None:
    rename_to_predict1(tree.directory, guardrails=guardrails)
    corpora = tree.directory / guardrails / "blocklist/nltk_data/corpora"
    corpora.mkdir(parents=True)
    with zipfile.ZipFile(corpora / "wordnet.zip", "w") as archive:
        archive.writestr("wordnet/index.noun", "words")
    assert main(["checkpoints", "convert", str(tree.directory)]) == 0
    users = [deployment.of(PREDICT1) for deployment in DEPLOYMENTS.values() if deployment.is_tiny]
    for checkpoint in checkpoints_of(PREDICT1):
        if any(checkpoint.needed_by(deployment) for deployment in users):
            assert (tree.directory / checkpoint.target).is_file(), checkpoint.target
    assert (tree.directory / PREDICT1.blocklist / "custom/words.txt").read_text() == "word\n"
    assert (tree.directory / PREDICT1.nltk_data / "corpora/wordnet/index.noun").read_text() == "words"


def test_word_lists_that_the_operator_has_changed_stay(tree: ReleasedTree) -> None:
    rename_to_predict1(tree.directory, guardrails="Cosmos-Predict1-tiny/guardrail")
    words = tree.directory / PREDICT1.blocklist / "custom/words.txt"
    words.parent.mkdir(parents=True)
    words.write_text("other\n")
    convert(only(tree, "Cosmos-Predict1-tiny", PREDICT1.guardrails), PREDICT1)
    assert words.read_text() == "other\n"
