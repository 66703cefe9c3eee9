"""The video tokenizers: the released keys, causality, chunks, and what quantiser and wavelets promise."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_triton.networks.fsq import FSQ
from cosmos_triton.networks.haar import haar_patch, haar_unpatch
from cosmos_triton.networks.tokenizer import (
    PRESETS,
    ContinuousDecoder,
    ContinuousEncoder,
    DiscreteDecoder,
    DiscreteEncoder,
)
from cosmos_triton.networks.tokenizer_layers import QUERIES, Attention
from cosmos_triton.runtime.video_tokenizer import (
    LatentStatistics,
    decode_latents,
    decode_tokens,
    encode_input_frames,
)
from support.paths import RELEASED_MANIFESTS
from support.video_encoding import encode_latents, encode_tokens

EXACT = {"rtol": 0, "atol": 1e-11}  # of float64 networks: the same sums in another order


def randomise(network: nn.Module) -> None:
    """float64, and weights that keep variance from layer to layer, so that the output varies."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    network.double().eval()


@pytest.fixture(scope="module")
def discrete_encoder() -> DiscreteEncoder:
    encoder = DiscreteEncoder(PRESETS["tiny-dv"])
    randomise(encoder)
    encoder.quant_conv.conv3d.weight.data *= 3
    return encoder


@pytest.fixture(scope="module")
def discrete_decoder() -> DiscreteDecoder:
    decoder = DiscreteDecoder(PRESETS["tiny-dv"])
    randomise(decoder)
    return decoder


def smooth_video(frames: int, height: int = 64, width: int = 96) -> Tensor:
    """Moving blobs, [1, 3, T, H, W] in [-1, 1]."""
    noise = torch.randn(1, 3, 2 + frames // 4, 6, 8, generator=torch.Generator().manual_seed(1))
    return F.interpolate(noise, size=(frames, height, width), mode="trilinear").clamp(-1, 1).double()


def random_tokens(frames: int) -> Tensor:
    vocabulary = PRESETS["tiny-dv"].codebook_size
    return torch.randint(vocabulary, (1, frames, 2, 3), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("file", "preset", "network"),
    [
        ("Cosmos-1.0-Tokenizer-DV8x16x16/encoder.jit", "dv8x16x16", DiscreteEncoder),
        ("Cosmos-1.0-Tokenizer-DV8x16x16/decoder.jit", "dv8x16x16", DiscreteDecoder),
        ("Cosmos-1.0-Tokenizer-CV8x8x8/encoder.jit", "cv8x8x8", ContinuousEncoder),
        ("Cosmos-1.0-Tokenizer-CV8x8x8/decoder.jit", "cv8x8x8", ContinuousDecoder),
    ],
)
def test_keys_and_shapes_are_those_of_the_released_file(file: str, preset: str, network: type[nn.Module]) -> None:
    with gzip.open(RELEASED_MANIFESTS) as manifest:
        released = json.load(manifest)["files"][file]["keys"]
    with torch.device("meta"):
        ours = network(PRESETS[preset]).state_dict()
    assert {key: list(tensor.shape) for key, tensor in ours.items()} == {key: spec[0] for key, spec in released.items()}


@pytest.mark.parametrize("preset", ["dv8x16x16", "cv8x8x8"])
def test_convolutions_on_a_gpu_get_the_format_that_needs_no_workspace(preset: str) -> None:
    """In the other one, what comes out depends on how much memory is free."""
    config = PRESETS[preset]
    formats = []

    def note(_: nn.Module, inputs: tuple[Tensor]) -> None:
        formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last_3d))

    with torch.device("meta"):
        video = torch.empty(1, 3, 17, 64, 96)
        encoder, decoder = ContinuousEncoder(config), ContinuousDecoder(config)
        for module in (*encoder.modules(), *decoder.modules()):
            if isinstance(module, nn.Conv3d):
                module.register_forward_pre_hook(note)
        decoder(encoder(video))
    assert len(formats) > 100
    assert all(formats)


