"""Writes transformers models without the output of `save_pretrained`."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedModel


def write_model(model: PreTrainedModel, folder: Path) -> None:
    """Write config.json and model.safetensors as `save_pretrained` does, without its progress bar and warnings."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = model.dtype
    (folder / "config.json").write_text(model.config.to_json_string(use_diff=False))
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
