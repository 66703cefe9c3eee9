"""The autoregressive transformer, its position tables, its sampling, and the path from clip to clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cosmos_triton.networks.ar_config import ARConfig
from cosmos_triton.networks.ar_positions import (
    Yarn,
    absolute_position_table,
    grid_coordinates,
    rope_frequencies,
    rope_tables,
)
from cosmos_triton.networks.ar_transformer import ARTransformer
from cosmos_triton.networks.kv_cache import KVCache
from cosmos_triton.networks.tokenizer import DiscreteDecoder, DiscreteEncoder
from cosmos_triton.runtime.ar.decoder import ARRequest, Decoder
from cosmos_triton.runtime.ar.sampling import nucleus, sample
from cosmos_triton.runtime.media.frames import to_unit_range
from cosmos_triton.runtime.video_tokenizer import decode_tokens, encode_input_frames
from parity.case import Case, assert_close, assert_equal
from parity.families import tokenizers
from support.video_encoding import encode_tokens

LOGITS = 5e-5


def config_from_reference(model: dict[str, Any], training_type: str, context: Tensor | None) -> ARConfig:
    is_video2world = training_type == "text_to_video"
    assert model["insert_cross_attn"] == model["apply_abs_pos_emb"] == is_video2world
    yarn = None
    if model["apply_yarn"]:
        yarn = Yarn(
            scale=model["yarn_scale"],
            beta_fast=model["yarn_beta_fast"],
            beta_slow=model["yarn_beta_slow"],
            original_latent_shape=tuple(model["original_latent_shape"]),
        )
    return ARConfig(
        n_layers=model["n_layers"],
        dim=model["dim"],
        ffn_dim=model["ffn_hidden_size"],
        n_heads=model["n_heads"],
        n_kv_heads=model["n_kv_heads"] or model["n_heads"],
        head_dim=model["head_dim"] or model["dim"] // model["n_heads"],
        vocab_size=model["vocab_size"],
        latent_shape=tuple(model["video_latent_shape"]),
        context_dim=model["context_dim"] if is_video2world else None,
        context_length=0 if context is None else context.shape[1],
        yarn=yarn,
        rope_theta=model["rope_theta"],
        norm_eps=model["norm_eps"],
    )


def load_transformer(config: ARConfig, weights: dict[str, Tensor]) -> ARTransformer:
    network = ARTransformer(config).eval()
    network.load_state_dict({key.removeprefix("model."): tensor for key, tensor in weights.items()}, strict=True)
    return network


def check_transformer(case: Case) -> None:
    reference = case.config
    config = config_from_reference(reference["model"], reference["training_type"], case.optional("context"))
    assert config.embedding_rows == reference["embedding_rows"]
    assert config.vocab_size == reference["output_rows"]
    assert config.max_seq_len == reference["model"]["max_seq_len"]
    if config.is_video2world:
        assert config.bov_token == reference["bov_token"]
    network = load_transformer(config, case.weights())

    temporal, spatial = rope_frequencies(config.head_dim, config.rope_theta, config.yarn)
    case.expect_close("rope_inv_freq_temporal", temporal, relative=1e-6)
    case.expect_close("rope_inv_freq_spatial", spatial, relative=1e-6)
    case.expect_close("rope_cos", network.rope_cos, relative=1e-5)
    case.expect_close("rope_sin", network.rope_sin, relative=1e-5)
    if config.is_video2world:
        assert network.abs_pos_emb is not None
        case.expect_equal("abs_pos_emb", network.abs_pos_emb)

    prompt = case["prompt_tokens"]  # [B, N]
    case.ignore("info_*")

    def starts(position: int) -> Tensor:
        return torch.full((len(prompt),), position)

    def fresh_cache() -> KVCache:
        cache = KVCache.allocate(config, len(prompt))
        if config.is_video2world:
            network.write_context(case["context"], cache)
        return cache

    cache = fresh_cache()
    logits = network(prompt, starts(0), cache, kv_len=prompt.shape[1])
    case.expect_close("prefill_logits", logits, relative=LOGITS)
    if "forced_tokens" in case:
        forced = []
        for step, token in enumerate(case["forced_tokens"].split(1, dim=1)):
            position = prompt.shape[1] + step
            forced.append(network(token, starts(position), cache, kv_len=position + 1))
            if "forced_logits" in case:
                expected = case["forced_logits"][:, step]
                assert_close(f"forced_logits {step}", forced[-1][:, 0], expected, relative=LOGITS)
        case.expect_close("forced_logits", torch.cat(forced, dim=1), relative=LOGITS)

    if "greedy_tokens" in case:
        tokens = greedy(network, prompt, fresh_cache(), until=case["greedy_tokens"].shape[1])
        case.expect_equal("greedy_tokens", tokens)
        logits = network(tokens, starts(0), fresh_cache(), kv_len=tokens.shape[1])
        case.expect_close("greedy_teacher_forced_logits", logits, relative=LOGITS)
        top2 = logits[:, prompt.shape[1] - 1 : -1].topk(2, dim=-1).values
        case.expect_close("greedy_margin", top2[..., 0] - top2[..., 1], relative=1e-4)


def greedy(network: ARTransformer, prompt: Tensor, cache: KVCache, *, until: int) -> Tensor:
    """Prompt [B, N] and its most likely continuation, [B, until]."""
    tokens, window = prompt, prompt
    while tokens.shape[1] < until:
        starts = torch.full((len(prompt),), tokens.shape[1] - window.shape[1])
        logits = network(window, starts, cache, kv_len=tokens.shape[1])
        window = logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, window], dim=1)
    return tokens


def check_rope_full_size(case: Case) -> None:
    reference = case.config
    latent_shape = tuple(reference["latent_shape"])
    lengths = reference["padded_lengths"]
    for model in (model for model in ("4b", "5b", "12b", "13b") if f"{model}_positions" in case):
        is_video2world = f"{model}_abs_positions" in case
        rows = lengths["video2world" if is_video2world else "base"]
        leading = int(is_video2world)
        yarn = None
        if model in ("12b", "13b"):
            settings = reference["yarn"]
            yarn = Yarn(**{**settings, "original_latent_shape": tuple(settings["original_latent_shape"])})
        head_dim, theta = reference["head_dim"], reference["rope_theta"]
        temporal, spatial = rope_frequencies(head_dim, theta, yarn)
        case.expect_close(f"{model}_inv_freq_temporal", temporal, relative=1e-6)
        case.expect_close(f"{model}_inv_freq_spatial", spatial, relative=1e-6)
        coordinates = grid_coordinates(latent_shape, leading_rows=leading, rows=rows)
        cos, sin = rope_tables(coordinates, head_dim, theta, yarn)
        positions = case[f"{model}_positions"]
        case.expect_close(f"{model}_cos", cos[positions], relative=1e-5)
        case.expect_close(f"{model}_sin", sin[positions], relative=1e-5)
        if is_video2world:
            dim = case[f"{model}_abs_pos_emb_bf16"].shape[1]
            table = absolute_position_table(latent_shape, dim, leading_rows=leading, rows=rows)
            case.expect_equal(f"{model}_abs_pos_emb_bf16", table[case[f"{model}_abs_positions"]])


def check_top_p_filter(case: Case) -> None:
    logits = case["logits"][:, -1]  # [B, V]
    case.ignore("probs_bf16_*")
    greedy = sample(logits, torch.rand_like(logits), temperature=torch.tensor(1.0), top_p=torch.tensor(0.0))
    case.expect_equal("temperature0_token", greedy[:, None])
    for setting in case.config["settings"]:
        index = setting["index"]
        temperature, top_p = torch.tensor(setting["temperature"]), torch.tensor(setting["top_p"])
        probs, order = nucleus(logits, temperature, top_p)
        if f"probs_{index}" in case:
            assert_equal(f"kept set {index}", probs > 0, case[f"probs_{index}"].gather(-1, order) > 0)
        probs = torch.zeros_like(probs).scatter(-1, order, probs / probs.sum(-1, keepdim=True))
        case.expect_close(f"probs_{index}", probs, relative=1e-5)
        noise = torch.zeros_like(probs).scatter(-1, order, case[f"noise_{index}"])  # recorded in falling order
        token = sample(logits, noise, temperature=temperature, top_p=top_p)
        case.expect_equal(f"token_{index}", token[:, None])


def check_pipeline(case: Case) -> None:
    """Clip in, clip out: tokenize, cut to the prompt, continue greedily, decode."""
    reference = case.config
    context = case.optional("context_used")
    case.ignore("greedy_margin_*", "prompt_embedding", "prompt_mask")
    ar = reference["ar"]
    config = config_from_reference(ar["model"], ar["training_type"], context)
    assert config.embedding_rows == ar["embedding_rows"]
    network = load_transformer(config, case.weights("ar."))
    chunk_frames = reference["wrapper"]["pixel_chunk_duration"]
    tokenizer = tokenizers.config_from_reference(reference["tokenizer"], chunk_frames=chunk_frames)
    encoder, decoder = DiscreteEncoder(tokenizer), DiscreteDecoder(tokenizer)
    tokenizers.load_half(encoder, case.weights("tokenizer."))
    tokenizers.load_half(decoder, case.weights("tokenizer."))

    video, first = case["video"].float(), config.leading_tokens
    case.expect_close("pre_quant", encoder.latents(video), relative=2e-5)
    expected = case["tokenizer_padded_tokens"][0]  # as the reference cut it: what follows continues from these
    grid = expected[first : first + config.clip_tokens].view(config.latent_shape)
    certain = case["unambiguous"][0].bool()  # elsewhere a rounding error may turn a token
    assert_equal("tokens", encode_tokens(encoder, video).long()[0][certain], grid[certain])
    assert_equal("begin of video", expected[:first], torch.full((first,), config.bov_token))
    assert (expected[first + config.clip_tokens :] == ar["pad_token"]).all()
    case.expect_equal("tokenizer_video_boundary", torch.tensor([[0, first + config.clip_tokens]]))

    for input_frames, latent_frames in ((1, 1), (9, 2)):
        name = f"{input_frames}f"
        prompt = expected[first : first + latent_frames * config.frame_tokens]
        case.expect_equal(f"prompt_tokens_{name}", expected[None, : first + len(prompt)])
        alone, clear = encode_input_frames(encoder, video[:, :, :input_frames])[0].long(), certain[:latent_frames]
        assert_equal(f"tokens of {input_frames} input frames alone", alone[clear], grid[:latent_frames][clear])
        engine = Decoder(network, 1)
        request = ARRequest(prompt, temperature=0.0, context=None if context is None else context[0])
        for _ in engine.prefill(0, request):
            pass
        while engine.read_num_tokens()[0] < engine.clip_length:
            engine.step()
        indices = engine.tokens(0)
        case.expect_equal(f"indices_{name}", indices)
        if f"video_{name}" in case:
            decoded = to_unit_range(decode_tokens(decoder, indices[None]))
            case.expect_close(f"video_{name}", decoded[0], relative=1e-4)


FAMILIES: dict[str, Callable[[Case], None]] = {
    "ar_pipeline": check_pipeline,
    "ar_transformer": check_transformer,
    "ar_rope_full_size": check_rope_full_size,
    "top_p_filter": check_top_p_filter,
}
