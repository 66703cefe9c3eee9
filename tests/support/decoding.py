"""Decoding to the end, without an engine."""

from __future__ import annotations

from torch import Tensor

from cosmos_triton.networks.ar_transformer import ARTransformer
from cosmos_triton.runtime.ar.decoder import Decoder, Prompt


def fill(decoder: Decoder, slot: int, prompt: Prompt) -> None:
    for _ in decoder.prefill(slot, prompt):
        pass


def run(decoder: Decoder, *, window: int = 1) -> int:
    """Step until every slot that has a goal is there; returns how many steps that took."""
    steps = 0
    while (decoder.known < decoder.goal).any():
        before = decoder.known.clone()
        decoder.step(window, length=decoder.length_for(int(decoder.known.max()), window))
        assert (decoder.known - before <= window).all()
        steps += 1
    return steps


def alone(network: ARTransformer, prompt: Prompt, *, window: int = 1, slots: int = 1) -> Tensor:
    decoder = Decoder(network, slots, windows=(window,))
    fill(decoder, 0, prompt)
    run(decoder, window=window)
    return decoder.tokens(0)
