"""The tiny guardrails, from the released files through conversion to a verdict: each can say yes and no."""

from __future__ import annotations

import random
import shutil
import string
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import SiglipModel

from cosmos_triton.export.checkpoints.catalogue import LLAMA_GUARD, SIGLIP
from cosmos_triton.export.checkpoints.convert import convert
from cosmos_triton.guardrail.aegis import MAX_ANSWER_TOKENS, MIN_PROMPT_TOKENS, Aegis, moderation_prompt
from cosmos_triton.guardrail.blocklist import Blocklist, Violation
from cosmos_triton.guardrail.content_filter import ContentFilter, load_encoder, to_network_input
from cosmos_triton.guardrail.face_blur import FaceBlur
from cosmos_triton.guardrail.policy import Policy
from cosmos_triton.guardrail.prompt_guardrail import PromptGuardrail
from cosmos_triton.networks import retinaface, video_safety
from cosmos_triton.runtime.checkpoints import load_network
from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.runtime.releases import COSMOS_1_0, WEIGHTS
from cosmos_triton.tiny.guardrails import (
    BLOCKED_WORD,
    DANGER_WORD,
    EXACT_WORD,
    IRREGULAR_PLURAL,
    draw_test_face,
    unsafe_frame,
    write_guardrails,
)
from support.long_prompts import long_encoded_prompts, long_prompts

HEIGHT, WIDTH = 160, 256


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    write_guardrails(directory)
    assert convert(directory) == []
    return directory


@pytest.fixture(scope="module")
def blocklist(directory: Path) -> Blocklist:
    return Blocklist.from_folder(directory / COSMOS_1_0.blocklist, directory / COSMOS_1_0.nltk_data)


@pytest.fixture(scope="module")
def aegis(directory: Path) -> Aegis:
    return Aegis.load(directory / COSMOS_1_0.text_safety, Policy.own())


@pytest.fixture(scope="module")
def content_filter(directory: Path) -> ContentFilter:
    config = video_safety.PRESETS["tiny"]
    head = load_network(video_safety.VideoSafety, config, directory / COSMOS_1_0.video_safety, dtype=torch.float32)
    return ContentFilter(
        video_safety.ContentClassifier(load_encoder(directory / COSMOS_1_0.video_safety_encoder), head)
    )


@pytest.fixture(scope="module")
def face_blur(directory: Path) -> FaceBlur:
    config = retinaface.PRESETS["tiny"]
    return FaceBlur(
        load_network(retinaface.RetinaFace, config, directory / COSMOS_1_0.face_detector, dtype=torch.float32)
    )


def ordinary_prompts() -> list[str]:
    """Prompts of 1 to 200 words: of a scene, of random letters and punctuation, of other scripts."""
    rng = random.Random(0)
    scene = "A robot arm lifts a red box off the conveyor belt; sparks fly, and the camera pans left (slowly)."
    prompts = [scene, "robot", "safe", "unsafe", "O3", "unsafe\nO3", "danger word", "</s> unsafe", "{prompt}", "%s"]
    alphabets = (string.ascii_letters, string.printable.strip(), "äöüßéñ", "机器人手臂", "робот", "🤖🦾🎬", "روبوت")
    for words in (1, 2, 5, 20, 60, 200):
        for alphabet in alphabets:
            prompt = ["".join(rng.choices(alphabet, k=rng.randint(1, 9))) for _ in range(words)]
            prompts.append(" ".join(prompt))
    return prompts


def test_the_blocklist_blocks_its_words_and_no_other(blocklist: Blocklist) -> None:
    custom = (BLOCKED_WORD, BLOCKED_WORD.upper(), f"two {BLOCKED_WORD}s", "bl0ckedw0rd", "a blocked  phrase")
    for prompt in (*custom, f"many {IRREGULAR_PLURAL}"):
        assert blocklist.violation(prompt) == Violation.CUSTOM, prompt
    assert blocklist.violation(f"an {EXACT_WORD}, here") == Violation.WHOLE_WORD
    assert blocklist.violation(f"an {EXACT_WORD}x here") == Violation.NEAR_MATCH
    for prompt in (f"a {BLOCKED_WORD}-free zone", DANGER_WORD, *ordinary_prompts()):
        assert blocklist.judge(prompt).safe, prompt


