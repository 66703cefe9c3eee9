"""Decoding of whole clips without an engine."""

from __future__ import annotations

from torch import Tensor

from cosmos_triton.networks.ar_transformer import ARTransformer
from cosmos_triton.runtime.ar.decoder import ARRequest, Decoder


def fill(decoder: Decoder, slot: int, request: ARRequest) -> None:
    for _ in decoder.prefill(slot, request):
        pass


def run(decoder: Decoder) -> int:
    """Step until every active slot is finished; returns the number of steps."""
    steps = 0
    while (decoder.num_tokens < decoder.target_len).any():
        before = decoder.num_tokens.clone()
        decoder.step(kv_len=decoder.kv_len_for(int(decoder.num_tokens.max())))
        assert (decoder.num_tokens - before <= decoder.window).all()
        steps += 1
    return steps


def alone(network: ARTransformer, request: ARRequest, *, window: int = 1, slots: int = 1) -> Tensor:
    decoder = Decoder(network, slots, window=window)
    fill(decoder, 0, request)
    run(decoder)
    return decoder.tokens(0)
