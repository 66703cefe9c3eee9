"""The picture that the demo makes of an input and its video."""

from __future__ import annotations

import io

import av
import numpy as np

from cosmos_triton.runtime.media.encode import encode_mp4
from cosmos_triton.tiny.contact_sheet import BORDER, COLUMNS, INPUT, INPUT_ROWS, OUTPUT, OUTPUT_ROWS, contact_sheet


def grey_clip(height: int, width: int, first: int, last: int) -> bytes:
    """From one grey to another."""
    levels = np.linspace(first, last, 33, dtype=np.uint8)
    return encode_mp4(np.repeat(levels, height * width * 3).reshape(33, height, width, 3), metadata={})


def test_sheet_shows_the_input_above_the_video_each_from_its_first_frame_to_its_last() -> None:
    sheet = contact_sheet(grey_clip(64, 96, 0, 240), grey_clip(32, 48, 240, 0), input_frames=9)
    with av.open(io.BytesIO(sheet), format="jpeg_pipe") as container:
        [frame] = container.decode(video=0)
        pixels = frame.to_ndarray(format="rgb24").astype(int)
    height, width, rows = 32 + 2 * BORDER, 48 + 2 * BORDER, INPUT_ROWS + OUTPUT_ROWS
    assert pixels.shape == (rows * height, COLUMNS * width, 3)
    cells = pixels.reshape(rows, height, COLUMNS, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    shown = cells[:, height // 2, width // 2].mean(axis=-1)
    given, generated = shown[: INPUT_ROWS * COLUMNS], shown[INPUT_ROWS * COLUMNS :]
    assert np.allclose(given, np.linspace(180, 240, len(given)), atol=10), "the last 9 of 33 frames"
    assert np.allclose(generated, np.linspace(240, 0, len(generated)), atol=10)
    is_input = [np.abs(cell[1, 1] - INPUT).sum() < np.abs(cell[1, 1] - OUTPUT).sum() for cell in cells]
    assert is_input == [True] * len(given) + [False] * len(generated)
