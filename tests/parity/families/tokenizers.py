"""The discrete and the continuous video tokenizer, and alone their quantiser and their wavelet patching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cosmos_triton.networks.fsq import FSQ
from cosmos_triton.networks.haar import haar_patch, haar_unpatch
from cosmos_triton.networks.tokenizer import (
    ContinuousDecoder,
    ContinuousEncoder,
    DiscreteDecoder,
    DiscreteEncoder,
    TokenizerConfig,
)
from cosmos_triton.runtime.video_tokenizer import (
    LatentStatistics,
    decode_latents,
    decode_tokens,
    encode_latents,
    encode_tokens,
)
from parity.case import Case, assert_close, assert_equal

LATENTS = 1e-5
PIXELS = 1e-5


def config_from_reference(tokenizer: dict[str, Any], *, chunk_frames: int) -> TokenizerConfig:
    """The `tokenizer` section of a case; `chunk_frames` stands elsewhere in it."""
    assert tokenizer["patch_method"] == "haar"
    assert not tokenizer["legacy_mode"]
    assert tokenizer["z_factor"] == tokenizer["num_groups"] == 1
    levels = tuple(tokenizer.get("levels", ()))
    return TokenizerConfig(
        channels=tokenizer["channels"],
        channels_mult=tuple(tokenizer["channels_mult"]),
        num_res_blocks=tokenizer["num_res_blocks"],
        z_channels=tokenizer["z_channels"],
        latent_channels=tokenizer["embedding_dim"] if levels else tokenizer["latent_channels"],
        levels=levels,
        spatial_compression=tokenizer["spatial_compression"],
        temporal_compression=tokenizer["temporal_compression"],
        patch_size=tokenizer["patch_size"],
        chunk_frames=chunk_frames,
    )


def load_half(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load an encoder or a decoder from the weights of both."""
    halves = {name for name, _ in network.named_children()}
    half = {key: tensor for key, tensor in weights.items() if key.split(".")[0] in halves}
    network.load_state_dict(half, strict=True)
    network.eval()


def unambiguous(fsq: FSQ, latents: Tensor) -> Tensor:
    """Where no channel is so near a rounding boundary that float noise may decide, [B, t, h, w]."""
    bounded = fsq.bound(latents)
    return ((bounded - bounded.floor() - 0.5).abs() > 1e-3).all(dim=1)


def assert_equal_where(mask: Tensor, name: str, actual: Tensor, expected: Tensor) -> None:
    """On [B, t, h, w] where mask is set, or on all channels there."""
    assert mask.float().mean() > 0.5, f"{name}: too few values to compare"
    if actual.dim() > mask.dim():
        mask = mask[:, None].expand_as(expected)
    assert_equal(name, actual.masked_select(mask), expected.masked_select(mask))


def suffixes(io: dict[str, Tensor], prefix: str) -> list[str]:
    names = sorted(name.removeprefix(prefix) for name in io if name.startswith(prefix))
    assert names, f"no tensor {prefix}*"
    return names


def check_discrete(case: Case) -> None:
    io, reference = case.io, case.config
    config = config_from_reference(reference["tokenizer"], chunk_frames=reference["wrapper"]["pixel_chunk_duration"])
    assert config.chunk_latents == reference["wrapper"]["latent_chunk_duration"]
    encoder, decoder = DiscreteEncoder(config), DiscreteDecoder(config)
    load_half(encoder, case.weights())
    load_half(decoder, case.weights())
    fsq = encoder.fsq

    for clip in suffixes(io, "video_"):
        video = io[f"video_{clip}"].float()
        latents = encoder.latents(video)
        assert_close(f"pre_quant_{clip}", latents, io[f"pre_quant_{clip}"], relative=LATENTS)
        clear = io[f"unambiguous_{clip}"].bool()
        codes = fsq.quantise(latents)
        assert_equal_where(clear, f"codes_{clip}", codes, io[f"codes_{clip}"])
        assert_equal_where(clear, f"indices_{clip}", encoder(video), io[f"indices_{clip}"])
        tokens = fsq.indices(codes.bfloat16())
        expected = io[f"tokens_from_bf16_codes_{clip}"]
        assert_equal_where(clear, f"tokens_from_bf16_codes_{clip}", tokens, expected)

    for clip in suffixes(io, "decode_indices_"):
        indices = io[f"decode_indices_{clip}"]
        assert_equal(f"decode_codes_{clip}", fsq.codes(indices), io[f"decode_codes_{clip}"])
        assert_close(f"decoded_{clip}", decoder(indices), io[f"decoded_{clip}"], relative=PIXELS)

    for clip in suffixes(io, "wrapper_video_"):
        video = io[f"wrapper_video_{clip}"].float()
        tokens = encode_tokens(encoder, video)
        chunks = video.split(config.chunk_frames, dim=2)
        clear = torch.cat([unambiguous(fsq, encoder.latents(chunk)) for chunk in chunks], dim=1)
        assert_equal_where(clear, f"wrapper_indices_{clip}", tokens, io[f"wrapper_indices_{clip}"])
        assert_equal_where(clear, f"wrapper_codes_{clip}", fsq.codes(tokens), io[f"wrapper_codes_{clip}"])

    for clip in suffixes(io, "wrapper_decode_indices_"):
        video = decode_tokens(decoder, io[f"wrapper_decode_indices_{clip}"])
        assert_close(f"wrapper_decoded_{clip}", video, io[f"wrapper_decoded_{clip}"], relative=PIXELS)


