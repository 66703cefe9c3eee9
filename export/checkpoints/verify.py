"""Checks a checkpoint directory: files, tensor names, shapes and SHA-256, for each deployment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from cosmos_triton.export.checkpoints.catalogue import Checkpoint, checkpoints_of, prompt_files
from cosmos_triton.export.checkpoints.manifest import Manifest, sha256_of
from cosmos_triton.export.checkpoints.released import MissingError
from cosmos_triton.guardrail.policy import Policy
from cosmos_triton.runtime.checkpoints import shape_problems, summary
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.mapped_file import SafetensorsFile
from cosmos_triton.runtime.releases import COSMOS_1_0, RELEASES, Release


@dataclass(frozen=True, slots=True)
class Finding:
    """The state of one converted file.

    fits: names of the deployments that can use it.
    lacking: why no deployment can.
    problem: what is wrong with an existing file.
    """

    checkpoint: Checkpoint
    fits: frozenset[str] = frozenset()
    lacking: str = ""
    problem: str = ""

    def lacking_for(self, deployment: Deployment) -> str:
        """What `deployment` lacks of this file; empty if nothing."""
        if deployment.name in self.fits or not self.checkpoint.needed_by(deployment):
            return ""
        return f"{self.checkpoint.target} (here of another size)" if self.fits else self.lacking


def verify(directory: Path, release: Release = COSMOS_1_0, *, deployment: str | None = None) -> bool:
    """Print which deployments of a release are ready and what the others lack, then what is broken, a line each.

    Returns:
        Whether no existing file is broken and `deployment` is ready; without one, whether any deployment is.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder")
    checkpoints = checkpoints_of(release)
    damaged = _damaged(Manifest.read(directory), {checkpoint.target for checkpoint in checkpoints})
    findings = [_examine(checkpoint, directory, damaged) for checkpoint in checkpoints]
    others = _others(directory, release)
    note = f" (release {release.name}{others})" if release != COSMOS_1_0 or others else ""
    ready = set()
    for candidate in (known.of(release) for known in DEPLOYMENTS.values()):
        lacking = _lacking(findings, directory, candidate)
        if not lacking:
            ready.add(candidate.name)
        if deployment in (None, candidate.name):
            shown = len(lacking) if deployment else 2
            print(f"{candidate.name:18}{f'missing {summary(lacking, shown=shown)}' if lacking else 'ready'}{note}")
    problems = [finding.problem for finding in findings if finding.problem]
    for problem in problems:
        print(problem)
    return not problems and (deployment in ready if deployment else bool(ready))


def require(directory: Path, deployment: Deployment) -> None:
    """Raises CheckpointError, naming what is missing or does not fit, unless `deployment` can run from `directory`.

    Only names and shapes are checked, not hashes, so that the time does not depend on the model's size.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder")
    release = deployment.release
    needed = [checkpoint for checkpoint in checkpoints_of(release) if checkpoint.needed_by(deployment)]
    findings = [_examine(checkpoint, directory, {}) for checkpoint in needed]
    lacking = _lacking(findings, directory, deployment)
    if lacking:
        why = "".join(f"; {finding.problem}" for finding in findings if finding.problem)
        raise CheckpointError(
            f"{directory}: {deployment.name} cannot run: missing {summary(lacking, shown=3)}{why} "
            f"(release {release.name}{_others(directory, release)})"
        )
    if deployment.is_video2world:
        Policy.read(directory / release.policy)


def _lacking(findings: list[Finding], directory: Path, deployment: Deployment) -> list[str]:
    lacking = [text for finding in findings if (text := finding.lacking_for(deployment))]
    if deployment.is_video2world:
        lacking += [
            pattern
            for pattern in prompt_files(deployment.release)
            if not any(map(Path.is_file, directory.glob(pattern)))
        ]
    return lacking


def _others(directory: Path, release: Release) -> str:
    """A phrase that names folders of other releases, since a deployment takes all of its files from one."""
    folders = {other.name: other.folders_in(directory) for other in RELEASES.values() if other != release}
    return "".join(f"; {found[0]} is of {name}, see --release" for name, found in folders.items() if found)


def _examine(checkpoint: Checkpoint, directory: Path, damaged: dict[str, str]) -> Finding:
    target = checkpoint.target
    if not (directory / target).is_file():
        try:
            checkpoint.find(directory)
        except MissingError as missing:
            return Finding(checkpoint, lacking=str(missing))
        except CheckpointError as error:
            return Finding(checkpoint, lacking=target, problem=str(error))
        return Finding(checkpoint, lacking=f"{target} (not converted yet)")
    try:
        shapes = SafetensorsFile(directory / target).shapes
        problems = {name: shape_problems(shapes, expected) for name, expected in checkpoint.variants(directory).items()}
    except CheckpointError as error:
        return Finding(checkpoint, lacking=f"{target} (broken)", problem=str(error))
    fits = frozenset(name for name, found in problems.items() if not found)
    if target in damaged or not fits:
        problem = damaged.get(target) or f"{directory / target}: {summary(min(problems.values(), key=len))}"
        return Finding(checkpoint, lacking=f"{target} (broken)", problem=problem)
    return Finding(checkpoint, fits=fits)


def _damaged(manifest: Manifest, targets: set[str]) -> dict[str, str]:
    """Those of the converted files `targets` whose SHA-256 is not the recorded one, and the message for each."""
    directory, recorded = manifest.directory, manifest.converted
    present = [target for target in recorded if target in targets and (directory / target).is_file()]
    size = sum((directory / target).stat().st_size for target in present)
    damaged = {}
    with tqdm(total=size, desc="SHA-256", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for target in present:
            if sha256_of(directory / target, bar.update) != recorded[target].sha256:
                damaged[target] = (
                    f"{directory / target}: its SHA-256 is not the one in the manifest: damaged or replaced"
                )
    return damaged
