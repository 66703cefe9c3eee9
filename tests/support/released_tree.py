"""A checkpoint directory as it is after the download, with random weights of the tiny sizes.

Written from what is known of the released files, without the code that reads them: outer dictionaries, prefixes,
entries that no network has, the old layout of torch.save, TorchScript archives, hub caches, shards.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipModel,
    T5ForConditionalGeneration,
)

from cosmos_triton.networks import ar_config, ar_transformer, diffusion_transformer, retinaface, tokenizer, video_safety
from cosmos_triton.networks.text_encoder import PRESETS as TEXT_PRESETS
from cosmos_triton.networks.text_encoder import t5_config
from cosmos_triton.runtime.releases import PREDICT1

State = dict[str, Tensor]

DIFFUSION = "Cosmos-1.0-Diffusion-7B-Decoder-DV8x16x16ToCV8x8x8"
GUARDRAIL = "Cosmos-1.0-Guardrail"
LORA_RANK, LORA_ALPHA = 2, 6


@dataclass(frozen=True)
class ReleasedTree:
    """The directory, and by released file the tensors of the network in it, under the network's names."""

    directory: Path
    weights: dict[str, State]


def random_state(network: nn.Module, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(tensor.shape, generator=generator).to(dtype) if tensor.is_floating_point() else tensor + 3
        for name, tensor in network.state_dict().items()
    }


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


class ModuleTree(nn.Module):
    """A module with the given state_dict(), parameters and buffers in turn, for TorchScript to save."""

    def __init__(self, state: State) -> None:
        super().__init__()
        children: dict[str, State] = {}
        for index, (name, tensor) in enumerate(state.items()):
            first, _, rest = name.partition(".")
            if rest:
                children.setdefault(first, {})[rest] = tensor
            elif index % 2 and tensor.is_floating_point():
                self.register_parameter(first, nn.Parameter(tensor))
            else:
                self.register_buffer(first, tensor)
        for name, child in children.items():
            self.add_module(name, ModuleTree(child))

    def forward(self, x: Tensor) -> Tensor:
        return x


def write_released_tree(directory: Path) -> ReleasedTree:
    tree = ReleasedTree(directory, {})
    _write_ar_models(tree)
    _write_tokenizers(tree)
    _write_diffusion_decoder(tree)
    _write_guardrails(tree)
    _write_t5(tree)
    _write_llama_guard(tree)
    return tree


def _path(tree: ReleasedTree, name: str, state: State | None = None) -> Path:
    path = tree.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if state is not None:
        tree.weights[name] = state
    return path


def _write_ar_models(tree: ReleasedTree) -> None:
    base = random_state(ar_transformer.ARTransformer(ar_config.PRESETS["tiny"]), seed=1)
    file = prefixed("model.", base) | {"model.layers.0._extra_state": torch.zeros(1)}
    torch.save(file, _path(tree, "Cosmos-1.0-Autoregressive-tiny/model.pt", base))
    text = random_state(ar_transformer.ARTransformer(ar_config.PRESETS["tiny-video2world"]), seed=2)
    path = _path(tree, "Cosmos-1.0-Autoregressive-tiny-Video2World/model.pt", text)
    torch.save({"model": prefixed("model.", text)}, path)


def _write_tokenizers(tree: ReleasedTree) -> None:
    discrete, continuous = tokenizer.PRESETS["tiny-dv"], tokenizer.PRESETS["tiny-cv"]
    files = {
        "Cosmos-1.0-Tokenizer-DV8x16x16/encoder.jit": tokenizer.DiscreteEncoder(discrete),
        "Cosmos-1.0-Tokenizer-DV8x16x16/decoder.jit": tokenizer.DiscreteDecoder(discrete),
        "Cosmos-1.0-Tokenizer-CV8x8x8/encoder.jit": tokenizer.ContinuousEncoder(continuous),
        "Cosmos-1.0-Tokenizer-CV8x8x8/decoder.jit": tokenizer.ContinuousDecoder(continuous),
    }
    for seed, (name, network) in enumerate(files.items(), start=3):
        state = random_state(network, seed=seed)
        constants = {"patcher3d.wavelets": torch.ones(2), "quantizer._levels": torch.tensor([8, 5, 5, 5])}
        traced = torch.jit.trace(ModuleTree(state | constants), torch.zeros(1))
        traced.save(str(_path(tree, name, state)))
    statistics = {"mean": torch.randn(256), "std": torch.rand(256)}
    name = "Cosmos-1.0-Tokenizer-CV8x8x8/mean_std.pt"
    torch.save(tuple(statistics.values()), _path(tree, name, statistics))


def _write_diffusion_decoder(tree: ReleasedTree) -> None:
    state = random_state(diffusion_transformer.DiffusionTransformer(diffusion_transformer.PRESETS["tiny"]), seed=7)
    others = {
        "net.pos_embedder.seq": torch.arange(128.0),
        "logvar.0.freqs": torch.randn(128),
        "net.blocks.block0.attn._extra_state": io.BytesIO(b"calibration"),
    }
    torch.save(prefixed("net.", state) | others, _path(tree, f"{DIFFUSION}/model.pt", state))
    context = {"context": torch.randn(1, 512, 32).bfloat16()}
    file = context | {"context_mask": torch.ones(1, 512)}
    torch.save(file, _path(tree, f"{DIFFUSION}/aux_vars.pt", context))


