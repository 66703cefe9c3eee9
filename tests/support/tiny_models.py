"""Tiny random networks that tests share. Weights are large enough that outputs vary with every input."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cosmos_triton.networks.ar_config import ARConfig
from cosmos_triton.networks.ar_positions import Yarn
from cosmos_triton.networks.ar_transformer import ARTransformer
from cosmos_triton.runtime.ar.decoder import ARRequest

BASE = ARConfig(
    n_layers=2,
    dim=48,
    ffn_dim=64,
    n_heads=4,
    n_kv_heads=2,
    head_dim=24,
    vocab_size=100,
    latent_shape=(5, 4, 5),
)
YARN = Yarn(scale=2, beta_fast=4, beta_slow=1, original_latent_shape=(3, 4, 5))
AR_CONFIGS = {
    "base": BASE,
    "base_yarn": replace(BASE, yarn=YARN),
    "video2world": replace(BASE, context_dim=16, context_length=12),
    "video2world_yarn": replace(BASE, context_dim=16, context_length=12, yarn=YARN),
}


def random_transformer(config: ARConfig, *, seed: int = 0) -> ARTransformer:
    network = ARTransformer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=2 * parameter.shape[-1] ** -0.5, generator=generator)
    return network


def random_tokens(config: ARConfig, count: int, *, seed: int = 0) -> Tensor:
    return torch.randint(config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def random_context(config: ARConfig, *, seed: int = 0) -> Tensor | None:
    """[E, X], padded with zero vectors as after a short prompt; None for a base model."""
    if config.context_dim is None:
        return None
    generator = torch.Generator().manual_seed(1000 + seed)
    context = torch.randn(config.context_length, config.context_dim, generator=generator)
    context[config.context_length // 2 :] = 0
    return context


def random_request(
    config: ARConfig, *, clip: int = 0, seed: int = 0, temperature: float = 1.0, frames: int = 2
) -> ARRequest:
    """`clip` chooses the tokens and the text, `seed` the draws."""
    return ARRequest(
        random_tokens(config, frames * config.frame_tokens, seed=clip),
        seed=seed,
        temperature=temperature,
        top_p=0.9,
        context=random_context(config, seed=clip),
    )
