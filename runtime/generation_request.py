"""The parameters of a request, validated before any stage runs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.errors import InvalidValue

MAX_TEMPERATURE = 10.0
MAX_PROMPT_BYTES = 100_000

MediaKind = Literal["image", "video"]

# How many frames of an input the models were trained to continue. The default is the most of its kind.
INPUT_FRAMES: dict[MediaKind, tuple[int, ...]] = {"image": (1,), "video": (1, 9)}


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Parameters of one generation with defaults filled in.

    `num_input_frames` may be None: its default depends on the input, see `num_input_frames_of`.
    """

    prompt: str | None
    num_input_frames: int | None
    temperature: float
    top_p: float
    seed: int
    disable_diffusion_decoder: bool

    @classmethod
    def checked(
        cls,
        deployment: Deployment,
        *,
        prompt: str | None = None,
        num_input_frames: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        disable_diffusion_decoder: bool | None = None,
    ) -> GenerationRequest:
        """Validate the parameters; those that are None get the deployment's defaults.

        Raises:
            InvalidValue: names the field, its value, and what is accepted.
        """
        _check_prompt(deployment, prompt)
        request = cls(
            prompt=prompt,
            num_input_frames=num_input_frames,
            temperature=1.0 if temperature is None else temperature,
            top_p=deployment.top_p if top_p is None else top_p,
            seed=seed or 0,
            disable_diffusion_decoder=bool(disable_diffusion_decoder),
        )
        check_num_input_frames(num_input_frames)
        if not 0 <= request.temperature <= MAX_TEMPERATURE:  # NaN is refused too
            raise InvalidValue("temperature", _short(request.temperature), f"0 to {MAX_TEMPERATURE:g}")
        if not 0 < request.top_p <= 1:
            raise InvalidValue("top_p", _short(request.top_p), "above 0, up to 1")
        if request.seed < 0:
            raise InvalidValue("seed", request.seed, "0 or more")
        return request

    def parameters(self) -> dict[str, Any]:
        """All but the prompt, for the report."""
        values = asdict(self)
        del values["prompt"]
        return values | {"temperature": _short(self.temperature), "top_p": _short(self.top_p)}


def check_num_input_frames(count: int | None) -> None:
    """Raises InvalidValue for a count that no kind of input accepts; None is accepted."""
    if count is not None and count not in INPUT_FRAMES["video"]:
        raise InvalidValue("num_input_frames", count, "1 or 9")


def num_input_frames_of(kind: MediaKind, count: int | None) -> int:
    """How many frames of an input to use: `count`, or the default of its kind.

    Raises:
        InvalidValue: an input of this kind does not have that many.
    """
    if count is None:
        return max(INPUT_FRAMES[kind])
    if count not in INPUT_FRAMES[kind]:
        raise InvalidValue("num_input_frames", f"{count} of an image", "1 for an image, 1 or 9 for a clip")
    return count


def _check_prompt(deployment: Deployment, prompt: str | None) -> None:
    if not deployment.is_video2world:
        if prompt is not None:
            raise InvalidValue("prompt", "given", f"none: {deployment.name} is a base deployment")
        return
    size = 0 if prompt is None else len(prompt.encode())
    if size > MAX_PROMPT_BYTES:  # first: to look at every character of a long one takes seconds
        raise InvalidValue("prompt", f"{size} bytes", f"up to {MAX_PROMPT_BYTES} bytes")
    if prompt is None or not any(_is_visible(character) for character in prompt):
        value = "missing" if prompt is None else "empty"
        raise InvalidValue("prompt", value, f"a text: {deployment.name} is a video2world deployment")


def _is_visible(character: str) -> bool:
    """False for white space, and for zero-width, format and control characters."""
    return character.isprintable() and not character.isspace()


def _short(value: float) -> float:
    """A float that was converted to fp32 and back, rounded to the digits that the user wrote."""
    return value if math.isnan(value) else float(f"{value:.6g}")
