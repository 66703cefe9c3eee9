"""Models of Hugging Face folders, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cosmos_triton.runtime.errors import CheckpointError


def load_whole(kind: Any, folder: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """A transformers model in evaluation mode; only safetensors are read, and nothing from the network.

    transformers fills a weight that is missing with random numbers and a warning. A guardrail must not run on those.

    Raises:
        CheckpointError: the folder lacks a weight.
    """
    model, found = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
    )
    missing = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if missing:
        raise CheckpointError(f"{folder}: {missing[0]}: missing, or of another shape; {len(missing)} such in all")
    return model.eval()
