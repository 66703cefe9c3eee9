"""What each stage accepts as its input tensors in a deployment.

The server holds names, data types and fixed dimensions against the stage's config.pbtxt. What depends on the deployment
is held against these, before a stage does anything with a tensor; `runtime/stages.py` says which stage has which.

Legend: T frames, H, W pixels; t, h, w latent grid; E tokens of a prompt, C embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.generation_request import INPUT_FRAMES, MAX_PROMPT_BYTES
from cosmos_triton.runtime.media.limits import LIMITS

if TYPE_CHECKING:
    from cosmos_triton.networks.ar_config import ARConfig

Sizes = tuple[int, ...] | range

ONE: Sizes = (1,)
RGB: Sizes = (3,)
ANY: Sizes = range(1, 1 << 31)
MAX_METADATA_BYTES = 64 * 1024
MAX_PROMPTS = 8  # in a batch
BYTES = np.dtype(np.object_)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What one input tensor may be.

    Args:
        dtype: BYTES for strings.
        shape: the sizes that each dimension may have.
        max_bytes: of the tensor, or of each string; 0 where the shape is limit enough.
        values: which integers; None for all.
        is_text: whether strings must be UTF-8.
    """

    dtype: np.dtype[Any]
    shape: tuple[Sizes, ...]
    max_bytes: int = 0
    values: range | None = None
    is_text: bool = False

    def check(self, name: str, tensor: NDArray[Any]) -> None:
        """Raises InvalidValue, under the tensor's name, unless it is accepted."""
        is_shape = len(tensor.shape) == len(self.shape) and all(map(_contains, self.shape, tensor.shape))
        if tensor.dtype != self.dtype or not is_shape:
            raise InvalidValue(name, f"{_type_name(tensor.dtype)} {list(tensor.shape)}", str(self))
        sizes = map(len, tensor.flat) if self.dtype == BYTES else [tensor.nbytes]
        if self.max_bytes and (size := max(sizes)) > self.max_bytes:
            raise InvalidValue(name, f"{size} bytes", f"up to {self.max_bytes} bytes")
        if self.values and not (self.values[0] <= tensor.min() and tensor.max() <= self.values[-1]):
            value = f"{tensor.min()} to {tensor.max()}"
            raise InvalidValue(name, value, f"{self.values[0]} to {self.values[-1]}")
        if self.is_text:
            for text in tensor.flat:
                decoded(name, text)

    def __str__(self) -> str:
        return f"{_type_name(self.dtype)} [{', '.join(map(_describe, self.shape))}]"


Inputs = dict[str, Accepted]  # all inputs that a stage has in a deployment, by name


def decoded(name: str, text: bytes) -> str:
    """The text of an input's string. Raises InvalidValue where it is not UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InvalidValue(name, f"bytes that are not UTF-8 ({error.reason})", "text in UTF-8") from None


def _contains(sizes: Sizes, size: int) -> bool:
    return size in sizes


def _describe(sizes: Sizes) -> str:
    if sizes == ANY:
        return "1 or more"
    return f"{sizes[0]} to {sizes[-1]}" if isinstance(sizes, range) else " or ".join(map(str, sizes))


def _type_name(dtype: np.dtype[Any]) -> str:
    return "BYTES" if dtype == BYTES else dtype.name


def none(deployment: Deployment) -> Inputs:
    """Of the entry models, which take what `GenerationRequest` accepts."""
    return {}


def media_file(deployment: Deployment) -> Inputs:
    return {
        "visual_input": Accepted(BYTES, (ONE,), max_bytes=LIMITS.file_bytes),
        "num_input_frames": _scalar(np.int32),
    }


def prompt(deployment: Deployment) -> Inputs:
    return {"prompt": Accepted(BYTES, (ONE,), max_bytes=MAX_PROMPT_BYTES, is_text=True)}


def prompts(deployment: Deployment) -> Inputs:
    """Up to MAX_PROMPTS, a batch [B, 1]."""
    batch = range(1, MAX_PROMPTS + 1)
    return {"prompt": Accepted(BYTES, (batch, ONE), max_bytes=MAX_PROMPT_BYTES, is_text=True)}


def input_frames(deployment: Deployment) -> Inputs:
    """Frames of any size, [T, H, W, 3], and a pixel's width and height."""
    shape = (INPUT_FRAMES["video"], ANY, ANY, RGB)
    return {
        "frames": Accepted(np.dtype(np.uint8), shape, max_bytes=LIMITS.decoded_bytes),
        "pixel_aspect": Accepted(np.dtype(np.int32), ((2,),), values=range(1, 1 << 31)),
    }


def clip_start(deployment: Deployment) -> Inputs:
    """Tokens of the input frames [t, h, w], sampling parameters, and the context [E, C] where there is one."""
    from cosmos_triton.networks import tokenizer  # here, since it imports torch

    config = tokenizer.PRESETS[deployment.discrete_tokenizer]
    accepted = {
        "tokens": _tokens(deployment, tuple(map(config.latent_frames, INPUT_FRAMES["video"]))),
        "seed": _scalar(np.int64),
        "temperature": _scalar(np.float32),
        "top_p": _scalar(np.float32),
    }
    width = _ar_config(deployment).context_dim
    return accepted if width is None else accepted | {"context": _context(deployment, width)}


def clip_tokens(deployment: Deployment) -> Inputs:
    """Tokens of a whole clip, [t, h, w]."""
    return {"tokens": _tokens(deployment, _clip_latents(deployment))}


def clip_and_context(deployment: Deployment) -> Inputs:
    """Tokens of a whole clip [1, t, h, w], the context [1, E, C], and the seed [1, 1]."""
    from cosmos_triton.networks import diffusion_transformer  # here, since it imports torch

    width = diffusion_transformer.PRESETS[deployment.diffusion_decoder].context_dim
    return {
        "tokens": _tokens(deployment, ONE, _clip_latents(deployment)),
        "context": _context(deployment, width, ONE),
        "seed": Accepted(np.dtype(np.int64), (ONE, ONE)),
    }


def video(deployment: Deployment) -> Inputs:
    """A whole clip, [T, H, W, 3]."""
    shape = ((deployment.frames,), (deployment.height,), (deployment.width,), RGB)
    return {"video": Accepted(np.dtype(np.uint8), shape)}


def video_and_metadata(deployment: Deployment) -> Inputs:
    metadata = Accepted(BYTES, (ONE,), max_bytes=MAX_METADATA_BYTES, is_text=True)
    return video(deployment) | {"metadata": metadata}


def _scalar(dtype: type[np.generic]) -> Accepted:
    return Accepted(np.dtype(dtype), (ONE,))


def _tokens(deployment: Deployment, *leading: Sizes) -> Accepted:
    """[..., h, w], with `leading` dimensions in front of the last two."""
    config = _ar_config(deployment)
    height, width = config.latent_shape[1:]
    return Accepted(np.dtype(np.int32), (*leading, (height,), (width,)), values=range(config.vocab_size))


def _clip_latents(deployment: Deployment) -> Sizes:
    return (_ar_config(deployment).latent_shape[0],)


def _context(deployment: Deployment, width: int, *batch: Sizes) -> Accepted:
    """[..., E, C]"""
    return Accepted(np.dtype(np.float32), (*batch, (_ar_config(deployment).context_length,), (width,)))


def _ar_config(deployment: Deployment) -> ARConfig:
    from cosmos_triton.networks import ar_config  # here, since it imports torch, which the media stages do without

    return ar_config.PRESETS[deployment.ar_preset]
