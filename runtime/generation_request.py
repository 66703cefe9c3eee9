"""What a user asks for, checked before any stage works on it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from cosmos_triton.runtime.deployments import Deployment
from cosmos_triton.runtime.errors import InvalidValue

MAX_TEMPERATURE = 10.0
MAX_PROMPT_BYTES = 100_000
INPUT_FRAMES = (1, 9)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Parameters of one generation, defaults filled in. `num_input_frames` is None until the input is known."""

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
        """With the deployment's defaults for what is None.

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
        if num_input_frames is not None and num_input_frames not in INPUT_FRAMES:
            raise InvalidValue("num_input_frames", num_input_frames, "1 or 9")
        if not 0 <= request.temperature <= MAX_TEMPERATURE:  # NaN is refused too
            raise InvalidValue("temperature", _short(request.temperature), f"0 to {MAX_TEMPERATURE:g}")
        if not 0 < request.top_p <= 1:
            raise InvalidValue("top_p", _short(request.top_p), "above 0, up to 1")
        if request.seed < 0:
            raise InvalidValue("seed", request.seed, "0 or more")
        return request

    def parameters(self) -> dict[str, Any]:
        """For the report: all but the prompt."""
        values = asdict(self)
        del values["prompt"]
        return values | {"temperature": _short(self.temperature), "top_p": _short(self.top_p)}


def _check_prompt(deployment: Deployment, prompt: str | None) -> None:
    if not deployment.is_video2world:
        if prompt is not None:
            raise InvalidValue("prompt", "given", f"none: {deployment.name} is a base deployment")
        return
    if prompt is None or not any(_is_visible(character) for character in prompt):
        value = "missing" if prompt is None else "empty"
        raise InvalidValue("prompt", value, f"a text: {deployment.name} is a video2world deployment")
    size = len(prompt.encode())
    if size > MAX_PROMPT_BYTES:
        raise InvalidValue("prompt", f"{size} bytes", f"up to {MAX_PROMPT_BYTES} bytes")


def _is_visible(character: str) -> bool:
    """Blanks are not, nor are zero-width, format and control characters."""
    return character.isprintable() and not character.isspace()


def _short(value: float) -> float:
    """A number that travelled as fp32, as it was written."""
    return value if math.isnan(value) else float(f"{value:.6g}")
