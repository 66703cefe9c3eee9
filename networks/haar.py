"""3-D Haar wavelet transform of video, used as patching: pixels to channels, and back.

A level transforms time, height and width in turn; each halves one axis and doubles the number of bands, and the next
level transforms all bands again. A patch size of 4 is two levels: 3 channels become 3 * 4^3 = 192. The lowest band is
the mean of its block.

Legend: B batch, C channels, N bands, T frames, H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor

AXES = (3, 4, 5)  # of [B, N, C, T, H, W]

# The released modules round the filter taps to their dtype: 0.70703125 in bf16.
_TAP = {
    dtype: torch.tensor(0.5**0.5, dtype=dtype, device="cpu").item()
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}
_LEVEL_SCALE = 8**0.5


def _sum_and_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The orthonormal Haar transform of a pair, rounded to its dtype after every axis as in the released modules."""
    tap = _TAP[a.dtype]
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    a_wide, b_wide = a.to(wide), b.to(wide)
    return ((a_wide + b_wide) * tap).to(a.dtype), ((a_wide - b_wide) * tap).to(a.dtype)


def haar_patch(video: Tensor, levels: int) -> Tensor:
    """Bands of `video` [B, C, T, H, W], each axis 2^levels times shorter: [B, N * C, T', H', W'].

    Axes must be multiples of 2^levels. Bands are ordered low before high, time before height before width.
    """
    x = video[:, None]  # [B, N, C, T, H, W]
    for _ in range(levels):
        for axis in AXES:
            pairs = x.unflatten(axis, (-1, 2))
            even, odd = pairs.select(axis + 1, 0), pairs.select(axis + 1, 1)
            x = torch.stack(_sum_and_difference(even, odd), dim=2).flatten(1, 2)
        x = x.flatten(1, 2)[:, None] / _LEVEL_SCALE  # the bands of this level are channels of the next
    return x[:, 0]


def haar_unpatch(bands: Tensor, levels: int) -> Tensor:
    """The inverse of `haar_patch`: [B, N * C, T', H', W'] -> [B, C, T, H, W]."""
    x = bands  # [B, C, T, H, W]
    for _ in range(levels):
        x = x.unflatten(1, (2 ** len(AXES), -1)) * _LEVEL_SCALE  # [B, N, C, T, H, W]
        for axis in reversed(AXES):
            pairs = x.unflatten(1, (-1, 2))
            low, high = pairs.select(2, 0), pairs.select(2, 1)
            x = torch.stack(_sum_and_difference(low, high), dim=axis + 1).flatten(axis, axis + 1)
        x = x[:, 0]
    return x
