"""Times each guardrail, and a straightforward implementation of the same for comparison.

    python benchmarks/guardrails.py --preset full --device cuda
    python benchmarks/guardrails.py --preset tiny

Weights are random, which does not change the time. Both implementations of a row get the same networks and input.

- content filter, face detector: all frames of a clip in batches; against one frame at a time.
- pixelation: five faces per frame, writing their boxes only; against blending a masked copy of the frame per face.
- Aegis, answer: decoding until the answer is settled; against as many tokens as the reference allows. A random model
  never emits the end token, so this is the worst case.
- Aegis, question: prefill of the whole question; against prefill of the prompt only, with the policy's KV cache kept.
  The size of that cache and the difference of the logits are printed below the table. The stage does not keep it: see
  docs/guardrails.md.
- blocklist: a prompt of 200 words and lists of 600; against the library's comparison of every token with every word.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from ar_decode import best_seconds
from better_profanity import Profanity
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from cosmos_triton.guardrail.aegis import MAX_ANSWER_TOKENS, Aegis, moderation_prompt
from cosmos_triton.guardrail.content_filter import ContentFilter
from cosmos_triton.guardrail.face_blur import FaceBlur, FaceBlurConfig, pixelate, pixelate_boxes
from cosmos_triton.guardrail.policy import Policy
from cosmos_triton.guardrail.spellings import LookAlikes
from cosmos_triton.networks import retinaface, video_safety
from cosmos_triton.networks.retinaface import RetinaFace
from cosmos_triton.networks.video_safety import VideoSafety
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.tiny.llama_guard import write_llama_guard

DEPLOYMENT = {"tiny": DEPLOYMENTS["tiny"], "full": DEPLOYMENTS["4b"]}
SIGLIP = {
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    | {"image_size": 64, "patch_size": 16},
    "full": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    | {"image_size": 384, "patch_size": 14},
}
PROMPT = "a robot arm lifts a red box off the conveyor belt, and the camera follows it slowly to the left"
FACES = torch.tensor([[40 * i + 3, 20 * i + 5, 40 * i + 33, 20 * i + 35] for i in range(5)]).float()  # [N, 4]

Pair = tuple[Callable[[], Any], Callable[[], Any]]  # as served, and plain


def video_pairs(preset: str, device: str, frames: Tensor, batch: int) -> dict[str, Pair]:
    deployment = DEPLOYMENT[preset]
    encoder = SiglipVisionModel(SiglipVisionConfig(**SIGLIP[preset])).to(device)
    head = VideoSafety(video_safety.PRESETS[deployment.video_safety]).to(device)
    detector = RetinaFace(retinaface.PRESETS[deployment.face_detector]).to(device)
    classifier = video_safety.ContentClassifier(encoder, head).eval()
    filters = [ContentFilter(classifier, batch_size=size) for size in (batch, 1)]
    blurs = [FaceBlur(detector.eval(), batch_size=size) for size in (batch, 1)]

    def boxes_only() -> Tensor:
        blurred = frames.clone()
        for frame in blurred:
            pixelate_boxes(frame, FACES, FaceBlurConfig())
        return blurred

    def whole_frames() -> Tensor:
        blurred = frames.clone()
        for frame in blurred:
            for left, top, right, bottom in FACES.int().tolist():
                hidden = frame.clone()
                hidden[top:bottom, left:right] = pixelate(frame[top:bottom, left:right], FaceBlurConfig().blocks)
                mask = torch.zeros(frame.shape[:2], dtype=torch.bool)
                mask[top:bottom, left:right] = True
                frame.copy_(torch.where(mask[..., None], hidden, frame))
        return blurred

    assert torch.equal(boxes_only(), whole_frames())
    find = [lambda blur=blur: detected(blur, frames) for blur in blurs]
    assert torch.equal(filters[0].classify(frames), filters[1].classify(frames))
    return {
        "content filter": (lambda: filters[0].classify(frames), lambda: filters[1].classify(frames)),
        "face detector": (find[0], find[1]),
        "pixelation": (boxes_only, whole_frames),
    }


@torch.inference_mode()
def detected(blur: FaceBlur, frames: Tensor) -> int:
    return sum(len(boxes) for batch in frames.split(blur.batch_size) for boxes in blur.find_faces(batch))


def aegis_of(preset: str, device: str) -> Aegis:
    with tempfile.TemporaryDirectory() as temporary:
        write_llama_guard(Path(temporary), seed=0)
        tiny = Aegis.load(Path(temporary), Policy.own(), device=device, dtype=torch.float32)
        if preset == "tiny":
            return tiny
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, dtype=torch.bfloat16)).bfloat16()
        return Aegis(model, tiny.tokenizer, Policy.own())


def aegis_pairs(aegis: Aegis) -> tuple[dict[str, Pair], dict[str, float]]:
    """Two rows, and the cost of keeping the policy's KV cache."""
    question = moderation_prompt(PROMPT, aegis.policy)
    tokens = aegis.tokens(question)
    prefix = aegis.tokens(moderation_prompt("\0", aegis.policy))
    shared = int((prefix[0, : tokens.shape[1]] != tokens[0, : prefix.shape[1]]).nonzero()[0])
    kept = run(aegis, tokens[:, :shared], DynamicCache())[1]

    def prompt_only() -> Tensor:
        return run(aegis, tokens[:, shared:], copy.deepcopy(kept))[0]

    def whole() -> Tensor:
        return run(aegis, tokens, DynamicCache())[0]

    def to_the_end() -> None:
        logits, cache = run(aegis, tokens, DynamicCache())
        for _ in range(MAX_ANSWER_TOKENS - 1):
            logits, cache = run(aegis, logits.argmax().view(1, 1), cache)

    size = sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in kept.layers)
    return {
        "Aegis, answer": (lambda: aegis.answer(question), to_the_end),
        "Aegis, question": (whole, prompt_only),
    }, {"bytes": size, "largest_difference": (prompt_only() - whole()).abs().max().item()}


