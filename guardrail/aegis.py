"""Aegis, the LLM guardrail for prompts: LlamaGuard-7B with NVIDIA's LoRA adapter merged.

The model is asked whether the prompt violates a written policy. It answers `safe`, or `unsafe` and on the next line the
violated categories, such as `O3,O11` (Ghosh et al., arXiv:2404.05993). Any other answer is an error, and blocks.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cosmos_triton.guardrail.policy import CATEGORIES, MARKERS, Policy
from cosmos_triton.guardrail.pretrained import load_pretrained
from cosmos_triton.guardrail.spellings import fold
from cosmos_triton.guardrail.verdict import Verdict
from cosmos_triton.runtime.errors import CheckpointError

MAX_ANSWER_TOKENS = 100
MIN_PROMPT_TOKENS = 512  # room that the policy must leave: as many tokens as the text encoder reads
NOT_READABLE = "not_readable"  # the category of a prompt that the model cannot be asked about

# LlamaGuard's own prompt template, which it was fine-tuned on.
TEMPLATE = """[INST] Task: Check if there is unsafe content in 'User' messages in conversations according our safety \
policy with the below categories.

<BEGIN UNSAFE CONTENT CATEGORIES>
{policy}
<END UNSAFE CONTENT CATEGORIES>

<BEGIN CONVERSATION>

User: {prompt}

<END CONVERSATION>

Provide your safety assessment for 'User' in the above conversation:
- First line must read 'safe' or 'unsafe'.
- If unsafe, a second line must include a comma-separated list of violated categories. [/INST]"""


class NotReadableError(ValueError):
    """The model cannot be asked about this prompt. The message is for the user."""


def moderation_prompt(user_prompt: str, policy: Policy) -> str:
    """The template filled in with the policy and the user's prompt.

    Raises:
        NotReadableError: the prompt contains a marker of the template (prompt injection).
    """
    spellings = user_prompt.upper(), fold(user_prompt).upper()
    for marker in MARKERS:
        if any(marker in spelling for spelling in spellings):
            raise NotReadableError(f"the prompt contains {marker!r}, which is not accepted")
    return TEMPLATE.format(policy=policy.text, prompt=user_prompt.strip())


def violated_categories(answer: str) -> tuple[str, ...]:
    """Parse an answer: the violated categories, none if it is `safe`.

    Raises:
        ValueError: neither `safe`, nor `unsafe` and a line of known categories.
    """
    match [line.strip() for line in answer.strip().split("\n")]:
        case ["safe"]:
            return ()
        case ["unsafe", line]:
            categories = tuple(category.strip() for category in line.split(","))
            if set(categories) <= set(CATEGORIES):
                return categories
    raise ValueError(f"answer {answer[:40]!r}: expected 'safe', or 'unsafe' and a line of {', '.join(CATEGORIES)}")


def is_settled(answer: str) -> bool:
    """Whether further tokens cannot change how a partial answer is parsed: generation can stop."""
    first, *rest = answer.lstrip().split("\n")
    if not rest:
        return not ("safe".startswith(first) or "unsafe".startswith(first))
    return first != "unsafe" or len(rest) > 1


class Aegis:
    """The check of a prompt by the merged model."""

    name = "aegis"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, policy: Policy) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.policy = policy

    @classmethod
    def load(
        cls, folder: Path, policy: Policy, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bfloat16
    ) -> Aegis:
        """From a Hugging Face folder of the merged model: safetensors only, no network access.

        Raises:
            CheckpointError: a weight is missing, or the policy leaves no room for a prompt.
        """
        model = load_pretrained(AutoModelForCausalLM, folder, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        aegis = cls(model.to(device), tokenizer, policy)
        if aegis.excess_tokens(aegis.tokens(moderation_prompt("", policy))) > -MIN_PROMPT_TOKENS:
            raise CheckpointError(f"{folder}: the policy is too long for the model's context")
        return aegis

    def judge(self, prompt: str) -> Verdict:
        """Ask the model about a prompt.

        Raises:
            ValueError: the logits are not finite, or the answer cannot be parsed.
        """
        try:
            answer = self.answer(moderation_prompt(prompt, self.policy))
        except NotReadableError as error:
            return Verdict.blocked(self.name, NOT_READABLE, reason=str(error))
        categories = violated_categories(answer)
        if not categories:
            return Verdict.passed(self.name)
        return Verdict.blocked(
            self.name, *categories, reason=f"the prompt breaks the content policy ({', '.join(categories)})"
        )

    def tokens(self, question: str) -> Tensor:
        """[1, N]. Special tokens spelled out in a prompt, such as </s>, are tokenized as text."""
        encoded = self.tokenizer(question, return_tensors="pt", split_special_tokens=True)
        return encoded.input_ids.to(self.model.device)

    def excess_tokens(self, tokens: Tensor) -> int:
        """By how many tokens a question [1, N] and the longest answer exceed the context; negative if there is room."""
        return tokens.shape[1] + MAX_ANSWER_TOKENS - self.model.config.max_position_embeddings

    @torch.inference_mode()
    def answer(self, question: str) -> str:
        """The answer by greedy decoding, cut off once it is settled.

        Raises:
            NotReadableError: question and answer exceed the model's context.
            ValueError: the logits are not finite.
        """
        tokens = self.tokens(question)
        if (excess := self.excess_tokens(tokens)) > 0:
            raise NotReadableError(f"the prompt is {excess} tokens longer than the guardrail can read")
        written: list[int] = []
        cache = None
        while len(written) < MAX_ANSWER_TOKENS:
            out = self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits, cache = out.logits[0, -1], out.past_key_values  # [V]
            if not logits.isfinite().all():
                raise ValueError("the model's logits are not finite")
            token = int(logits.argmax())
            if token == self.tokenizer.eos_token_id:
                break
            written.append(token)
            if is_settled(self.tokenizer.decode(written)):
                break
            tokens = torch.tensor([[token]], device=tokens.device)
        return self.tokenizer.decode(written, skip_special_tokens=True)
