"""The guardrails: face detector, box selection and pixelation, content classifier, blocklist."""

from __future__ import annotations

import fnmatch
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cosmos_triton.guardrail.blocklist import Blocklist, Violation
from cosmos_triton.guardrail.face_blur import (
    FaceBlurConfig,
    decode_boxes,
    pixelate,
    pixelate_boxes,
    select_boxes,
    to_network_input,
)
from cosmos_triton.networks.retinaface import PRESETS, RetinaFace, RetinaFaceConfig, prior_boxes
from cosmos_triton.networks.video_safety import VideoSafety, VideoSafetyConfig, normalise
from parity.case import Case, assert_close, assert_equal


def detector_config(reference: dict[str, Any]) -> RetinaFaceConfig:
    assert reference["clip"] is False
    assert reference["return_layers"] == {"layer2": 1, "layer3": 2, "layer4": 3}
    return RetinaFaceConfig(
        width=reference["in_channel"] // 4,
        blocks=PRESETS[reference["name"].lower()].blocks,
        out_channels=reference["out_channel"],
        strides=tuple(reference["steps"]),
        min_sizes=tuple(tuple(sizes) for sizes in reference["min_sizes"]),
    )


def recipe_weight(key: str, shape: list[int], seed: int) -> Tensor:
    """One tensor of the case's weights, which are described instead of stored."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    n = np.random.RandomState((zlib.crc32(key.encode()) ^ seed) % 2**32).standard_normal(shape)
    rules = {
        "*running_mean": lambda: 0.1 * n,
        "body.bn1.running_var": lambda: 8000 * (1 + 0.2 * np.abs(n)),
        "*running_var": lambda: 1 + 0.2 * np.abs(n),
        "*bias": lambda: 0.1 * n,
        "*bn3.weight": lambda: 0.3 + 0.1 * n,
        "*": lambda: n * np.sqrt(1.5 / np.prod(shape[1:])) if n.ndim == 4 else 1 + 0.1 * n,
    }
    rule = next(rules[pattern] for pattern in rules if fnmatch.fnmatchcase(key, pattern))
    return torch.from_numpy(np.asarray(rule(), dtype=np.float32))


def check_face_network(case: Case) -> None:
    io, reference = case.io, case.config
    weights = {k: recipe_weight(k, shape, reference["seed"]) for k, shape in reference["keys"].items()}
    for key, (total, first) in reference["check_sum_and_first"].items():
        assert abs(weights[key].double().sum().item() - total) < 1e-6 * max(1, abs(total)), key
        assert abs(weights[key].double().flatten()[0].item() - first) < 1e-9, key
    network = RetinaFace(detector_config(reference["cfg"])).eval()
    network.load_state_dict(weights, strict=True)

    seen: dict[str, Tensor] = {}
    network.fpn.register_forward_hook(lambda *call: seen.update({f"fpn{i}": x for i, x in enumerate(call[2])}))
    for name in ("ssh1", "ssh2", "ssh3"):
        module = network.get_submodule(name)
        module.register_forward_hook(lambda *call, name=name: seen.update({name: call[2]}))

    x = to_network_input(io["frames_uint8"])
    assert_equal("net_input", x, io["net_input"])
    loc, conf, landms = network(x)
    for name in (name for name in io if name.startswith(("fpn", "ssh"))):
        assert_close(name, seen[name][:, : io[name].shape[1]], io[name], relative=1e-5)
    assert_close("loc", loc, io["loc"], relative=1e-5)
    assert_close("conf", conf, io["conf"], relative=1e-5)
    assert_close("landms", landms, io["landms"], relative=1e-5)
    _, height, width, _ = io["frames_uint8"].shape
    assert_close("priors", prior_boxes(network.config, height, width), io["priors"], relative=1e-7)


def check_face_postprocess(case: Case) -> None:
    io, reference = case.io, case.config
    config = FaceBlurConfig(
        score_threshold=reference["confidence_threshold"],
        iou_threshold=reference["nms_threshold"],
        max_candidates=reference["top_k"],
        max_faces=reference["keep_top_k"],
        min_size=tuple(reference["min_face_size"]),
        blocks=reference["pixel_blocks"],
        variances=tuple(reference["variance"]),
    )
    detector = RetinaFaceConfig(
        width=8,
        blocks=(1, 1, 1, 1),
        out_channels=32,
        strides=tuple(reference["steps"]),
        min_sizes=tuple(tuple(sizes) for sizes in reference["min_sizes"]),
    )
    height, width = reference["image_size"]
    assert_close("priors", prior_boxes(detector, height, width), io["priors"], relative=1e-7)
    priors = prior_boxes(detector, 640, 1024)
    assert len(priors) == reference["priors_640x1024_total"]
    rows = io["priors_640x1024_rows"]
    assert_close("priors_640x1024", priors[rows], io["priors_640x1024"], relative=1e-7)

    boxes = decode_boxes(io["loc"], io["priors"], config.variances)
    assert_close("decoded_boxes", boxes, io["decoded_boxes"], relative=1e-6)
    scale = torch.tensor([width, height, width, height])
    for index, frame in enumerate(io["frames"].clone()):
        kept = select_boxes(boxes[index] * scale, io["conf"][index, :, 1], config)
        assert_close(f"kept_boxes_{index}", kept, io[f"kept_boxes_{index}"], relative=1e-6)
        pixelate_boxes(frame, kept, config)
        assert_equal(f"output_frames {index}", frame, io["output_frames"][index])

    for name in (name for name in io if name.startswith("pixelate_in_")):
        expected = io[name.replace("_in_", "_out_")]
        assert_equal(name, pixelate(io[name], config.blocks), expected)


def check_video_safety(case: Case) -> None:
    io, reference, weights = case.io, case.config, case.weights()
    config = VideoSafetyConfig(
        input_dim=reference["input_size"],
        hidden_dims=(len(weights["network.layers.0.bias"]), len(weights["network.layers.3.bias"])),
    )
    assert list(config.classes) == reference["classes"]
    assert len(config.classes) == reference["num_classes"]
    network = VideoSafety(config).eval()
    network.load_state_dict(weights, strict=True)

    features = io["raw_image_features"]
    assert_close("normalised_embedding", normalise(features), io["normalised_embedding"], relative=1e-6)
    logits = network(features)
    assert_close("logits", logits, io["logits"], relative=1e-5)
    assert_close("probabilities", logits.softmax(-1), io["probabilities"], relative=1e-5)
    assert_equal("predicted_class", logits.argmax(-1), io["predicted_class"])


PATHS = {
    "safe": None,
    "empty": Violation.EMPTY,
    "censor": Violation.CUSTOM,
    "whole_word": Violation.WHOLE_WORD,
    "partial_match": Violation.NEAR_MATCH,
}


def check_blocklist(case: Case) -> None:
    """Where the reference passes a letter missing or exchanged, this does not; everything else is the same."""
    reference = case.config
    assert reference["partial_match_letter_count"] == 0.5  # which says: one letter too many
    blocklist = Blocklist(
        custom=reference["custom_words"],
        whitelist=reference["whitelist_words"],
        exact_match=reference["exact_match_words"],
        lemmatize=lambda word: word,
        is_word=lambda word: False,
        near_match_min_chars=reference["partial_match_min_chars"],
    )
    for decision in reference["decisions"]:
        prompt = decision["prompt"]
        violation = blocklist.violation(prompt)
        expected = PATHS[decision["path"]]
        assert violation == expected or (violation == Violation.MISSPELT and expected is None), decision
        assert blocklist.has_custom_word(prompt) == ("*" in decision["after_whitelist_uncensor"]), decision


FAMILIES: dict[str, Callable[[Case], None]] = {
    "face_retinaface_network": check_face_network,
    "face_postprocess": check_face_postprocess,
    "video_safety": check_video_safety,
    "blocklist": check_blocklist,
}
