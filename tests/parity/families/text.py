"""The text encoder."""

from __future__ import annotations

from collections.abc import Callable

from cosmos_triton.networks.text_encoder import TextEncoderConfig, build_text_encoder
from cosmos_triton.runtime.prompt_encoder import MAX_TOKENS, embed
from parity.case import Case


def check_text_encoder(case: Case) -> None:
    reference = case.config["t5_config"]
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
    mask = case["attention_mask"]
    embedding = embed(network, case["input_ids"], mask)
    case.expect_close("embedding", embedding, relative=1e-5)
    assert not embedding[mask == 0].any(), "rows past a prompt's end must be zero"
    case.expect_equal("returned_mask", mask)
    hidden = network(case["input_ids"], mask)[:, :32]
    case.expect_close("last_hidden_state_before_zeroing_first32", hidden, relative=1e-5)


FAMILIES: dict[str, Callable[[Case], None]] = {"text_encoder": check_text_encoder}
