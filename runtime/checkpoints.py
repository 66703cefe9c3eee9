"""Loads networks from converted checkpoints, which are memory-mapped safetensors files.

A network is built on the meta device and then assigned the file's tensors one at a time. On the CPU, in the file's own
dtype, the weights are the mapped file itself: nothing is copied, and processes share the page cache.

Networks follow two rules. What the checkpoint holds is parameters and persistent buffers. Computed tables are
non-persistent buffers that are built with `device="cpu"`, so that they have values in a network built on meta.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.mapped_file import SafetensorsFile, Shapes

Config = TypeVar("Config")
Network = TypeVar("Network", bound=nn.Module)


def load_network(
    build: Callable[[Config], Network],
    config: Config,
    path: Path,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Network:
    """`build(config)` with the weights of `path`, in evaluation mode and frozen.

    Floating-point weights and tables are converted to `dtype`, integers are not.

    Raises:
        CheckpointError: the file is missing or damaged, or its keys and shapes are not the network's.
    """
    with torch.device("meta"):
        network = build(config)
    owned = _owned_tensors(network)
    file = SafetensorsFile(path)
    problems = shape_problems(file.shapes, network_shapes(network))
    if problems:
        raise CheckpointError(f"{path}: {summary(problems)}")
    values: dict[int, Tensor] = {}
    for name, owner in owned.items():
        tensor = file.tensor(name)
        value = tensor.to(device, dtype if tensor.is_floating_point() else None)
        # One parameter per tensor, so that tied names keep sharing it.
        values[id(owner)] = nn.Parameter(value, requires_grad=False) if isinstance(owner, nn.Parameter) else value

    state = network.state_dict(keep_vars=True)
    network.load_state_dict({name: values[id(owner)] for name, owner in state.items()}, assign=True)
    unset = [name for name, tensor in network.named_buffers() if tensor.is_meta]
    if unset:
        raise RuntimeError(f"{type(network).__name__}: the checkpoint has no buffer {unset[0]}, nor does it build it")
    return network.to(device=device, dtype=dtype).requires_grad_(False).eval()


def network_shapes(network: nn.Module) -> Shapes:
    """Shapes of a network's checkpoint by key; a tensor with two names is listed once, under the first."""
    return {name: tuple(tensor.shape) for name, tensor in _owned_tensors(network).items()}


def shape_problems(found: Shapes, expected: Shapes) -> list[str]:
    """One phrase for each key that is missing, unexpected, or of another shape."""
    problems = []
    for name, shape in expected.items():
        if name not in found:
            problems.append(f"{name}: missing")
        elif found[name] != shape:
            problems.append(f"{name}: shape {list(found[name])}, expected {list(shape)}")
    problems += [f"{name}: the network has no such tensor" for name in found if name not in expected]
    return problems


def summary(problems: list[str], *, shown: int = 3) -> str:
    """The first `shown` problems, and the number of others."""
    more = len(problems) - shown
    return "; ".join(problems[:shown]) + (f"; and {more} more" if more > 0 else "")


def _owned_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each under the first of its names."""
    owned: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        owned.setdefault(id(tensor), (name, tensor))
    return dict(owned.values())
