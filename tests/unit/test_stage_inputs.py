"""What a stage accepts: exactly what the pipeline sends, in every deployment, and nothing around it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from tritonclient.grpc.model_config_pb2 import DataType

from cosmos_triton.networks import ar_config, tokenizer
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.generation_request import MAX_PROMPT_BYTES
from cosmos_triton.runtime.stage_inputs import BYTES, MAX_METADATA_BYTES, Accepted
from cosmos_triton.runtime.stages import STAGES
from cosmos_triton.serving.run_directory import model_repository, read_config

TYPES = {"TYPE_STRING": "object", "TYPE_BOOL": "bool"}
SIZES = (0, 1, 2, 3, 5, 8, 9, 10, 16, 32, 33, 34, 40, 64, 160, 256, 512, 640, 1024, 60_000, 220_000)
TINY = DEPLOYMENTS["tiny-video2world"]
WORKING = [stage for stage, spec in STAGES.items() if not spec.is_entry]


def strings(*values: bytes) -> np.ndarray:
    return np.array(values, np.object_)


def of_shape(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of ones that takes no memory, whatever its shape."""
    return np.broadcast_to(np.array(b"1" if dtype == BYTES else 1, dtype), shape)


def sent(deployment: Deployment) -> Iterator[tuple[str, str, np.ndarray]]:
    """Stage, name and tensor of all that the pipeline sends in this deployment: the sizes come from its networks."""
    ar, codec = ar_config.PRESETS[deployment.ar_preset], tokenizer.PRESETS[deployment.discrete_tokenizer]
    clip = np.full(ar.latent_shape, ar.vocab_size - 1, np.int32)
    video = of_shape(np.dtype(np.uint8), (deployment.frames, deployment.height, deployment.width, 3))
    yield "media_decoder", "visual_input", strings(b"clip")
    yield "media_decoder", "num_input_frames", np.array([9], np.int32)
    for frames in (1, 9):
        yield "video_tokenizer_encoder", "frames", of_shape(np.dtype(np.uint8), (frames, 2160, 3840, 3))
        yield "video_tokenizer_encoder", "pixel_aspect", np.array([16, 2**31 - 1], np.int32)
        yield "ar_sampler", "tokens", clip[: codec.latent_frames(frames)]
    yield "ar_sampler", "seed", np.array([-(2**63)])
    for name in ("temperature", "top_p"):
        yield "ar_sampler", name, np.ones(1, np.float32)
    yield "diffusion_decoder", "tokens", clip[None]
    yield "diffusion_decoder", "seed", np.array([[-(2**63)]])
    yield "video_tokenizer_decoder", "tokens", clip
    yield "video_guardrail", "video", video
    yield "media_encoder", "video", video
    yield "media_encoder", "metadata", strings(b"{}")
    if ar.context_dim:
        context = np.zeros((1, ar.context_length, ar.context_dim), np.float32)
        yield "text_guardrail", "prompt", strings("ä".encode())
        yield "text_encoder", "prompt", strings(b"a")[None]
        yield "text_encoder", "prompt", strings(*[b"a"] * 8)[:, None]
        yield "ar_sampler", "context", context[0]
        yield "diffusion_decoder", "context", context


@pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=lambda deployment: deployment.name)
def test_what_the_pipeline_sends_is_accepted(deployment: Deployment) -> None:
    seen = set()
    for stage, name, tensor in sent(deployment):
        STAGES[stage].inputs(deployment)[name].check(name, tensor)
        seen.add(stage)
    assert seen == {stage for stage in WORKING if STAGES[stage].is_in(deployment)}


@pytest.mark.parametrize("stage", WORKING)
def test_every_input_of_the_configuration_has_a_limit(stage: str) -> None:
    """Of its type and number of dimensions, and within its fixed ones."""
    config = read_config(model_repository() / stage)
    accepted = STAGES[stage].inputs(TINY)
    assert accepted.keys() == {tensor.name for tensor in config.input}
    for tensor in config.input:
        limit, type_name = accepted[tensor.name], DataType.Name(tensor.data_type)
        assert limit.dtype == np.dtype(TYPES.get(type_name) or _numpy_name(type_name)), tensor.name
        dims = limit.shape[1:] if config.max_batch_size else limit.shape
        assert len(dims) == len(tensor.dims)
        assert all(size == -1 or size in sizes for size, sizes in zip(tensor.dims, dims, strict=True))
        if limit.dtype == BYTES:
            assert limit.max_bytes


def _numpy_name(type_name: str) -> str:
    return type_name.removeprefix("TYPE_").replace("FP", "float").lower()


def test_a_base_deployment_takes_no_text() -> None:
    assert "context" not in STAGES["ar_sampler"].inputs(DEPLOYMENTS["tiny"])
    assert "context" in STAGES["ar_sampler"].inputs(TINY)


