"""A complete checkpoint tree of tiny networks, in the released formats and layouts.

It replaces the released files in tests, in the demo, and on a laptop. Weights are random, so the tiny deployments
generate noise of the right shape. Only the guardrails work: `cosmos_triton.tiny.guardrails` says what they block.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import T5ForConditionalGeneration

from cosmos_triton.export.checkpoints.catalogue import T5
from cosmos_triton.networks import ar_config, diffusion_transformer, text_encoder, tokenizer
from cosmos_triton.networks.ar_transformer import ARTransformer
from cosmos_triton.networks.diffusion_transformer import DiffusionTransformer
from cosmos_triton.networks.fsq import FSQ
from cosmos_triton.networks.tokenizer import (
    ContinuousDecoder,
    ContinuousEncoder,
    DiscreteDecoder,
    DiscreteEncoder,
    TokenizerConfig,
)
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.releases import COSMOS_1_0, Release
from cosmos_triton.tiny.guardrails import write_guardrails

TINY = [deployment for deployment in DEPLOYMENTS.values() if deployment.is_tiny]

_CORPUS = """
a robot arm picks up a red cube and places it on a shelf. a car drives along a wet street at night, past
parked vans and street lights. the camera follows a delivery robot through a warehouse, between tall racks of
boxes. a drone flies over a field while the sun rises behind the hills. people walk across the square; a tram
stops, its doors open. heavy rain falls on the windshield, the wipers move, and the road ahead bends to the
left. a humanoid robot opens a door, carries a tray with two cups, and sets it down on the kitchen table
without spilling. forklifts move pallets. trees sway in the wind.
"""


def write_tiny_tree(directory: Path, release: Release = COSMOS_1_0, *, seed: int = 0) -> None:
    """Write all files of the deployments `tiny` and `tiny-video2world` of a release, as they are after a download.

    Existing files of the same names are replaced. A progress bar goes to stderr.
    """
    steps: dict[str, Callable[[Path, Release], None]] = {
        "autoregressive models": _write_ar_models,
        "video tokenizers": _write_tokenizers,
        "diffusion decoder": _write_diffusion_decoder,
        "text encoder": _write_text_encoder,
        "guardrails": partial(write_guardrails, seed=seed),
    }
    bar = tqdm(steps.items(), desc="tiny checkpoints", unit="part")
    with warnings.catch_warnings():
        # tracing warns about Python values that it bakes in: here they are constants
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        for name, write in bar:
            bar.set_postfix_str(name)
            torch.manual_seed(seed)  # each part is seeded, so that a change to one does not change the others
            write(directory, release)


def _write_ar_models(directory: Path, release: Release) -> None:
    for deployment in TINY:
        config = ar_config.PRESETS[deployment.ar_preset]
        network = ARTransformer(config)
        _initialise(network)
        folder = _folder(directory, deployment.of(release).ar_folder)
        weights = {f"model.{key}": tensor.bfloat16() for key, tensor in network.state_dict().items()}
        torch.save(weights, folder / "model.pt")
        (folder / "config.json").write_text(json.dumps({"model_type": deployment.ar_preset}))


def _write_tokenizers(directory: Path, release: Release) -> None:
    discrete = tokenizer.PRESETS[TINY[0].discrete_tokenizer]
    continuous = tokenizer.PRESETS[TINY[0].continuous_tokenizer]
    discrete_folder, continuous_folder = (
        directory / release.discrete_tokenizer,
        directory / release.continuous_tokenizer,
    )
    clip = torch.zeros(1, 3, 1, 64, 64)
    _write_script(discrete_folder / "encoder.jit", _scale_up(DiscreteEncoder(discrete)), clip)
    _write_script(
        discrete_folder / "decoder.jit", _scale_down(DiscreteDecoder(discrete)), torch.zeros(1, 1, 4, 4).int()
    )
    _write_script(continuous_folder / "encoder.jit", ContinuousEncoder(continuous), clip)
    latents = torch.zeros(1, continuous.latent_channels, 1, 8, 8)
    _write_script(continuous_folder / "decoder.jit", _scale_down(ContinuousDecoder(continuous)), latents)
    size = continuous.latent_channels * 16  # for 16 latent frames, of which a chunk uses the first 8
    torch.save((0.1 * torch.randn(size), 1 + 0.1 * torch.rand(size)), continuous_folder / "mean_std.pt")


def _write_script(path: Path, network: nn.Module, example: Tensor) -> None:
    _add_captured_constants(network, network.config)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        traced = torch.jit.trace(network.eval(), example, check_trace=False)
    torch.jit.save(traced.to(torch.bfloat16), str(path))


def _add_captured_constants(network: nn.Module, config: TokenizerConfig) -> None:
    """Add state-dict entries that the released files have, captured by scripting, and that `convert` drops."""

    def constants(**buffers: Tensor) -> nn.Module:
        module = nn.Module()
        for name, buffer in buffers.items():
            module.register_buffer(name, buffer)
        return module

    haar = {"wavelets": torch.full((2,), 0.5**0.5), "_arange": torch.arange(2)}
    for name, child in network.named_children():
        if name == "encoder":
            child.add_module("patcher3d", constants(**haar, patch_size_buffer=torch.tensor([4]).int()))
        if name == "decoder":
            child.add_module("unpatcher3d", constants(**haar))
    if config.levels:
        fsq = FSQ(config.levels)
        codebook = fsq.codes(torch.arange(fsq.codebook_size).view(1, 1, 1, -1))[0, :, 0, 0].T
        quantizer = constants(
            _levels=torch.tensor(config.levels).int(),
            _basis=torch.tensor([1, *config.levels[:-1]]).cumprod(0).int(),
            implicit_codebook=codebook,
        )
        if isinstance(network, DiscreteDecoder):
            network.add_module("inv_quant", nn.ModuleDict({"quantizer": quantizer}))
        else:
            network.add_module("quantizer", quantizer)


def _write_diffusion_decoder(directory: Path, release: Release) -> None:
    config = diffusion_transformer.PRESETS[TINY[0].diffusion_decoder]
    network = DiffusionTransformer(config)
    _initialise(network)
    weights = {f"net.{key}": tensor.bfloat16() for key, tensor in network.state_dict().items()}
    weights |= {  # in the released file, not used for decoding
        "net.pos_embedder.seq": torch.arange(128).bfloat16(),
        "logvar.0.freqs": torch.randn(128).bfloat16(),
        "logvar.0.phases": torch.rand(128).bfloat16(),
        "logvar.1.weight": torch.randn(1, 128).bfloat16(),
    }
    folder = _folder(directory, release.diffusion_decoder)
    torch.save(weights, folder / "model.pt")
    context, mask = torch.randn(1, 512, config.context_dim), torch.zeros(1, 512)
    mask[:, :16] = 1
    context = context * mask[..., None]
    torch.save({"context": context.bfloat16(), "context_mask": mask.bfloat16()}, folder / "aux_vars.pt")


def _write_text_encoder(directory: Path, _: Release) -> None:
    """A complete T5, including its decoder, in the legacy torch format, as on the hub."""
    folder, config = _folder(directory, T5), text_encoder.PRESETS["tiny"]
    t5 = text_encoder.t5_config(config)
    t5.decoder_start_token_id = 0
    network = T5ForConditionalGeneration(t5)
    _initialise(network)
    t5.save_pretrained(folder)
    torch.save(network.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    text_tokenizer(config.vocab_size).save(str(folder / "tokenizer.json"))


def text_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer trained on a few sentences. It encodes any text, and appends </s>."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator([_CORPUS], trainer)
    trained.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return trained


def _initialise(network: nn.Module) -> None:
    """Initialise at random: large enough that outputs depend on all inputs, and small enough not to saturate."""
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.5 / math.sqrt(parameter.shape[-1]))


def _scale_up(encoder: DiscreteEncoder) -> DiscreteEncoder:
    """Scale up the weights: with the default initialisation, nearly every patch gets the same token."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data *= math.sqrt(3)
            if module.bias is not None:
                module.bias.data.zero_()
    encoder.quant_conv.conv3d.weight.data *= 3
    return encoder


def _scale_down(decoder: DiscreteDecoder | ContinuousDecoder) -> nn.Module:
    """Scale down the last layer: with the default initialisation, half of the pixels are out of range."""
    for parameter in decoder.decoder.conv_out[1].parameters():
        parameter.data *= 0.25
    return decoder


def _folder(directory: Path, name: str) -> Path:
    folder = directory / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
