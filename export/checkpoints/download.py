"""Downloads released files from the Hugging Face hub, after a check of every repository.

An interrupted download resumes where it stopped, in a later run too; huggingface_hub itself deletes partial files when
a process ends. Every run downloads the commits that the first run resolved.
"""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]
from tqdm import tqdm

from cosmos_triton.export.checkpoints.hub_errors import HUB_ERRORS, can_pass, explain
from cosmos_triton.export.checkpoints.hub_repositories import MD5, HubRepository, hub_repositories
from cosmos_triton.export.checkpoints.manifest import Manifest, hash_file
from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.releases import COSMOS_1_0

MAX_ATTEMPTS = 5  # in a row without a new byte
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the hub and its destination.

    sha256: None for small files, which the hub keeps as git blobs.
    md5: as published with the release; None where it is not.
    """

    repository: str
    url: str
    path: Path
    size: int
    git_sha1: str
    sha256: str | None
    md5: str | None

    @property
    def partial(self) -> Path:
        """The partial file. Its name has the content's hash, so that a part of another version is not resumed."""
        return self.path.with_name(f"{self.path.name}.{self.git_sha1[:12]}.partial")

    def missing_bytes(self) -> int:
        return self.size - (self.partial.stat().st_size if self.partial.is_file() else 0)


@dataclass(frozen=True, slots=True)
class DownloadPlan:
    """The files to download from one repository."""

    repository: HubRepository
    commit: str
    files: list[RemoteFile]


def download(directory: Path, deployment: Deployment) -> None:
    """Download the released files of `deployment`, of its release, into `directory`.

    Raises:
        CheckpointError: before anything is downloaded, a repository is unreachable or not open to this user, or the
            disk is too small. Later, the connection failed repeatedly or a hash differs; the next run resumes.
    """
    manifest = Manifest.read(directory)
    plans = _preflight(directory, deployment, manifest)
    wanted = [file for plan in plans for file in plan.files if not _is_here(file, manifest)]
    _check_free_space(directory, sum(file.missing_bytes() for file in wanted))

    directory.mkdir(parents=True, exist_ok=True)
    manifest.revisions |= {plan.repository.name: plan.commit for plan in plans}
    manifest.write()
    size = sum(file.size for file in wanted)
    done = size - sum(file.missing_bytes() for file in wanted)
    with tqdm(total=size, initial=done, unit="B", unit_scale=True, disable=None) as bar:
        for file in wanted:
            bar.set_description(file.path.name)
            manifest.record_source(file.path, _fetch(file, bar))
            manifest.write()
    option = "" if deployment.release == COSMOS_1_0 else f" --release {deployment.release.name}"
    print(f"{len(wanted)} files fetched, {_bytes(size)}; next: cosmos-triton checkpoints convert {directory}{option}")


def _preflight(directory: Path, deployment: Deployment, manifest: Manifest) -> list[DownloadPlan]:
    """What to download from every repository. Raises CheckpointError with a line for each that cannot be used."""
    plans, problems = [], []
    md5 = {} if deployment.is_tiny else MD5[deployment.release.name]  # nobody has published a tiny file
    for repository in hub_repositories(deployment.release):
        if not repository.needed_by(deployment):
            continue
        try:
            plan = _plan(repository, directory, manifest, md5)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        size = sum(file.size for file in plan.files)
        print(f"{plan.repository.name}: {len(plan.files)} files, {_bytes(size)}, commit {plan.commit}")
        plans.append(plan)
    if problems:
        raise CheckpointError("\n".join(dict.fromkeys(problems)))  # two plans may need the same repository
    return plans


def _plan(repository: HubRepository, directory: Path, manifest: Manifest, md5: Mapping[str, str]) -> DownloadPlan:
    """What to download from a repository, or from its alternative. The message of a CheckpointError begins with the
    repository's name."""
    try:
        return _plan_of(repository, directory, manifest, md5)
    except _IncompleteError as error:
        if repository.alternative:
            return _plan(repository.alternative, directory, manifest, md5)
        raise CheckpointError(f"{repository.name}: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{repository.name}: {error}") from error


class _IncompleteError(CheckpointError):
    """A repository does not have what is wanted of it."""


def _plan_of(repository: HubRepository, directory: Path, manifest: Manifest, md5: Mapping[str, str]) -> DownloadPlan:
    name = repository.name
    prefix = f"{repository.subfolder}/" if repository.subfolder else ""
    patterns = [prefix + pattern for pattern in repository.wanted]
    try:
        revision = manifest.revisions.get(name, repository.revision)
        info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        wanted = _wanted(list(siblings), patterns)
        is_partial = any(not fnmatch.filter(wanted, pattern) for pattern in patterns)
        if not info.sha or not wanted or (repository.alternative and is_partial):
            raise _IncompleteError(f"it has none of {', '.join(patterns)}")
        # The list of files may be public where the files are not: request one.
        HfApi().get_hf_file_metadata(url=hf_hub_url(name, wanted[0], revision=info.sha), timeout=TIMEOUT_S)
    except HUB_ERRORS as error:
        raise CheckpointError(explain(error, name)) from error

    files = []
    for path in wanted:
        target = f"{repository.folder}/{path.removeprefix(prefix)}"
        file = RemoteFile(
            repository=name,
            url=hf_hub_url(name, path, revision=info.sha),
            path=directory / target,
            size=siblings[path].size or 0,
            git_sha1=siblings[path].blob_id or "",
            sha256=lfs.sha256 if (lfs := siblings[path].lfs) else None,
            md5=md5.get(path if prefix else target),
        )
        files.append(file)
    return DownloadPlan(repository, info.sha, files)


