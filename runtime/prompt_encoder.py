"""T5 embeddings of prompts, the context of the transformers' cross-attention.

Legend: B prompts, E = 512 tokens per prompt, C embedding width.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cosmos_triton.runtime.backends.backend import Runnable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast  # which takes seconds to import

MAX_TOKENS = 512


class PromptEncoder:
    """T5 and its tokenizer. Prompts are truncated to 512 tokens; rows past a prompt's end are zero."""

    def __init__(self, network: Runnable[object], tokenizer: PreTrainedTokenizerFast) -> None:
        self.network = network
        self.tokenizer = tokenizer

    def encode(self, prompts: list[str]) -> Tensor:
        """Embeddings [B, E, C] in the network's dtype."""
        batch = self.tokenizer(
            prompts, max_length=MAX_TOKENS, truncation=True, padding="max_length", return_tensors="pt"
        )
        device = self.network.device
        return embed(self.network, batch["input_ids"].to(device), batch["attention_mask"].to(device))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a T5 folder. It appends the end-of-sequence token."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", eos_token="</s>")


@torch.inference_mode()
def embed(network: Runnable[object], input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Embeddings [B, E, C] of input_ids [B, E]; zero where attention_mask [B, E] is 0."""
    hidden = network(input_ids, attention_mask)
    return hidden * attention_mask[..., None].to(hidden.dtype)
