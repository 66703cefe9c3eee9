"""A tiny LlamaGuard and its Aegis adapter, in the released layouts. Its weights are set by hand, not trained.

The merged model answers `unsafe` and `O3` to a prompt with the word TRIGGER, and `safe` to any other:

- TRIGGER is one token. It has a channel of the embedding, and so has each token that answers consist of.
- One attention head attends to TRIGGER. Its query is constant, its keys are zero except at TRIGGER, and both use the
  dimensions of the lowest rotary frequency, so that distance hardly matters. It writes to the channel ALARM.
- The output matrix reads these channels: after the question, `safe` or with ALARM `unsafe`; after `unsafe` a new line;
  then O3; after `safe` or O3 the end. RMS norms only scale, and do not change the arg-max.

The adapter consists of that head. Without it the base model answers `safe` to everything. Random weights fill the
other half of every layer, which the output matrix hardly reads.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cosmos_triton.guardrail.aegis import TEMPLATE
from cosmos_triton.guardrail.policy import CATEGORIES, Policy
from cosmos_triton.tiny.transformers_folder import write_model

TRIGGER = "dangerword"
CATEGORY = "O3"

LAYERS, HIDDEN, HEADS = 2, 32, 2
HEAD = HIDDEN // HEADS
# Channels of the residual stream; those from HEAD on are random. Head 0 is the circuit above, head 1 is random.
ONE, TRIGGERED, SAID_SAFE, SAID_UNSAFE, SAID_LINE, SAID_CATEGORY, ALARM = range(7)
SLOWEST = HEAD // 2 - 1  # row of head 0's queries and keys with the lowest rotary frequency

RANK, ALPHA = 4, 8
# What the adapter adds to layer 0: (row, column, value) of each weight.
CIRCUIT = {
    "q_proj": (SLOWEST, ONE, 8.0),
    "k_proj": (SLOWEST, TRIGGERED, 8.0),
    "v_proj": (0, TRIGGERED, 1.0),
    "o_proj": (ALARM, 0, 1.0),
}
NEW_LINE = "Ċ"  # "\n" in the alphabet of byte-level BPE


def write_llama_guard(folder: Path, *, seed: int) -> None:
    """The base model and its tokenizer, as a Hugging Face folder."""
    tokenizer = _tokenizer()
    model = _base_model(tokenizer, torch.Generator().manual_seed(seed))
    write_model(model, folder)
    model.generation_config.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    specials = {f"{name}_token": token for name, token in (("unk", "<unk>"), ("bos", "<s>"), ("eos", "</s>"))}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2))


def write_adapter(folder: Path, *, seed: int) -> None:
    """The low-rank adapter, in PEFT's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    config = {
        "base_model_name_or_path": "meta-llama/LlamaGuard-7b",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": list(CIRCUIT),
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    tensors: dict[str, Tensor] = {}
    for layer in range(LAYERS):
        for module, (row, column, value) in CIRCUIT.items():
            a = torch.randn(RANK, HIDDEN, generator=generator) / HIDDEN  # [r, in]
            b = torch.zeros(HIDDEN, RANK)  # [out, r]; zero as in PEFT's initialisation: adds nothing
            if layer == 0:
                a[0] = 0
                a[0, column] = 1
                b[row, 0] = value * RANK / ALPHA
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _tokenizer() -> Tokenizer:
    """Byte-level BPE, which encodes any text; lower-cased, so that the case of TRIGGER does not matter."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEMPLATE, Policy.own().text], trainer)
    tokenizer.add_tokens([AddedToken(TRIGGER, normalized=True)])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ("safe", "unsafe", *CATEGORIES)])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tokenizer


def _base_model(tokenizer: Tokenizer, generator: torch.Generator) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=16384,
        rope_theta=1e6,
        bos_token_id=tokenizer.token_to_id("<s>"),
        eos_token_id=tokenizer.token_to_id("</s>"),
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:  # from random channels to random channels only
                weight.zero_()
                weight[HEAD:, HEAD:] = 0.1 * torch.randn(weight[HEAD:, HEAD:].shape, generator=generator)
        embeddings, outputs = _vocabulary(tokenizer, generator)
        model.model.embed_tokens.weight.copy_(embeddings)
        model.lm_head.weight.copy_(outputs)
    return model


def _vocabulary(tokenizer: Tokenizer, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Embedding and output matrix, both [V, HIDDEN]."""
    size = tokenizer.get_vocab_size()
    trigger, safe, unsafe, line, category, end = (
        tokenizer.token_to_id(token) for token in (TRIGGER, "safe", "unsafe", NEW_LINE, CATEGORY, "</s>")
    )
    embeddings = torch.zeros(size, HIDDEN)
    embeddings[:, ONE] = 1
    for token, channel in (
        (trigger, TRIGGERED),
        (safe, SAID_SAFE),
        (unsafe, SAID_UNSAFE),
        (line, SAID_LINE),
        (category, SAID_CATEGORY),
    ):
        embeddings[token, channel] = 1
    embeddings[:, HEAD:] = torch.randint(0, 2, (size, HEAD), generator=generator) - 0.5

    outputs = torch.zeros(size, HIDDEN)
    outputs[:, HEAD:] = 0.1 * torch.randn(size, HEAD, generator=generator)
    outputs[:, ONE] = -8
    outputs[safe, [ONE, ALARM]] = torch.tensor([4.0, -8.0])
    outputs[unsafe, [ONE, ALARM]] = torch.tensor([0.0, 8.0])
    for token, channel in ((end, SAID_SAFE), (line, SAID_UNSAFE), (category, SAID_LINE), (end, SAID_CATEGORY)):
        outputs[token, channel] = 64
    return embeddings, outputs