@pytest.mark.parametrize("frames", [1, 9])
def test_input_frames_alone_give_the_tokens_of_the_padded_clip(discrete_encoder: DiscreteEncoder, frames: int) -> None:
    clip = smooth_video(33)
    clip[:, :, frames:] = clip[:, :, frames - 1 : frames]
    tokens = encode_input_frames(discrete_encoder, clip[:, :, :frames])
    kept = tokens.shape[1]
    assert kept == discrete_encoder.config.latent_frames(frames)
    assert len(tokens.unique()) > 0.4 * tokens.numel(), "nearly one token everywhere proves nothing"
    assert torch.equal(tokens, encode_tokens(discrete_encoder, clip)[:, :kept])
    with torch.inference_mode():
        latents = discrete_encoder.latents(clip[:, :, :frames])
        torch.testing.assert_close(latents, discrete_encoder.latents(clip)[:, :, :kept], **EXACT)


@torch.inference_mode()
def test_encoder_is_causal(discrete_encoder: DiscreteEncoder) -> None:
    video = smooth_video(33)
    changed = video.clone()
    changed[:, :, 9] += 0.5
    before, after = discrete_encoder.latents(video), discrete_encoder.latents(changed)
    torch.testing.assert_close(after[:, :, :2], before[:, :, :2], **EXACT)
    assert (after - before)[:, :, 2].abs().max() > 1e-3


@torch.inference_mode()
def test_decoder_is_causal(discrete_decoder: DiscreteDecoder) -> None:
    tokens = random_tokens(5)
    changed = tokens.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 1000
    before, after = discrete_decoder(tokens), discrete_decoder(changed)
    torch.testing.assert_close(after[:, :, :9], before[:, :, :9], **EXACT)
    assert (after - before)[:, :, 9:17].abs().amax(dim=(0, 1, 3, 4)).min() > 1e-3


def test_chunks_are_encoded_and_decoded_independently(
    discrete_encoder: DiscreteEncoder, discrete_decoder: DiscreteDecoder
) -> None:
    video, tokens = smooth_video(66), random_tokens(10)
    apart = [encode_tokens(discrete_encoder, chunk) for chunk in video.split(33, dim=2)]
    assert torch.equal(encode_tokens(discrete_encoder, video), torch.cat(apart, dim=1))
    decoded = [decode_tokens(discrete_decoder, chunk) for chunk in tokens.split(5, dim=1)]
    torch.testing.assert_close(decode_tokens(discrete_decoder, tokens), torch.cat(decoded, dim=2), **EXACT)


def test_continuous_latents_are_scaled_frame_by_frame_and_back() -> None:
    config = PRESETS["tiny-cv"]
    encoder, decoder = ContinuousEncoder(config), ContinuousDecoder(config)
    randomise(encoder)
    randomise(decoder)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.rand(2, config.latent_channels * 16, generator=generator, dtype=torch.float64) + 0.5
    statistics = LatentStatistics.from_vectors(vectors[0], vectors[1], config)
    video = smooth_video(2 * config.chunk_frames, 16, 24)

    latents = encode_latents(encoder, video, statistics)
    assert latents.shape == (1, config.latent_channels, 2 * config.chunk_latents, 2, 3)
    with torch.inference_mode():
        chunks = [encoder(chunk) for chunk in video.split(config.chunk_frames, dim=2)]
        # Channel 1, frame 3 of the second chunk: entry 16 + 3 of each vector.
        expected = (chunks[1][:, 1, 3] - vectors[0, 19]) / vectors[1, 19]
        torch.testing.assert_close(latents[:, 1, config.chunk_latents + 3], expected, **EXACT)
        expected = torch.cat([decoder(chunk) for chunk in chunks], dim=2)
    decoded = decode_latents(decoder, 0.5 * latents, statistics, sigma_data=0.5)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-9)


