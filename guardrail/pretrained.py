"""Loads transformers models from Hugging Face folders, and refuses incomplete ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cosmos_triton.runtime.errors import CheckpointError


def load_pretrained(kind: Any, folder: Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """A transformers model in evaluation mode, from safetensors only and without network access.

    For a missing weight `from_pretrained` only warns, and initialises it at random. A guardrail must not run like that.

    Args:
        kind: a transformers model class.

    Raises:
        CheckpointError: a weight is missing or has another shape.
    """
    model, info = kind.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
    )
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing:
        raise CheckpointError(f"{folder}: {missing[0]}: missing, or of another shape; {len(missing)} such in all")
    return model.eval()
