"""The text encoder."""

from __future__ import annotations

from collections.abc import Callable

from cosmos_triton.networks.text_encoder import TextEncoderConfig, build_text_encoder
from cosmos_triton.runtime.prompt_encoder import MAX_TOKENS, embed
from parity.case import Case, assert_close, assert_equal


def check_text_encoder(case: Case) -> None:
    io, reference = case.io, case.config["t5_config"]
    assert case.config["max_length"] == MAX_TOKENS
    network = build_text_encoder(
        TextEncoderConfig(
            vocab_size=reference["vocab_size"],
            dim=reference["d_model"],
            n_layers=reference["num_layers"],
            n_heads=reference["num_heads"],
            head_dim=reference["d_kv"],
            ffn_dim=reference["d_ff"],
        )
    )
    missing, unexpected = network.load_state_dict(case.weights(), strict=False)
    assert (missing, unexpected) == (["encoder.embed_tokens.weight"], [])  # tied to shared.weight
    mask = io["attention_mask"]
    embedding = embed(network, io["input_ids"], mask)
    assert_close("embedding", embedding, io["embedding"], relative=1e-5)
    assert not embedding[mask == 0].any(), "rows past a prompt's end must be zero"
    assert_equal("returned_mask", mask, io["returned_mask"])
    hidden = network(io["input_ids"], mask)[:, :32]
    assert_close("last_hidden_state", hidden, io["last_hidden_state_before_zeroing_first32"], relative=1e-5)


FAMILIES: dict[str, Callable[[Case], None]] = {"text_encoder": check_text_encoder}
