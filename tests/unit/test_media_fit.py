"""Frames of any shape at the model's size."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.media.fit import Fit, Size, pixel_aspect_of
from cosmos_triton.runtime.media.frames import fit, to_model_input

RELEASED, TINY = (640, 1024), (160, 256)
THIN = [
    (2, 4096),
    (1, 12_000),
    (12_000, 1),
    (8, 4096),
    (4096, 8),
    (1, 200_000),
    (200_000, 1),
    (1, 1),
    (1, 2),
    (80, 3000),
]


def scaled_as_a_whole(x: Tensor, target: Size, aspect: Fraction = Fraction(1)) -> Tensor:
    """The reference's way: [T, C, H, W] scaled to cover `target`, then cropped."""
    plan = Fit.plan((x.shape[-2], x.shape[-1]), target, aspect)
    x = F.interpolate(x, size=plan.resized, mode="bilinear", align_corners=False, antialias=True)
    return x[:, :, plan.top : plan.top + target[0], plan.left : plan.left + target[1]]


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is computed meanwhile."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("size", [RELEASED, (1080, 1920), (1920, 1080), (480, 640), (576, 720), (333, 517), (48, 64)])
@pytest.mark.parametrize("target", [RELEASED, TINY])
def test_frames_of_ordinary_shapes_are_the_reference_s_to_the_last_bit(size: Size, target: Size) -> None:
    frames = torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = rearrange(frames, "t h w c -> t c h w").float() / 255 * 2 - 1
    expected = x if size == target else scaled_as_a_whole(x, target)
    assert torch.equal(to_model_input(frames, target), rearrange(expected, "t c h w -> c t h w"))


def test_cropping_first_gives_what_cropping_last_does() -> None:
    rng = random.Random(0)
    windowed = 0
    while windowed < 100:
        target, source = (rng.randint(1, 30), rng.randint(1, 30)), (rng.randint(1, 300), rng.randint(1, 300))
        aspect = Fraction(rng.choice([1, 1, 4, 64, 3]), rng.choice([1, 1, 3, 45]))
        plan = Fit.plan(source, target, aspect)
        if not plan.is_windowed or math.prod(plan.resized) > 1e7:
            continue
        windowed += 1
        x = torch.rand(1, 3, *source)
        torch.testing.assert_close(fit(x, target, aspect), scaled_as_a_whole(x, target, aspect), atol=2e-5, rtol=0)


@pytest.mark.parametrize("target", [RELEASED, TINY])
@pytest.mark.parametrize("size", THIN)
def test_a_thin_picture_takes_no_more_memory_than_its_own_pixels_and_the_target_s(size: Size, target: Size) -> None:
    frames = torch.full((1, *size, 3), 255, dtype=torch.uint8)
    with Largest() as largest:
        x = to_model_input(frames, target)
    assert x.shape == (3, 1, *target)
    assert (x - 1).abs().max() < 1e-5  # white
    assert largest.elements <= 3 * max(math.prod(size), 16 * math.prod(target) + sum(target))


def test_frames_are_fitted_one_at_a_time() -> None:
    frames = torch.zeros(9, *RELEASED, 3, dtype=torch.uint8)
    with Largest() as largest:
        to_model_input(frames, TINY)
    assert largest.elements < 2 * frames[0].numel()


def test_pixels_that_are_not_square_are_scaled_by_the_displayed_shape() -> None:
    wide = Fit.plan((192, 320), TINY, Fraction(2))
    assert wide.resized == Fit.plan((192, 640), TINY).resized == (160, 534)
    assert wide.describe() == ("pixels of 2:1, shown as 640x192, scaled from 320x192 to 534x160, cropped to 256x160")
    tall = Fit.plan((576, 720), RELEASED, Fraction(16, 15))
    assert tall.resized == Fit.plan((576, 768), RELEASED).resized
    assert Fit.plan((640, 1024), RELEASED).describe() == "used as it is"


def test_a_picture_looks_the_same_with_narrow_pixels_and_with_square_ones() -> None:
    x = torch.rand(1, 3, 12, 10).repeat_interleave(8, 2).repeat_interleave(8, 3)
    narrow = fit(x.repeat_interleave(2, 3), TINY, Fraction(1, 2))
    assert (narrow - fit(x, TINY)).abs().mean() < 0.02


@pytest.mark.parametrize("aspect", [Fraction(2**31 - 1), Fraction(1, 2**31 - 1), Fraction(9999, 10000)])
def test_no_pixel_aspect_takes_much_memory(aspect: Fraction) -> None:
    with Largest() as largest:
        assert fit(torch.rand(1, 3, 48, 64), TINY, aspect).shape == (1, 3, *TINY)
    assert largest.elements <= 3 * 16 * math.prod(TINY) + sum(TINY)


@pytest.mark.parametrize("terms", [(0, 1), (1, 0), (-1, 1), (0, 0)])
def test_a_pixel_aspect_that_is_none_is_refused(terms: tuple[int, int]) -> None:
    with pytest.raises(InvalidValue, match=r"^pixel_aspect: value -?\d:-?\d; accepted: "):
        pixel_aspect_of(terms)