def check_continuous(case: Case) -> None:
    io, reference = case.io, case.config
    config = config_from_reference(reference["tokenizer"], chunk_frames=reference["wrapper"]["pixel_chunk_duration"])
    assert config.chunk_latents == reference["wrapper"]["latent_chunk_duration"]
    encoder, decoder = ContinuousEncoder(config), ContinuousDecoder(config)
    load_half(encoder, case.weights())
    load_half(decoder, case.weights())
    statistics = LatentStatistics.from_vectors(io["mean_std_mean"], io["mean_std_std"], config)
    assert_equal("used_latent_mean", statistics.mean, io["used_latent_mean"])
    assert_equal("used_latent_std", statistics.std, io["used_latent_std"])

    for clip in suffixes(io, "video_"):
        latents = encoder(io[f"video_{clip}"].float())
        assert_close(f"encoded_{clip}", latents, io[f"encoded_{clip}"], relative=LATENTS)
    for clip in suffixes(io, "latent_"):
        video = decoder(io[f"latent_{clip}"].float())
        assert_close(f"decoded_{clip}", video, io[f"decoded_{clip}"], relative=PIXELS)
    for clip in suffixes(io, "wrapper_video_"):
        latents = encode_latents(encoder, io[f"wrapper_video_{clip}"].float(), statistics)
        assert_close(f"wrapper_encoded_{clip}", latents, io[f"wrapper_encoded_{clip}"], relative=LATENTS)
    for scale, prefix in ((1.0, "wrapper"), (reference["sigma_data"], "model")):
        for clip in suffixes(io, f"{prefix}_latent_"):
            latents = io[f"{prefix}_latent_{clip}"].float()
            video = decode_latents(decoder, latents, statistics, sigma_data=scale)
            assert_close(f"{prefix}_decoded_{clip}", video, io[f"{prefix}_decoded_{clip}"], relative=PIXELS)


def check_quantiser(case: Case) -> None:
    io, reference = case.io, case.config
    fsq = FSQ(tuple(reference["levels"]))
    assert fsq.codebook_size == reference["codebook_size"]
    for prefix in ("", "grid_"):
        latents, clear = io[f"{prefix}latents"], io[f"{prefix}unambiguous"].bool()
        codes = fsq.quantise(latents)
        assert_close(f"{prefix}bounded", fsq.bound(latents), io[f"{prefix}bounded"], relative=1e-6)
        assert_equal_where(clear, f"{prefix}codes", codes, io[f"{prefix}codes"])
        assert_equal_where(clear, f"{prefix}indices", fsq.indices(codes), io[f"{prefix}indices"])
    codes = fsq.codes(io["lookup_indices"])
    assert_equal("lookup_codes", codes, io["lookup_codes"])
    assert_equal("lookup_roundtrip", fsq.indices(codes), io["lookup_roundtrip"])


def check_haar(case: Case) -> None:
    io, patch_size = case.io, case.config["patch_size"]
    levels = patch_size.bit_length() - 1

    def patch(video: Tensor) -> Tensor:
        first = video[:, :, :1].repeat(1, 1, patch_size - 1, 1, 1)
        return haar_patch(torch.cat([first, video], dim=2), levels)

    def unpatch(bands: Tensor) -> Tensor:
        return haar_unpatch(bands, levels)[:, :, patch_size - 1 :]

    for clip in suffixes(io, "video_"):
        bands = patch(io[f"video_{clip}"])
        assert_close(f"patched_{clip}", bands, io[f"patched_{clip}"], relative=1e-6)
        assert_close(f"roundtrip_{clip}", unpatch(bands), io[f"roundtrip_{clip}"], relative=2e-6)
    for clip in suffixes(io, "random_patched_"):
        video = unpatch(io[f"random_patched_{clip}"])
        assert_close(f"random_unpatched_{clip}", video, io[f"random_unpatched_{clip}"], relative=1e-6)


FAMILIES: dict[str, Callable[[Case], None]] = {
    "dv_tokenizer": check_discrete,
    "cv_tokenizer": check_continuous,
    "dv_fsq": check_quantiser,
    "dv_haar_patching": check_haar,
}