@pytest.mark.parametrize("stage", WORKING)
def test_whatever_else_is_sent_is_an_invalid_value(stage: str) -> None:
    """Every other type, number of dimensions, and size of each dimension."""
    types = [np.dtype(name) for name in ("uint8", "int32", "int64", "float32", "float16", "bool", "object")]
    for name, limit in STAGES[stage].inputs(TINY).items():
        first = tuple(sizes[0] for sizes in limit.shape)
        limit.check(name, of_shape(limit.dtype, first))
        wrong = [(dtype, first) for dtype in types if dtype != limit.dtype]
        wrong += [(limit.dtype, shape) for shape in ((), first[1:], (1, *first), (*first, 1))]
        for axis, size in product(range(len(first)), SIZES):
            if size not in limit.shape[axis]:
                wrong.append((limit.dtype, (*first[:axis], size, *first[axis + 1 :])))
        for dtype, shape in wrong:
            with pytest.raises(InvalidValue) as caught:
                limit.check(name, of_shape(dtype, shape))
            assert str(caught.value).startswith(f"{name}: value ")
            assert str(caught.value).endswith(f"; accepted: {limit}")


def test_a_limit_says_what_is_accepted() -> None:
    texts = {f"{stage} {name}": str(limit) for stage in WORKING for name, limit in STAGES[stage].inputs(TINY).items()}
    assert texts["video_tokenizer_encoder frames"] == "uint8 [1 or 9, 1 or more, 1 or more, 3]"
    assert texts["text_encoder prompt"] == "BYTES [1 to 8, 1]"
    assert texts["diffusion_decoder tokens"] == "int32 [1, 5, 10, 16]"


@pytest.mark.parametrize(
    ("stage", "name", "most"),
    [
        ("media_decoder", "visual_input", 64 << 20),
        ("text_guardrail", "prompt", MAX_PROMPT_BYTES),
        ("media_encoder", "metadata", MAX_METADATA_BYTES),
    ],
)
def test_strings_have_a_length(stage: str, name: str, most: int) -> None:
    limit = STAGES[stage].inputs(TINY)[name]
    limit.check(name, strings(b"a" * most))
    with pytest.raises(InvalidValue, match=f"^{name}: value {most + 1} bytes; accepted: up to {most} bytes"):
        limit.check(name, strings(b"a" * (most + 1)))


def test_every_string_of_a_batch_is_held_to_it() -> None:
    limit = STAGES["text_encoder"].inputs(TINY)["prompt"]
    for wrong in (b"a" * (MAX_PROMPT_BYTES + 1), b"\xff"):
        for place in range(8):
            prompts = [b"a"] * 8
            prompts[place] = wrong
            with pytest.raises(InvalidValue, match=r"^prompt: value "):
                limit.check("prompt", strings(*prompts)[:, None])


def test_frames_of_any_size_have_limited_bytes() -> None:
    limit = STAGES["video_tokenizer_encoder"].inputs(TINY)["frames"]
    side = 1 << 14  # 256 MiB are 89 million pixels of one frame, or 9.9 million of each of nine
    limit.check("frames", of_shape(limit.dtype, (1, 5461, side, 3)))
    for shape in ((1, 5462, side, 3), (9, side, 1024, 3), (9, 2**26, 2**26, 3)):
        with pytest.raises(InvalidValue, match=r"^frames: value \d+ bytes; accepted: up to 268435456 bytes"):
            limit.check("frames", of_shape(limit.dtype, shape))


@pytest.mark.parametrize("stage", ["ar_sampler", "diffusion_decoder", "video_tokenizer_decoder"])
@pytest.mark.parametrize("deployment", ["4b", "tiny"])
def test_tokens_are_of_the_vocabulary(stage: str, deployment: str) -> None:
    """Others would be rows that the embedding does not have."""
    vocabulary = ar_config.PRESETS[DEPLOYMENTS[deployment].ar_preset].vocab_size
    limit = STAGES[stage].inputs(DEPLOYMENTS[deployment])["tokens"]
    shape = tuple(sizes[0] for sizes in limit.shape)
    for token in (0, vocabulary - 1):
        limit.check("tokens", np.full(shape, token, np.int32))
    for token in (-1, vocabulary, 2**31 - 1, -(2**31)):
        tokens = np.zeros(shape, np.int32)
        tokens.flat[-1] = token
        with pytest.raises(InvalidValue, match=rf"^tokens: value .*{token}.*; accepted: 0 to {vocabulary - 1}$"):
            limit.check("tokens", tokens)


def test_a_dtype_is_named_as_clients_know_it() -> None:
    with pytest.raises(InvalidValue, match=r"^x: value BYTES \[1\]; accepted: uint8 \[3\]$"):
        Accepted(np.dtype(np.uint8), ((3,),)).check("x", strings(b""))