def _wanted(names: list[str], patterns: Sequence[str]) -> list[str]:
    """Names that match a pattern; of a model in safetensors and in pickles, the safetensors."""
    safe = (name for name in names if ".." not in Path(name).parts and not Path(name).is_absolute())
    found = sorted(name for name in safe if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
    if any(name.endswith(".safetensors") for name in found):
        found = [name for name in found if ".bin" not in name]
    return found


def _is_here(file: RemoteFile, manifest: Manifest) -> bool:
    """Whether the file need not be downloaded: it exists, or it was deleted after its conversion."""
    name = file.path.relative_to(manifest.directory).as_posix()
    recorded = manifest.sources.get(name)
    if not file.path.is_file():
        targets = [target for target, record in manifest.converted.items() if name in record.sources]
        is_same = recorded is not None and file.sha256 is not None and recorded.sha256 == file.sha256
        return is_same and bool(targets) and all((manifest.directory / target).is_file() for target in targets)
    if file.path.stat().st_size != file.size:
        return False
    if recorded is not None and recorded.describes(file.path) and file.sha256 is not None:
        return recorded.sha256 == file.sha256
    sha256, problem = _check_content(file, file.path)
    if not problem:
        manifest.record_source(file.path, sha256)
    return not problem


def _check_content(file: RemoteFile, path: Path) -> tuple[str, str]:
    """SHA-256 of the file at `path`, and what is wrong with it: not what the hub names, or what was published."""
    md5 = hashlib.md5(usedforsecurity=False)
    with tqdm(
        total=file.size, desc=f"SHA-256 {path.name}", unit="B", unit_scale=True, leave=False, disable=None
    ) as bar:
        sha256 = hash_file(path, hashlib.sha256(), *([md5] if file.md5 else []), progress=bar.update)
    if file.sha256 is not None:
        is_intact = sha256 == file.sha256
    else:
        content = path.read_bytes()  # small: large files have a SHA-256
        git_sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        is_intact = file.git_sha1 in ("", git_sha1)  # mirrors of the hub may omit it
    if not is_intact:
        return sha256, "what arrived is not what the hub names; run again to fetch it anew"
    if file.md5 and md5.hexdigest() != file.md5:
        return sha256, f"MD5: value {md5.hexdigest()}; accepted: {file.md5}, as published"
    return sha256, ""


def _check_free_space(directory: Path, size: int) -> None:
    folder = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    free = shutil.disk_usage(folder).free
    if free < size:
        raise CheckpointError(f"{directory}: {_bytes(size)} to fetch, {_bytes(free)} free")


def _fetch(file: RemoteFile, bar: tqdm[Any]) -> str:
    """Download the file, resuming an earlier attempt. Returns its SHA-256."""
    file.path.parent.mkdir(parents=True, exist_ok=True)
    file.partial.touch()
    attempts = 0
    while (missing := file.missing_bytes()) > 0:
        try:
            _stream(file, bar)
        except (httpx2.TransportError, HfHubHTTPError) as error:
            attempts = attempts + 1 if file.missing_bytes() == missing else 0
            if attempts == MAX_ATTEMPTS or not can_pass(error):
                raise CheckpointError(
                    f"{file.url}: {explain(error, file.repository)}; run again to continue"
                ) from error
            time.sleep(attempts)
        except OSError as error:  # such as a full disk
            raise CheckpointError(f"{file.path}: {error.strerror}; run again to continue") from error
    sha256, problem = _check_content(file, file.partial)
    if problem:
        file.partial.unlink()
        raise CheckpointError(f"{file.url}: {problem}")
    file.partial.replace(file.path)
    return sha256


def _stream(file: RemoteFile, bar: tqdm[Any]) -> None:
    have = file.size - file.missing_bytes()
    headers = {**build_hf_headers(), "Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    with get_session().stream("GET", file.url, headers=headers, timeout=TIMEOUT_S) as response:
        hf_raise_for_status(response)
        if response.status_code != httpx2.codes.PARTIAL_CONTENT and have:  # the server ignored the range
            bar.update(-have)
            file.partial.write_bytes(b"")
        with file.partial.open("ab") as partial:
            for chunk in response.iter_bytes():
                partial.write(chunk)
                bar.update(len(chunk))


def _bytes(size: int) -> str:
    return tqdm.format_sizeof(size, "B")