def test_lengths_and_sizes_that_do_not_fit_are_refused(
    discrete_encoder: DiscreteEncoder, discrete_decoder: DiscreteDecoder
) -> None:
    with pytest.raises(ValueError, match="frames 8 must be 1 \\+ a multiple of 8"):
        encode_input_frames(discrete_encoder, smooth_video(8))
    with pytest.raises(ValueError, match="size 40x96: both must be multiples of 16"):
        encode_input_frames(discrete_encoder, smooth_video(1, height=40))
    with pytest.raises(ValueError, match="frames 34 must be a multiple of the chunk, 33"):
        encode_tokens(discrete_encoder, smooth_video(34))
    with pytest.raises(ValueError, match="frames 6 must be a multiple of the chunk, 5"):
        decode_tokens(discrete_decoder, random_tokens(6))


@torch.inference_mode()
def test_every_pixel_attends_to_all_of_its_frame_however_large_that_is() -> None:
    """Also where there are more pixels than attend at a time, as there are in a served video."""
    height, width = 33, 32
    assert QUERIES < height * width < 2 * QUERIES
    attention = Attention(4, over_time=False)
    randomise(attention)
    x = torch.randn(2, 4, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    normed = attention.norm(x)
    q, k, v = (part(normed).flatten(3).movedim(1, -1) for part in (attention.q, attention.k, attention.v))  # [B,T,HW,C]
    attended = (q @ k.mT / 4**0.5).softmax(-1) @ v
    expected = x + attention.proj_out(attended.movedim(-1, 1).unflatten(3, (height, width)))
    torch.testing.assert_close(attention(x), expected, **EXACT)


@torch.inference_mode()
def test_bf16_tokenizer_runs_and_quantises_in_fp32() -> None:
    config = PRESETS["tiny-dv"]
    encoder, decoder = DiscreteEncoder(config).bfloat16(), DiscreteDecoder(config).bfloat16()
    video = smooth_video(9)
    latents = encoder.latents(video.bfloat16())
    assert latents.dtype == torch.bfloat16
    tokens = encode_input_frames(encoder, video)
    assert torch.equal(tokens, encoder.fsq.indices(encoder.fsq.quantise(latents.float())))
    assert decoder(tokens).dtype == torch.bfloat16


def test_haar_unpatching_inverts_patching() -> None:
    video = torch.randn(2, 3, 8, 12, 16, dtype=torch.float64)
    bands = haar_patch(video, 2)
    assert bands.shape == (2, 192, 2, 3, 4)
    torch.testing.assert_close(bands[:, :3], F.avg_pool3d(video, 4))
    torch.testing.assert_close(haar_unpatch(bands, 2), video)


def test_haar_taps_are_rounded_to_bf16_in_a_bf16_module() -> None:
    value = 0.88671875  # three passes with exact taps would give 0.890625
    bands = haar_patch(torch.full((1, 1, 2, 2, 2), value, dtype=torch.bfloat16), 1)
    assert bands.flatten().tolist() == [0.8828125, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("levels", [PRESETS["dv8x16x16"].levels, PRESETS["tiny-dv"].levels, (15, 3, 6)])
def test_every_index_has_a_code_of_its_own_and_returns_from_it(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels)
    indices = torch.arange(fsq.codebook_size, dtype=torch.int32).view(1, -1, 1, 1)
    codes = fsq.codes(indices)
    assert torch.equal(fsq.indices(codes), indices)
    assert torch.equal(fsq.indices(codes.bfloat16()), indices)


def test_quantiser_reaches_every_level_and_no_other() -> None:
    levels = (8, 5, 7, 2)
    sweep = torch.linspace(-9, 9, 2001).view(1, 1, -1, 1, 1).expand(-1, len(levels), -1, -1, -1)
    codes = FSQ(levels).quantise(sweep)[0, :, :, 0, 0]  # [C, N]
    for channel, level in zip(codes, levels, strict=True):
        assert channel.unique().tolist() == pytest.approx([(i - level // 2) / (level // 2) for i in range(level)])