@torch.inference_mode()
def run(aegis: Aegis, tokens: Tensor, cache: DynamicCache) -> tuple[Tensor, DynamicCache]:
    """Logits [V] after tokens [1, N], and the extended cache."""
    out = aegis.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[0, -1].float(), out.past_key_values


def blocklist_pair() -> Pair:
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwyp"
    words = ["".join(rng.choices(letters, k=rng.randint(5, 10))) for _ in range(800)]
    prompt, listed = " ".join(words[:200]), words[200:]
    finder, library = LookAlikes(listed), Profanity()
    library.load_censor_words(listed)
    assert not finder.found_in(prompt)
    return lambda: finder.found_in(prompt), lambda: library.censor(prompt)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    deployment = DEPLOYMENT[args.preset]
    shape = (args.frames, deployment.height, deployment.width, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8)
    pairs = video_pairs(args.preset, args.device, frames, args.batch)
    aegis, kept = aegis_pairs(aegis_of(args.preset, args.device))
    pairs |= aegis | {"blocklist": blocklist_pair()}
    rows = []
    for name, (ours, plain) in pairs.items():
        seconds = best_seconds({"ours": ours, "plain": plain}, args.repeat, args.device)
        rows.append({"guardrail": name, "ms": 1e3 * seconds["ours"], "plain_ms": 1e3 * seconds["plain"]})
        rows[-1]["ratio"] = rows[-1]["plain_ms"] / rows[-1]["ms"]
    return {
        "frames": list(shape),
        "batch": args.batch,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "policy_kept": kept,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(DEPLOYMENT), default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--frames", type=int, default=33, help="of the clip (default: 33)")
    parser.add_argument("--batch", type=int, default=8, help="frames in a network at a time (default: 8, as served)")
    parser.add_argument("--repeat", type=int, default=1, help="calls per round; the best round counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    result = measure(args)
    if args.json:
        print(json.dumps(result))
        return
    print(f"{'x'.join(map(str, result['frames']))} on {result['device']}, {result['threads']} threads, ms")
    print(f"{'':<18}{'as served':>12}{'plain':>12}{'ratio':>8}")
    for row in result["rows"]:
        print(f"{row['guardrail']:<18}{row['ms']:>12.2f}{row['plain_ms']:>12.2f}{row['ratio']:>8.2f}")
    kept = result["policy_kept"]
    print(f"the policy, kept: {kept['bytes'] / 1e6:.1f} MB; logits differ by up to {kept['largest_difference']:.2g}")


if __name__ == "__main__":
    main()
