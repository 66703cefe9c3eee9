"""A video as one picture: frames in reading order, those that were given framed in green."""

from __future__ import annotations

import io

import av
import numpy as np
from numpy.typing import NDArray

from cosmos_triton.tiny.sample_media import encode_jpeg

COLUMNS, ROWS = 4, 3
BORDER = 4  # pixels
GIVEN, GENERATED = (70, 160, 90), (255, 255, 255)


def contact_sheet(mp4: bytes, *, given: int) -> bytes:
    """The bytes of a jpeg file with frames of `mp4`, at even intervals from the first to the last.

    Args:
        given: how many of the first frames are the request's input.
    """
    with av.open(io.BytesIO(mp4)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]  # [H, W, 3] each
    numbers = np.linspace(0, len(frames) - 1, COLUMNS * ROWS).round().astype(int)
    cells = [_framed(frames[n], GIVEN if n < given else GENERATED) for n in numbers]
    rows = [np.concatenate(cells[start : start + COLUMNS], axis=1) for start in range(0, len(cells), COLUMNS)]
    return encode_jpeg(np.concatenate(rows))


def _framed(frame: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    height, width, _ = frame.shape
    cell = np.empty((height + 2 * BORDER, width + 2 * BORDER, 3), np.uint8)
    cell[:] = colour
    cell[BORDER:-BORDER, BORDER:-BORDER] = frame
    return cell
