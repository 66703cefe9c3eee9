"""The picture that the demo makes of a video."""

from __future__ import annotations

import io

import av
import numpy as np

from cosmos_triton.runtime.media.encode import encode_mp4
from cosmos_triton.tiny.contact_sheet import BORDER, COLUMNS, GENERATED, GIVEN, ROWS, contact_sheet


def test_sheet_shows_the_video_from_its_first_frame_to_its_last_and_frames_what_was_given() -> None:
    video = np.repeat(np.linspace(0, 240, 33, dtype=np.uint8), 32 * 48 * 3).reshape(33, 32, 48, 3)
    sheet = contact_sheet(encode_mp4(video, metadata={}), given=9)
    with av.open(io.BytesIO(sheet), format="jpeg_pipe") as container:
        [frame] = container.decode(video=0)
        pixels = frame.to_ndarray(format="rgb24").astype(int)
    height, width = 32 + 2 * BORDER, 48 + 2 * BORDER
    assert pixels.shape == (ROWS * height, COLUMNS * width, 3)
    cells = pixels.reshape(ROWS, height, COLUMNS, width, 3).swapaxes(1, 2).reshape(-1, height, width, 3)
    shown = cells[:, height // 2, width // 2].mean(axis=-1)
    assert abs(shown[0]) < 20
    assert abs(shown[-1] - 240) < 20
    assert (np.diff(shown) > 5).all()
    is_given = [np.abs(cell[1, 1] - GIVEN).sum() < np.abs(cell[1, 1] - GENERATED).sum() for cell in cells]
    assert is_given == [number * 32 / 11 < 8.5 for number in range(12)]