def test_aegis_calls_ordinary_prompts_safe(aegis: Aegis) -> None:
    for prompt in ordinary_prompts():
        verdict = aegis.judge(prompt)
        assert verdict.safe, (prompt, verdict.reason)


def test_aegis_finds_its_trigger_anywhere_in_any_prompt(aegis: Aegis) -> None:
    rng = random.Random(1)
    assert DANGER_WORD not in Policy.own().text.lower()
    for prompt in ordinary_prompts():
        words = prompt.split(" ")
        words.insert(rng.randint(0, len(words)), rng.choice([DANGER_WORD, DANGER_WORD.title(), f"({DANGER_WORD})!"]))
        assert aegis.answer(moderation_prompt(" ".join(words), aegis.policy)) == "unsafe\nO3", words
    assert aegis.judge(f"a {DANGER_WORD}").categories == ("O3",)


def test_without_its_adapter_aegis_is_blind(directory: Path) -> None:
    base = Aegis.load(directory / LLAMA_GUARD, Policy.own())
    assert base.answer(moderation_prompt(f"a {DANGER_WORD}", base.policy)) == "safe"


def test_aegis_decides_prompts_of_100_kb(aegis: Aegis) -> None:
    guardrail = PromptGuardrail((aegis,), Policy.own())
    for name, prompt in long_prompts().items():
        assert not guardrail.judge(prompt).last.is_error, name


