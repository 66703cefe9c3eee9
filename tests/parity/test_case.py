"""What the harness makes of a case that holds a part of its family's tensors, or something else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from parity.case import Case
from parity.families import FAMILIES

CONTINUOUS = Path(__file__).parent / "cases" / "cv_tokenizer_main"


@pytest.fixture
def continuous(tmp_path: Path) -> Callable[[Callable[[dict[str, Tensor]], object]], Case]:
    """The continuous tokenizer's case after a change to its tensors."""

    def changed(change: Callable[[dict[str, Tensor]], object]) -> Case:
        folder = Path(shutil.copytree(CONTINUOUS, tmp_path / "case"))
        tensors = load_file(folder / "io.safetensors")
        change(tensors)
        save_file(tensors, folder / "io.safetensors")
        return Case(folder)

    return changed


def check(case: Case) -> None:
    with torch.inference_mode():
        FAMILIES[case.config["family"]](case)
    case.finish()


def drop(tensors: dict[str, Tensor], *prefixes: str) -> None:
    for name in [name for name in tensors if name.startswith(prefixes)]:
        del tensors[name]


def test_what_a_case_does_not_hold_is_not_asked_for(continuous: Callable[..., Case]) -> None:
    check(continuous(lambda tensors: drop(tensors, "wrapper_", "model_", "decoded_t3", "latent_t3")))


def test_what_it_holds_is_compared(continuous: Callable[..., Case]) -> None:
    case = continuous(lambda tensors: tensors["encoded_t1"].add_(1))
    with pytest.raises(AssertionError, match="encoded_t1: deviation"):
        check(case)


def test_an_unknown_tensor_fails(continuous: Callable[..., Case]) -> None:
    case = continuous(lambda tensors: tensors.update(surprise=torch.zeros(1)))
    with pytest.raises(AssertionError, match="unknown tensors surprise"):
        check(case)


def test_an_output_without_its_input_fails(continuous: Callable[..., Case]) -> None:
    case = continuous(lambda tensors: drop(tensors, "video_t1"))
    with pytest.raises(AssertionError, match="unknown tensors encoded_t1"):
        check(case)


def test_a_case_without_an_output_fails(continuous: Callable[..., Case]) -> None:
    outputs = ("encoded_", "decoded_", "wrapper_encoded_", "wrapper_decoded_", "model_decoded_", "used_")
    case = continuous(lambda tensors: drop(tensors, *outputs))
    with pytest.raises(AssertionError, match="no output"):
        check(case)
