"""Converts released files to safetensors beside them.

Tensors are copied from the memory-mapped source to the destination one at a time, so memory holds one tensor, whatever
the file's size. Only new and changed files are converted, by the hashes in the manifest.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from cosmos_triton.export.checkpoints.catalogue import Checkpoint, checkpoints_of, wordnet_of
from cosmos_triton.export.checkpoints.manifest import ConvertedRecord, Manifest, replace_file
from cosmos_triton.export.checkpoints.released import MissingError, ReleasedFiles
from cosmos_triton.export.checkpoints.safetensors_writer import write_safetensors
from cosmos_triton.runtime.checkpoints import shape_problems, summary
from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.mapped_file import Shapes
from cosmos_triton.runtime.releases import COSMOS_1_0, Release

# Prefixes of tensor names in released files: of an outer dictionary, or of a module that contained the network.
WRAPPERS = {"state_dict", "model", "module", "net", "vision_model"}


def convert(directory: Path, release: Release = COSMOS_1_0) -> list[str]:
    """Convert new and changed files of a release, and print what was done.

    Returns:
        A line for each file that could not be converted.

    Raises:
        CheckpointError: there is nothing of the release in `directory`.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder")
    manifest = Manifest.read(directory)
    problems, converted, up_to_date = [], 0, 0
    for checkpoint in checkpoints_of(release):
        try:
            if _convert_if_changed(checkpoint, checkpoint.find(directory), manifest):
                converted += 1
            else:
                up_to_date += 1
        except MissingError:  # not downloaded, or deleted after the conversion
            up_to_date += (directory / checkpoint.target).is_file()
        except CheckpointError as error:
            problems.append(str(error))
    _copy_word_lists(directory, release)
    try:
        _unpack_wordnet(directory / wordnet_of(release))
    except zipfile.BadZipFile as error:
        problems.append(f"{directory / wordnet_of(release)}.zip: {error}")
    if not (converted or up_to_date or problems):
        raise CheckpointError(
            f"{directory}: no released files of {release.name}; `cosmos-triton checkpoints download` fetches them"
        )
    outcome = {"converted": converted, "up to date": up_to_date, "failed": len(problems)}
    text = ", ".join(f"{count} {what}" for what, count in outcome.items() if count)
    print(text if converted or problems else f"{text}, nothing to do")
    return problems


def _convert_if_changed(checkpoint: Checkpoint, released: ReleasedFiles, manifest: Manifest) -> bool:
    directory = manifest.directory
    source_size = sum(path.stat().st_size for path in released.files)
    with tqdm(total=source_size, desc=checkpoint.target, unit="B", unit_scale=True, leave=False, disable=None) as bar:
        sources = {
            path.relative_to(directory).as_posix(): manifest.source_sha256(path, bar.update) for path in released.files
        }
        if _is_up_to_date(manifest, checkpoint.target, sources):
            manifest.write()
            return False
        target = directory / checkpoint.target
        target.parent.mkdir(parents=True, exist_ok=True)
        for path in released.companions:
            replace_file(target.parent / path.name, path.read_bytes())
        weights = released.read()
        tensors = _tensors_of_network(checkpoint, released, weights.tensors, directory)
        size = sum(tensor.nbytes for tensor in tensors.values())
        bar.total = source_size + size
        _check_free_space(target.parent, size)
        sha256 = write_safetensors(target, tensors, value=weights.merge, progress=bar.update)
    manifest.converted[checkpoint.target] = ConvertedRecord(sha256, target.stat().st_size, sources)
    manifest.write()
    left_out = len(weights.tensors) - len(tensors)
    print(f"{checkpoint.target}: {len(tensors)} tensors, {tqdm.format_sizeof(size, 'B')}; {left_out} left out")
    return True


def _is_up_to_date(manifest: Manifest, target: str, sources: dict[str, str]) -> bool:
    record, path = manifest.converted.get(target), manifest.directory / target
    return record is not None and record.sources == sources and path.is_file() and path.stat().st_size == record.bytes


def _tensors_of_network(
    checkpoint: Checkpoint, released: ReleasedFiles, tensors: Mapping[str, Tensor], directory: Path
) -> dict[str, Tensor]:
    """The tensors of the network that the file fits, by the network's names.

    Raises:
        CheckpointError: it fits the network of no deployment.
    """
    attempts = []
    for expected in checkpoint.variants(directory).values():
        chosen = select(tensors, expected)
        problems = shape_problems({name: tuple(tensor.shape) for name, tensor in chosen.items()}, expected)
        if not problems:
            return chosen
        attempts.append(problems)
    raise CheckpointError(f"{released.files[0]}: {summary(min(attempts, key=len))}")


def select(tensors: Mapping[str, Tensor], expected: Shapes) -> dict[str, Tensor]:
    """The tensors that a network expects, by its names: as they are, or without wrapper prefixes."""
    chosen = {}
    for name, tensor in tensors.items():
        own_name = name
        while own_name not in expected and own_name.partition(".")[0] in WRAPPERS:
            own_name = own_name.partition(".")[2]
        if own_name in expected:
            chosen[own_name] = tensor
    return chosen


def _copy_word_lists(directory: Path, release: Release) -> None:
    """The blocklist reads its files as they were released, from the folder of the guardrails alone."""
    target = directory / release.blocklist
    found = [directory / folder / target.name for folder in release.guardrail_folders(directory)]
    source = next((folder for folder in found if folder.is_dir()), target)
    if source == target:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        shutil.copytree(source, Path(scratch) / target.name).replace(target)


def _unpack_wordnet(folder: Path) -> None:
    """NLTK distributes WordNet as an archive; the blocklist reads the unpacked files."""
    archive = folder.with_suffix(".zip")
    if folder.exists() or not archive.is_file():
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as unpacked, zipfile.ZipFile(archive) as packed:
        packed.extractall(unpacked)
        (Path(unpacked) / folder.name).replace(folder)


def _check_free_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise CheckpointError(f"{folder}: {tqdm.format_sizeof(free, 'B')} free, {tqdm.format_sizeof(size, 'B')} needed")
