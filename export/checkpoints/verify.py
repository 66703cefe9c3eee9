"""Checks a checkpoint directory: files, tensor names, shapes and SHA-256, for each deployment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from cosmos_triton.export.checkpoints.catalogue import CHECKPOINTS, PROMPT_FILES, Checkpoint
from cosmos_triton.export.checkpoints.manifest import Manifest, sha256_of
from cosmos_triton.export.checkpoints.released import MissingError
from cosmos_triton.guardrail.policy import Policy
from cosmos_triton.runtime.checkpoints import POLICY, shape_problems, summary
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.mapped_file import SafetensorsFile


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


def verify(directory: Path, *, deployment: str | None = None) -> bool:
    """Print which deployments are ready and what the others lack, then what is broken, a line each.

    Returns:
        Whether no existing file is broken and `deployment` is ready; without one, whether any deployment is.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder")
    manifest = Manifest.read(directory)
    damaged = _damaged(manifest)
    findings = [_examine(checkpoint, directory, damaged) for checkpoint in CHECKPOINTS]
    ready = set()
    for candidate in DEPLOYMENTS.values():
        lacking = _lacking(findings, directory, candidate)
        if not lacking:
            ready.add(candidate.name)
        if deployment in (None, candidate.name):
            shown = len(lacking) if deployment else 2
            print(f"{candidate.name:18}{f'missing {summary(lacking, shown=shown)}' if lacking else 'ready'}")
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
    findings = [_examine(checkpoint, directory, {}) for checkpoint in CHECKPOINTS if checkpoint.needed_by(deployment)]
    lacking = _lacking(findings, directory, deployment)
    if lacking:
        why = "".join(f"; {finding.problem}" for finding in findings if finding.problem)
        raise CheckpointError(f"{directory}: {deployment.name} cannot run: missing {summary(lacking, shown=3)}{why}")
    if deployment.is_video2world:
        Policy.read(directory / POLICY)


def _lacking(findings: list[Finding], directory: Path, deployment: Deployment) -> list[str]:
    lacking = [text for finding in findings if (text := finding.lacking_for(deployment))]
    if deployment.is_video2world:
        lacking += [pattern for pattern in PROMPT_FILES if not any(map(Path.is_file, directory.glob(pattern)))]
    return lacking


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


def _damaged(manifest: Manifest) -> dict[str, str]:
    """Converted files whose SHA-256 is not the recorded one, and the message for each."""
    directory, recorded = manifest.directory, manifest.converted
    present = [target for target in recorded if (directory / target).is_file()]
    size = sum((directory / target).stat().st_size for target in present)
    damaged = {}
    with tqdm(total=size, desc="SHA-256", unit="B", unit_scale=True, leave=False, disable=None) as bar:
        for target in present:
            if sha256_of(directory / target, bar.update) != recorded[target].sha256:
                damaged[target] = (
                    f"{directory / target}: its SHA-256 is not the one in the manifest: damaged or replaced"
                )
    return damaged