def _write_guardrails(tree: ReleasedTree) -> None:
    state = random_state(video_safety.VideoSafety(video_safety.PRESETS["tiny"]), dtype=torch.float32, seed=8)
    name = f"{GUARDRAIL}/video_content_safety_filter/safety_filter.pt"
    torch.save({"model": state}, _path(tree, name, state))

    state = random_state(retinaface.RetinaFace(retinaface.PRESETS["tiny"]), dtype=torch.float32, seed=9)
    name = f"{GUARDRAIL}/face_blur_filter/Resnet50_Final.pth"
    torch.save(prefixed("module.", state), _path(tree, name, state), _use_new_zipfile_serialization=False)

    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    config = SiglipConfig(text_config=tower | text, vision_config=tower | {"image_size": 16, "patch_size": 8})
    siglip = SiglipModel(config)
    siglip.load_state_dict(random_state(siglip, dtype=torch.float32, seed=10))
    snapshot = f"{GUARDRAIL}/video_content_safety_filter/models--google--siglip-so400m-patch14-384/snapshots/abc"
    siglip.save_pretrained(tree.directory / snapshot)
    tree.weights[f"{snapshot}/model.safetensors"] = dict(siglip.vision_model.state_dict())

    for folder in ("custom", "whitelist", "exact_match"):
        _path(tree, f"{GUARDRAIL}/blocklist/{folder}/words.txt").write_text("word\n")


def _write_t5(tree: ReleasedTree) -> None:
    config = t5_config(TEXT_PRESETS["tiny"])
    whole = T5ForConditionalGeneration(config)
    whole.load_state_dict(random_state(whole, dtype=torch.float32, seed=11))
    folder = tree.directory / "google-t5/t5-11b"
    config.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    torch.save(whole.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    encoder = whole.get_encoder().state_dict()
    tree.weights["google-t5/t5-11b/pytorch_model.bin"] = {
        "shared.weight": whole.state_dict()["shared.weight"],
        **{f"encoder.{name}": tensor for name, tensor in encoder.items() if not name.startswith("embed_tokens")},
    }


def _write_llama_guard(tree: ReleasedTree) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        dtype="bfloat16",
    )
    llama = LlamaForCausalLM(config).bfloat16()
    state = random_state(llama, seed=12)
    llama.load_state_dict(state)
    folder = tree.directory / "meta-llama/LlamaGuard-7b"
    llama.save_pretrained(folder, max_shard_size="4KB")
    (folder / "tokenizer.json").write_text("{}")

    adapter, merged = {}, dict(state)
    generator = torch.Generator().manual_seed(13)
    for layer in range(2):
        for projection in ("q_proj", "v_proj"):
            module = f"model.layers.{layer}.self_attn.{projection}"
            a = torch.randn(LORA_RANK, 16, generator=generator)
            b = torch.randn(16, LORA_RANK, generator=generator)
            adapter |= {
                f"base_model.model.{module}.lora_A.weight": a,
                f"base_model.model.{module}.lora_B.weight": b,
            }
            exact = state[f"{module}.weight"].double() + LORA_ALPHA / LORA_RANK * (b.double() @ a.double())
            merged[f"{module}.weight"] = exact.bfloat16()
    repository = "models--nvidia--Aegis-AI-Content-Safety-LlamaGuard-Defensive-1.0"
    snapshot = tree.directory / GUARDRAIL / "aegis" / repository / "snapshots/def"
    snapshot.mkdir(parents=True)
    save_file(adapter, snapshot / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": LORA_RANK,
        "lora_alpha": LORA_ALPHA,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "task_type": "CAUSAL_LM",
    }
    (snapshot / "adapter_config.json").write_text(json.dumps(settings))
    tree.weights["merged"] = merged


def rename_to_predict1(directory: Path, *, guardrails: str) -> None:
    """Give a tree of Cosmos-1.0 the names of Predict1: the files in it are of the same form.

    Args:
        guardrails: the folder for them: one of their own, or one in a model's.
    """
    names = {
        DIFFUSION: PREDICT1.diffusion_decoder,
        "Cosmos-1.0-Tokenizer-DV8x16x16": PREDICT1.discrete_tokenizer,
        "Cosmos-1.0-Tokenizer-CV8x8x8": PREDICT1.continuous_tokenizer,
        "Cosmos-1.0-Autoregressive-tiny": "Cosmos-Predict1-tiny",
        "Cosmos-1.0-Autoregressive-tiny-Video2World": "Cosmos-Predict1-tiny-Video2World",
        GUARDRAIL: guardrails,
    }
    for old, new in names.items():
        (directory / old).rename(directory / new)
