"""What went in and what came out as one picture: input frames above, frames of the generated video below."""

from __future__ import annotations

import io

import av
import numpy as np
from numpy.typing import NDArray

from cosmos_triton.tiny.sample_media import encode_jpeg

COLUMNS, INPUT_ROWS, OUTPUT_ROWS = 4, 1, 2
BORDER = 4  # pixels
INPUT, OUTPUT = (70, 160, 90), (255, 255, 255)  # colour of the border

Frames = list[NDArray[np.uint8]]  # [H, W, 3] each


def contact_sheet(given: bytes, generated: bytes, *, input_frames: int) -> bytes:
    """The bytes of a jpeg file: frames at even intervals from the first to the last.

    Args:
        given: an image or a clip with the aspect ratio of the video, of which the last `input_frames` were used.
        generated: the video.
    """
    video = _decode(generated)
    height, width, _ = video[0].shape
    inputs = _decode(given, size=(width, height))[-input_frames:]
    rows = [*_rows(inputs, INPUT_ROWS, INPUT), *_rows(video, OUTPUT_ROWS, OUTPUT)]
    return encode_jpeg(np.concatenate(rows))


def _decode(file: bytes, *, size: tuple[int, int] | None = None) -> Frames:
    """All frames, scaled to (width, height)."""
    width, height = size or (None, None)
    with av.open(io.BytesIO(file)) as container:
        frames = container.decode(video=0)
        return [frame.reformat(width=width, height=height, format="rgb24").to_ndarray() for frame in frames]


def _rows(frames: Frames, count: int, colour: tuple[int, int, int]) -> Frames:
    numbers = np.linspace(0, len(frames) - 1, COLUMNS * count).round().astype(int)
    cells = [_bordered(frames[number], colour) for number in numbers]
    return [np.concatenate(cells[start : start + COLUMNS], axis=1) for start in range(0, len(cells), COLUMNS)]


def _bordered(frame: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    height, width, _ = frame.shape
    cell = np.empty((height + 2 * BORDER, width + 2 * BORDER, 3), np.uint8)
    cell[:] = colour
    cell[BORDER:-BORDER, BORDER:-BORDER] = frame
    return cell
