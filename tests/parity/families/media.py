"""Frames in, frames out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.media.clips import last_frames
from cosmos_triton.runtime.media.frames import fit, to_model_input, to_uint8
from parity.case import Case


def check_preprocess(case: Case) -> None:
    for entry in case.config["cases"]:
        index, target = entry["index"], tuple(entry["target"])
        if entry["kind"] == "image":
            clip = to_model_input(case[f"image_{index}_uint8"][None], target)
            case.expect_close(f"image_{index}_clip_frame0", clip[:, 0], relative=1e-6)
            continue
        frames, count = case[f"video_{index}_uint8"], entry["num_input_frames"]
        if entry["skipped"]:
            with pytest.raises(InvalidValue, match="num_input_frames"):
                last_frames(frames, count)
            continue
        _, kept = last_frames(frames, count)
        clip = to_model_input(torch.stack(kept), target)
        repeated = torch.cat([clip, clip[:, -1:]], dim=1)  # the reference repeats the last frame up to 33
        case.expect_close(f"video_{index}_clip_first{count + 1}", repeated, relative=1e-6)
    if "resize_in" in case:
        for i, size in enumerate(case.config["resize_targets"]):
            case.expect_close(f"resize_out_{i}", fit(case["resize_in"], tuple(size)), relative=1e-6)
    if "save_float" in case:
        case.expect_equal("save_uint8", to_uint8(case["save_float"]))


FAMILIES: dict[str, Callable[[Case], None]] = {"preprocess": check_preprocess}
