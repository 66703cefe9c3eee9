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
)
from parity.case import Case
from support.video_encoding import encode_latents, encode_tokens

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


def check_discrete(case: Case) -> None:
    reference = case.config
    config = config_from_reference(reference["tokenizer"], chunk_frames=reference["wrapper"]["pixel_chunk_duration"])
    assert config.chunk_latents == reference["wrapper"]["latent_chunk_duration"]
    encoder, decoder = DiscreteEncoder(config), DiscreteDecoder(config)
    load_half(encoder, case.weights())
    load_half(decoder, case.weights())
    fsq = encoder.fsq

    for clip in case.suffixes("video_"):
        video = case[f"video_{clip}"].float()
        latents = encoder.latents(video)
        case.expect_close(f"pre_quant_{clip}", latents, relative=LATENTS)
        clear = case[f"unambiguous_{clip}"].bool()
        codes = fsq.quantise(latents)
        case.expect_equal(f"codes_{clip}", codes, where=clear)
        case.expect_equal(f"indices_{clip}", encoder(video), where=clear)
        case.expect_equal(f"tokens_from_bf16_codes_{clip}", fsq.indices(codes.bfloat16()), where=clear)

    for clip in case.suffixes("decode_indices_"):
        indices = case[f"decode_indices_{clip}"]
        case.expect_equal(f"decode_codes_{clip}", fsq.codes(indices))
        case.expect_close(f"decoded_{clip}", decoder(indices), relative=PIXELS)

    for clip in case.suffixes("wrapper_video_"):
        video = case[f"wrapper_video_{clip}"].float()
        tokens = encode_tokens(encoder, video)
        chunks = video.split(config.chunk_frames, dim=2)
        clear = torch.cat([unambiguous(fsq, encoder.latents(chunk)) for chunk in chunks], dim=1)
        case.expect_equal(f"wrapper_indices_{clip}", tokens, where=clear)
        case.expect_equal(f"wrapper_codes_{clip}", fsq.codes(tokens), where=clear)

    for clip in case.suffixes("wrapper_decode_indices_"):
        video = decode_tokens(decoder, case[f"wrapper_decode_indices_{clip}"])
        case.expect_close(f"wrapper_decoded_{clip}", video, relative=PIXELS)


def check_continuous(case: Case) -> None:
    reference = case.config
    config = config_from_reference(reference["tokenizer"], chunk_frames=reference["wrapper"]["pixel_chunk_duration"])
    assert config.chunk_latents == reference["wrapper"]["latent_chunk_duration"]
    encoder, decoder = ContinuousEncoder(config), ContinuousDecoder(config)
    load_half(encoder, case.weights())
    load_half(decoder, case.weights())
    statistics = LatentStatistics.from_vectors(case["mean_std_mean"], case["mean_std_std"], config)
    case.expect_equal("used_latent_mean", statistics.mean)
    case.expect_equal("used_latent_std", statistics.std)

    for clip in case.suffixes("video_"):
        latents = encoder(case[f"video_{clip}"].float())
        case.expect_close(f"encoded_{clip}", latents, relative=LATENTS)
    for clip in case.suffixes("latent_"):
        video = decoder(case[f"latent_{clip}"].float())
        case.expect_close(f"decoded_{clip}", video, relative=PIXELS)
    for clip in case.suffixes("wrapper_video_"):
        latents = encode_latents(encoder, case[f"wrapper_video_{clip}"].float(), statistics)
        case.expect_close(f"wrapper_encoded_{clip}", latents, relative=LATENTS)
    for scale, prefix in ((1.0, "wrapper"), (reference["sigma_data"], "model")):
        for clip in case.suffixes(f"{prefix}_latent_"):
            latents = case[f"{prefix}_latent_{clip}"].float()
            video = decode_latents(decoder, latents, statistics, sigma_data=scale)
            case.expect_close(f"{prefix}_decoded_{clip}", video, relative=PIXELS)


def check_quantiser(case: Case) -> None:
    reference = case.config
    fsq = FSQ(tuple(reference["levels"]))
    assert fsq.codebook_size == reference["codebook_size"]
    for prefix in (prefix for prefix in ("", "grid_") if f"{prefix}latents" in case):
        latents, clear = case[f"{prefix}latents"], case[f"{prefix}unambiguous"].bool()
        codes = fsq.quantise(latents)
        case.expect_close(f"{prefix}bounded", fsq.bound(latents), relative=1e-6)
        case.expect_equal(f"{prefix}codes", codes, where=clear)
        case.expect_equal(f"{prefix}indices", fsq.indices(codes), where=clear)
    if "lookup_indices" in case:
        codes = fsq.codes(case["lookup_indices"])
        case.expect_equal("lookup_codes", codes)
        case.expect_equal("lookup_roundtrip", fsq.indices(codes))


def check_haar(case: Case) -> None:
    patch_size = case.config["patch_size"]
    levels = patch_size.bit_length() - 1

    def patch(video: Tensor) -> Tensor:
        first = video[:, :, :1].repeat(1, 1, patch_size - 1, 1, 1)
        return haar_patch(torch.cat([first, video], dim=2), levels)

    def unpatch(bands: Tensor) -> Tensor:
        return haar_unpatch(bands, levels)[:, :, patch_size - 1 :]

    for clip in case.suffixes("video_"):
        bands = patch(case[f"video_{clip}"])
        case.expect_close(f"patched_{clip}", bands, relative=1e-6)
        case.expect_close(f"roundtrip_{clip}", unpatch(bands), relative=2e-6)
    for clip in case.suffixes("random_patched_"):
        video = unpatch(case[f"random_patched_{clip}"])
        case.expect_close(f"random_unpatched_{clip}", video, relative=1e-6)


FAMILIES: dict[str, Callable[[Case], None]] = {
    "dv_tokenizer": check_discrete,
    "cv_tokenizer": check_continuous,
    "dv_fsq": check_quantiser,
    "dv_haar_patching": check_haar,
}
