"""Frames in, frames out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.media.decode import last_frames
from cosmos_triton.runtime.media.frames import fit, to_model_input, to_uint8
from parity.case import Case, assert_close, assert_equal


def check_preprocess(case: Case) -> None:
    io = case.io
    for entry in case.config["cases"]:
        index, target = entry["index"], tuple(entry["target"])
        if entry["kind"] == "image":
            clip = to_model_input(io[f"image_{index}_uint8"][None], target)
            assert_close(f"image {index}", clip[:, 0], io[f"image_{index}_clip_frame0"], relative=1e-6)
            continue
        frames, count = io[f"video_{index}_uint8"], entry["num_input_frames"]
        if entry["skipped"]:
            with pytest.raises(InvalidValue, match="num_input_frames"):
                last_frames(frames, count)
            continue
        _, kept = last_frames(frames, count)
        clip = to_model_input(torch.stack(kept), target)
        expected = io[f"video_{index}_clip_first{count + 1}"]
        repeated = torch.cat([clip, clip[:, -1:]], dim=1)  # the reference repeats the last frame up to 33
        assert_close(f"video {index}", repeated, expected, relative=1e-6)
    for i, size in enumerate(case.config["resize_targets"]):
        assert_close(f"resize {size}", fit(io["resize_in"], tuple(size)), io[f"resize_out_{i}"], relative=1e-6)
    assert_equal("save_uint8", to_uint8(io["save_float"]), io["save_uint8"])


FAMILIES: dict[str, Callable[[Case], None]] = {"preprocess": check_preprocess}