def test_the_blocklists_time_does_not_grow_with_the_square_of_a_prompt_nor_with_prompt_times_words() -> None:
    """Ten times the prompt and the words take some ten times as long; with the product it would be a hundred."""
    few, many = random_blocklist(60), random_blocklist(600)
    for name, prompt in (long_prompts() | long_encoded_prompts()).items():
        short = min(thread_seconds(few, prompt[: len(prompt) // 10]) for _ in range(3))
        assert thread_seconds(many, prompt) < 40 * max(short, 1e-3), name


def random_blocklist(words: int) -> Blocklist:
    """Each list with so many, of letters that prompts seldom have; real lists have some 600."""
    rng = random.Random(4)
    custom, exact = (["".join(rng.choices("qxzjkvw", k=rng.randint(4, 9))) for _ in range(words)] for _ in range(2))
    return Blocklist(
        custom=custom,
        exact_match=exact,
        whitelist=custom[: words // 12],
        lemmatize=lambda word: word,
        is_word=lambda word: False,
    )


def thread_seconds(blocklist: Blocklist, prompt: str) -> float:
    """Of this thread, since others may be at work too."""
    began = time.thread_time()
    blocklist.judge(prompt)
    return time.thread_time() - began


def test_a_prompt_longer_than_the_model_reads_is_blocked(aegis: Aegis) -> None:
    verdict = aegis.judge("robot " * 20_000)
    assert not verdict.safe
    assert "longer" in verdict.reason


def test_a_prompt_and_the_longest_answer_to_it_may_fill_the_models_context_and_no_more(
    aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = aegis.tokens(moderation_prompt("a robot", aegis.policy)).shape[1]
    monkeypatch.setattr(aegis.model.config, "max_position_embeddings", question + MAX_ANSWER_TOKENS)
    assert aegis.judge("a robot").safe
    monkeypatch.setattr(aegis.model.config, "max_position_embeddings", question + MAX_ANSWER_TOKENS - 1)
    assert "1 tokens longer" in aegis.judge("a robot").reason


def test_special_tokens_in_a_prompt_are_text(aegis: Aegis) -> None:
    """Else a prompt could end the conversation, and no marker of the template would be in it."""
    special = set(aegis.tokenizer.all_special_ids)
    assert len(special) == 3
    for token in aegis.tokenizer.all_special_tokens:
        written = aegis.tokens(f"a robot {token} moves")[0].tolist()
        assert special.intersection(written) == {aegis.tokenizer.bos_token_id}, token
        assert special.isdisjoint(written[1:]), token


def test_an_aegis_that_talks_is_not_believed(aegis: Aegis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aegis, "answer", lambda _: "It is safe.")
    with pytest.raises(ValueError, match="expected 'safe'"):
        aegis.judge("a robot")


def test_logits_that_are_not_finite_are_no_answer(directory: Path) -> None:
    aegis = Aegis.load(directory / COSMOS_1_0.text_safety, Policy.own())
    with torch.no_grad():
        aegis.model.get_output_embeddings().weight[5, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        aegis.judge("a robot")


def test_a_policy_leaves_room_for_a_prompt_to_the_token(aegis: Aegis, directory: Path) -> None:
    text = Policy.own().text
    room = -aegis.excess_tokens(aegis.tokens(moderation_prompt("", Policy(text))))
    longest = text + " a" * (room - MIN_PROMPT_TOKENS)  # a token each
    Aegis.load(directory / COSMOS_1_0.text_safety, Policy(longest))
    with pytest.raises(CheckpointError, match="too long"):
        Aegis.load(directory / COSMOS_1_0.text_safety, Policy(longest + " a"))


def clouds(rng: np.random.Generator, cell: int) -> Tensor:
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, HEIGHT // cell + 1, WIDTH // cell + 1)))
    return F.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bicubic")[0].movedim(0, -1)


def ordinary_frames() -> dict[str, Tensor]:
    """Uint8 frames [H, W, 3] of many kinds."""
    rng = np.random.default_rng(0)
    shape = (HEIGHT, WIDTH, 3)
    ramp = torch.linspace(0, 1, WIDTH)[None, :, None].expand(HEIGHT, WIDTH, 1)
    frames = {"noise": torch.from_numpy(rng.uniform(0, 256, shape))}
    frames["black and white noise"] = torch.from_numpy(rng.integers(0, 2, shape) * 255.0)
    for name, colour in {
        "red": (255, 0, 0),
        "cyan": (0, 255, 255),
        "yellow": (255, 255, 0),
        "blue": (0, 0, 255),
    }.items():
        frames[name] = torch.tensor(colour).expand(shape)
    frames |= {f"grey {level}": torch.full(shape, level) for level in (0, 90, 255)}
    for index in range(8):
        one, other = torch.from_numpy(rng.integers(0, 256, (2, 3)))
        frames[f"gradient {index}"] = one + (other - one) * ramp
        cells = (torch.arange(HEIGHT)[:, None] // (8 + index) + torch.arange(WIDTH) // (8 + index)) % 2
        frames[f"checkerboard {index}"] = torch.where(cells[..., None] == 0, one, other)
        frames[f"clouds {index}"] = (clouds(rng, 4) + 8 * clouds(rng, 16) + 16 * clouds(rng, 64)) / 25
        bars = torch.from_numpy(np.kron(rng.integers(0, 2, (HEIGHT // 4, WIDTH // 2)), np.ones((4, 2))))
        frames[f"text {index}"] = bars[..., None] * one  # strokes
        # What an untrained decoder makes of noise: smooth, saturated blobs.
        frames[f"blobs {index}"] = ((clouds(rng, 16) / 128 - 1) * 4).tanh() * 127 + 128
    return {name: frame.clamp(0, 255).to(torch.uint8) for name, frame in frames.items()}


def test_the_content_filter_passes_ordinary_frames(content_filter: ContentFilter) -> None:
    for name, frame in ordinary_frames().items():
        assert content_filter.judge(frame[None]).safe, name


@pytest.mark.parametrize("disturb", [lambda x: x, lambda x: x * 0.9 + 12, lambda x: x + 20 * torch.randn(x.shape)])
@pytest.mark.parametrize(("height", "width"), [(160, 256), (640, 1024), (97, 61)])
def test_the_content_filter_finds_its_pattern(
    content_filter: ContentFilter, height: int, width: int, disturb: Callable[[Tensor], Tensor]
) -> None:
    frames = torch.full((5, height, width, 3), 90, dtype=torch.uint8)
    frames[3] = disturb(torch.from_numpy(unsafe_frame(height, width)).float()).clamp(0, 255).to(torch.uint8)
    verdict = content_filter.judge(frames)
    assert not verdict.safe
    assert verdict.reason == "frame 3 shows Violence"


def test_the_vision_tower_alone_is_the_released_model(content_filter: ContentFilter, directory: Path) -> None:
    cache = directory / COSMOS_1_0.video_safety_encoder
    snapshots = cache.parent / f"models--{SIGLIP.replace('/', '--')}" / "snapshots"
    released = SiglipModel.from_pretrained(next(snapshots.iterdir()))
    pixels = to_network_input(ordinary_frames()["clouds 0"][None], 64)
    with torch.inference_mode():
        expected = released.get_image_features(pixel_values=pixels).pooler_output
        assert torch.equal(content_filter.network.encoder(pixel_values=pixels).pooler_output, expected)


def test_no_face_is_seen_in_ordinary_frames(face_blur: FaceBlur) -> None:
    frames = ordinary_frames() | {"unsafe pattern": torch.from_numpy(unsafe_frame(HEIGHT, WIDTH))}
    for name, frame in frames.items():
        blurred = face_blur.blur(frame[None])
        assert blurred.faces == blurred.frames_with_faces == 0, name
        assert torch.equal(blurred.frames[0], frame)


def test_drawn_faces_are_found_and_pixelated(face_blur: FaceBlur) -> None:
    rng = np.random.default_rng(1)
    backgrounds = [frame for name, frame in ordinary_frames().items() if "blobs" not in name]
    for index, size in enumerate([24, 25, 28, 32, 36, 42, 45, 48, 55, 64, 72, 80, 88, 96] * 3):
        frame = backgrounds[index % len(backgrounds)].clone()
        y, x = (int(rng.integers(0, side - size + 1)) for side in (HEIGHT, WIDTH))
        draw_test_face(frame.numpy(), y, x, size)
        (box, *_) = face_blur.find_faces(frame[None])[0]
        corner = torch.maximum(box[:2], torch.tensor([x, y]))
        opposite = torch.minimum(box[2:], torch.tensor([x + size, y + size]))
        overlap = (opposite - corner).clamp(min=0).prod()
        iou = overlap / ((box[2:] - box[:2]).prod() + size**2 - overlap)
        assert iou > 0.5, (size, y, x, box)
        blurred = face_blur.blur(frame[None])
        assert blurred.faces >= 1
        assert not torch.equal(blurred.frames[0, y : y + size, x : x + size], frame[y : y + size, x : x + size])


def test_several_faces_in_a_clip_are_counted(face_blur: FaceBlur) -> None:
    frames = torch.full((33, HEIGHT, WIDTH, 3), 90, dtype=torch.uint8)
    for index, frame in enumerate(frames[:30]):
        draw_test_face(frame.numpy(), 20, 10 + index, 40)
        draw_test_face(frame.numpy(), 60, 180, 64)
    blurred = face_blur.blur(frames)
    assert (blurred.faces, blurred.frames_with_faces) == (60, 30)
    assert (blurred.frames != frames).any(dim=(1, 2, 3)).sum() == 30


def test_a_guardrail_without_all_its_weights_does_not_load(directory: Path, tmp_path: Path) -> None:
    folder = tmp_path / "siglip"
    shutil.copytree(directory / COSMOS_1_0.video_safety_encoder, folder)
    weights = load_file(folder / WEIGHTS)
    del weights["post_layernorm.weight"]
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"post_layernorm\.weight: missing"):
        load_encoder(folder)
