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
from parity.case import Case


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
    reference = case.config
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

    x = to_network_input(case["frames_uint8"])
    case.expect_equal("net_input", x)
    loc, conf, landms = network(x)
    for name, features in seen.items():
        if name in case:  # its first channels
            case.expect_close(name, features[:, : case[name].shape[1]], relative=1e-5)
    case.expect_close("loc", loc, relative=1e-5)
    case.expect_close("conf", conf, relative=1e-5)
    case.expect_close("landms", landms, relative=1e-5)
    _, height, width, _ = case["frames_uint8"].shape
    case.expect_close("priors", prior_boxes(network.config, height, width), relative=1e-7)


def check_face_postprocess(case: Case) -> None:
    reference = case.config
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
    case.expect_close("priors", prior_boxes(detector, height, width), relative=1e-7)
    if "priors_640x1024_rows" in case:
        priors = prior_boxes(detector, 640, 1024)
        assert len(priors) == reference["priors_640x1024_total"]
        case.expect_close("priors_640x1024", priors[case["priors_640x1024_rows"]], relative=1e-7)

    boxes = decode_boxes(case["loc"], case["priors"], config.variances)
    case.expect_close("decoded_boxes", boxes, relative=1e-6)
    scale = torch.tensor([width, height, width, height])
    frames = case["frames"].clone()
    for index, frame in enumerate(frames):
        kept = select_boxes(boxes[index] * scale, case["conf"][index, :, 1], config)
        case.expect_close(f"kept_boxes_{index}", kept, relative=1e-6)
        pixelate_boxes(frame, kept, config)
    case.expect_equal("output_frames", frames)
    for region in case.suffixes("pixelate_in_"):
        case.expect_equal(f"pixelate_out_{region}", pixelate(case[f"pixelate_in_{region}"], config.blocks))


def check_video_safety(case: Case) -> None:
    reference, weights = case.config, case.weights()
    config = VideoSafetyConfig(
        input_dim=reference["input_size"],
        hidden_dims=(len(weights["network.layers.0.bias"]), len(weights["network.layers.3.bias"])),
    )
    assert list(config.classes) == reference["classes"]
    assert len(config.classes) == reference["num_classes"]
    network = VideoSafety(config).eval()
    network.load_state_dict(weights, strict=True)

    features = case["raw_image_features"]
    case.expect_close("normalised_embedding", normalise(features), relative=1e-6)
    logits = network(features)
    case.expect_close("logits", logits, relative=1e-5)
    case.expect_close("probabilities", logits.softmax(-1), relative=1e-5)
    case.expect_equal("predicted_class", logits.argmax(-1))


PATHS = {
    "safe": None,
    "empty": Violation.EMPTY,
    "censor": Violation.CUSTOM,
    "whole_word": Violation.WHOLE_WORD,
    "partial_match": Violation.NEAR_MATCH,
}


def check_blocklist(case: Case) -> None:
    """Decision and deciding rule are the same, except that some misspellings pass in the reference alone.

    The censored texts in a case are left alone: on the way to the same decision they may have no mark of a word that
    `has_custom_word` finds, or one of what is no word.
    """
    reference = case.config
    blocklist = Blocklist(
        custom=reference["custom_words"],
        whitelist=reference["whitelist_words"],
        exact_match=reference["exact_match_words"],
        lemmatize=lambda word: word,
        is_word=lambda word: False,
        near_match_min_chars=reference["partial_match_min_chars"],
        near_match_letters=reference["partial_match_letter_count"],
    )
    for decision in reference["decisions"]:
        prompt = decision["prompt"]
        violation = blocklist.violation(prompt)
        expected = PATHS[decision["path"]]
        is_stricter = violation == Violation.MISSPELT and expected is None
        case.expect(violation == expected or is_stricter, decision)
        assert decision["safe"] == (expected is None), decision


FAMILIES: dict[str, Callable[[Case], None]] = {
    "face_retinaface_network": check_face_network,
    "face_postprocess": check_face_postprocess,
    "video_safety": check_video_safety,
    "blocklist": check_blocklist,
}
