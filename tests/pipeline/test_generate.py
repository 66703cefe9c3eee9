"""The whole pipeline on a real server: what goes in, what comes out, and what the report says of it."""

from __future__ import annotations

import io
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import av
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from cosmos_triton.client import Event, Generation, GuardrailBlocked
from cosmos_triton.guardrail.policy import Policy
from cosmos_triton.pipeline.job_files import JOB
from cosmos_triton.tiny.guardrails import BLOCKED_WORD, DANGER_WORD, draw_test_face, unsafe_frame
from support import media_files as files
from support.pipeline_server import CLIP, PROMPT, STILL, TRITON, PipelineServer, tensor

INPUTS = {"clip": CLIP, "still": STILL}
PROTOCOLS = ("grpc", "http")
TEXT_STAGES = {"text_guardrail", "text_encoder"}
STAGES = {
    "media_decoder",
    "video_tokenizer_encoder",
    "ar_sampler",
    "diffusion_decoder",
    "video_guardrail",
    "media_encoder",
}


@pytest.fixture(scope="module", params=["base", "video2world"])
def server(request: pytest.FixtureRequest) -> PipelineServer:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def generations(server: PipelineServer) -> dict[tuple[str, str], Generation]:
    """Of each input over each protocol."""
    kinds = list(product(INPUTS, PROTOCOLS))
    with ThreadPoolExecutor() as pool:
        answers = pool.map(lambda kind: server.generate(kind[1], visual_input=INPUTS[kind[0]], seed=3), kinds)
        return dict(zip(kinds, answers, strict=True))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", INPUTS)
def test_video_has_the_promised_form(
    server: PipelineServer, generations: dict[tuple[str, str], Generation], kind: str, protocol: str
) -> None:
    with av.open(io.BytesIO(generations[kind, protocol].video)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 25
        assert "AI" in container.metadata["comment"]
    assert np.shape(frames) == (33, 160, 256, 3)
    assert np.std(frames) > 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", INPUTS)
def test_report_is_complete(
    server: PipelineServer, generations: dict[tuple[str, str], Generation], kind: str, protocol: str
) -> None:
    report = generations[kind, protocol].report
    used = {"clip": 9, "still": 1}[kind]
    assert report["outcome"] == "generated"
    assert report["reason"] == ""
    assert report["deployment"] == server.deployment.name
    assert report["parameters"] == {
        "num_input_frames": used,
        "temperature": 1.0,
        "top_p": 0.8,
        "seed": 3,
        "disable_diffusion_decoder": False,
    }
    seconds = report["seconds"]
    assert seconds.keys() == STAGES | {"total"} | (TEXT_STAGES if server.deployment.is_video2world else set())
    assert all(0 < seconds[stage] <= seconds["total"] for stage in STAGES)
    fit = report["input"].pop("fit")
    assert "64x48" in fit
    assert "256x160" in fit
    size = {"width": 64, "height": 48, "num_input_frames": used}
    details = {"clip": {"frames": 12, "fps": 25.0, "kind": "video"}, "still": {"frames": 1, "fps": 0, "kind": "image"}}
    assert report["input"] == size | details[kind]
    guardrails = ["blocklist", "aegis"] if server.deployment.is_video2world else []
    assert [verdict["guardrail"] for verdict in report["guardrails"]] == [*guardrails, "content_filter", "face_blur"]
    for verdict in report["guardrails"]:
        assert (verdict["safe"], verdict["categories"], verdict["reason"]) == (True, [], "")
    assert report["policy_sha256"] == (Policy.own().sha256 if guardrails else None)
    assert report["faces_blurred"] == report["frames_blurred"] == 0
    assert report["warnings"] == []
    assert re.fullmatch(r"\d+\.\d+\.\d+", report["versions"]["cosmos-triton"])
    assert re.fullmatch("[0-9a-f]{64}", report["tokens_sha256"])


def test_protocols_give_the_same_tokens(generations: dict[tuple[str, str], Generation]) -> None:
    tokens = {kind: generation.report["tokens_sha256"] for kind, generation in generations.items()}
    for kind in INPUTS:
        assert tokens[kind, "grpc"] == tokens[kind, "http"]
    assert tokens["clip", "grpc"] != tokens["still", "grpc"]


def test_diffusion_decoder_can_be_left_out(
    server: PipelineServer, generations: dict[tuple[str, str], Generation]
) -> None:
    before = server.runs("diffusion_decoder")
    quick = server.generate(seed=3, disable_diffusion_decoder=True)
    assert quick.report["tokens_sha256"] == generations["clip", "grpc"].report["tokens_sha256"]
    assert quick.report["parameters"]["disable_diffusion_decoder"] is True
    assert server.runs("diffusion_decoder") == before
    assert "video_tokenizer_decoder" in quick.report["seconds"]
    assert quick.video != generations["clip", "grpc"].video


@pytest.mark.parametrize(
    ("data", "fit"),
    [
        (
            (files.SAMPLES / "sar2.mp4").read_bytes(),
            "pixels of 2:1, shown as 640x192, scaled from 320x192 to 534x160, cropped to 256x160",
        ),
        ((files.SAMPLES / "o6.png").read_bytes(), "scaled from 320x192 to 267x160, cropped to 256x160"),
        (files.png(4096, 2, bytes(2 * (1 + 512)), bits=1, colour=0), "scaled from 4096x2 to 327680x160"),
        (files.png(1, 12_000, bytes(12_000 * 2), bits=1, colour=0), "scaled from 1x12000 to 256x3072000"),
        (
            files.png(8064, 6048, bytes(6048 * (1 + 1008)), bits=1, colour=0),
            "decoded at half its size, scaled from 4032x",
        ),
    ],
    ids=["pixel aspect", "orientation", "wide", "tall", "large"],
)
def test_input_of_any_shape_is_fitted_and_the_report_says_how(base: PipelineServer, data: bytes, fit: str) -> None:
    report = base.generate(visual_input=data, disable_diffusion_decoder=True).report
    assert report["outcome"] == "generated"
    assert report["input"]["fit"].startswith(fit)


def test_events_tell_how_far_each_stage_is(video2world: PipelineServer) -> None:
    events: list[Event] = []
    video2world.generate(on_event=events.append)
    of_stage = {stage: [event for event in events if event.stage == stage] for stage in STAGES | TEXT_STAGES}
    for stage, told in of_stage.items():
        assert [event.done for event in told] == sorted(event.done for event in told), stage
        assert told[-1].done == told[-1].total, stage
    assert len(of_stage["ar_sampler"]) > 2
    assert len(of_stage["diffusion_decoder"]) > 4


def test_sixteen_at_once_are_answered_in_batches_and_overlap(video2world: PipelineServer) -> None:
    """Seeds 0 to 3, each four times: over both protocols, alone and in company, the same seed gives the same."""
    server = video2world
    alone = server.generate(seed=0, disable_diffusion_decoder=True)
    stages = (STAGES | TEXT_STAGES) - {"ar_sampler"}
    before, steps_before = (
        {stage: server.busy_seconds(stage) for stage in stages},
        server.metric("cosmos_ar_step_seconds"),
    )
    began = time.monotonic()

    def generate(number: int) -> tuple[int, Generation]:
        seed = number % 4
        quick = number >= 4
        return seed, server.generate(PROTOCOLS[number // 4 % 2], seed=seed, disable_diffusion_decoder=quick)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(generate, range(16)))
    elapsed = time.monotonic() - began
    tokens: dict[int, set[str]] = {}
    for seed, generation in answers:
        tokens.setdefault(seed, set()).add(generation.report["tokens_sha256"])
        assert generation.video
    assert all(len(found) == 1 for found in tokens.values())
    assert tokens[0] == {alone.report["tokens_sha256"]}
    assert len(set.union(*tokens.values())) == 4

    busy = sum(server.busy_seconds(stage) - before[stage] for stage in stages)
    busy += server.metric("cosmos_ar_step_seconds") - steps_before
    assert busy > 1.2 * elapsed  # one stage after the other would be 1 at most
    assert server.metric("cosmos_ar_slot_steps") > 1.2 * server.metric("cosmos_ar_steps")
    assert server.largest_batch("diffusion_decoder") == 1


def test_prompts_that_wait_together_are_encoded_together(video2world: PipelineServer) -> None:
    prompts = [f"{PROMPT} {number}" for number in range(8)]
    grpc = TRITON["grpc"]
    alone = video2world.infer_stage("text_encoder", prompt=np.array([[prompts[5]]], np.object_))["context"]
    with grpc.InferenceServerClient(video2world.grpc_url) as client, video2world.job() as job:

        def encode(prompt: str) -> np.ndarray:
            held = [tensor(grpc, "prompt", np.array([[prompt]], np.object_))]
            return client.infer("text_encoder", held, parameters={JOB: job}).as_numpy("context")

        with ThreadPoolExecutor(8) as pool:
            contexts = list(pool.map(encode, prompts))
    assert video2world.largest_batch("text_encoder") > 1
    assert np.allclose(contexts[5], alone, atol=1e-5)
    assert not np.allclose(contexts[4], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("word", "guardrail", "category"), [(BLOCKED_WORD, "blocklist", "custom"), (DANGER_WORD, "aegis", "O3")]
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_blocked_prompt_is_an_outcome_and_costs_no_network(
    video2world: PipelineServer, word: str, guardrail: str, category: str, protocol: str
) -> None:
    stages = (STAGES | TEXT_STAGES) - {"media_decoder", "text_guardrail"}
    before, counted = {stage: video2world.runs(stage) for stage in stages}, video2world.blocks(guardrail, category)
    outputs = video2world.infer(protocol, prompt=f"a robot with a {word}".encode())
    report = json.loads(outputs["report"][0])
    assert outputs["video"].tolist() == [b""]
    assert report["outcome"] == "prompt_blocked"
    assert report["reason"].startswith(f"{guardrail}: ")
    last = report["guardrails"][-1]
    assert (last["guardrail"], last["safe"], last["categories"]) == (guardrail, False, [category])
    assert report["policy_sha256"] == Policy.own().sha256
    assert report["faces_blurred"] == report["frames_blurred"] == 0
    assert {stage: video2world.runs(stage) for stage in stages} == before
    with pytest.raises(GuardrailBlocked) as caught:
        video2world.generate(protocol, prompt=f"a robot with a {word}", on_event=print)  # the other pipeline's
    assert caught.value.report["outcome"] == "prompt_blocked"
    assert video2world.blocks(guardrail, category) == counted + 2
    assert word not in video2world.log


def test_unsafe_video_comes_out_black_and_faces_blurred(base: PipelineServer) -> None:
    unsafe = files.numbered(33, 256, 160)
    unsafe[20] = unsafe_frame(160, 256)
    answer = base.infer_stage("video_guardrail", video=unsafe)
    assert json.loads(answer["verdict"][0])["safe"] is False
    assert not answer["video"].any()
    video = files.numbered(33, 256, 160)
    draw_test_face(video[7], 40, 60, 64)
    answer = base.infer_stage("video_guardrail", video=video)
    verdict = json.loads(answer["verdict"][0])
    assert verdict["safe"] is True
    assert verdict["faces_blurred"] == verdict["frames_blurred"] == 1
    assert (answer["video"][7] != video[7]).any()


def test_log_names_stage_and_request_and_no_prompt(video2world: PipelineServer) -> None:
    report = video2world.generate(prompt="a heron flies over Utrecht", disable_diffusion_decoder=True).report
    job, seconds = report["job"], report["seconds"]
    stages = [f"{job}: {stage} took {seconds[stage]} s" for stage in seconds if stage != "total"]
    log = video2world.log_with(*stages, f"{job}: generated after {seconds['total']} s")
    assert not re.search("[0-9a-f]{32}", log)  # an id of a job
    assert "heron" not in log
    assert PROMPT not in log
    assert "it/s" not in log  # progress bars
    assert not re.search("[0-9a-f]{32}", log)  # ids of jobs, with which stages could be called


def test_request_id_leads_to_the_log(base: PipelineServer) -> None:
    grpc = TRITON["grpc"]
    with grpc.InferenceServerClient(base.grpc_url) as client:
        held = [tensor(grpc, "visual_input", np.array([b"no image"], np.object_))]
        with pytest.raises(InferenceServerException):
            client.infer("world_generation", held, request_id="order-17\nforged line")
    line = next(line for line in base.log_with("order-17").splitlines() if "order-17" in line)
    job = re.search("world_generation ([0-9a-f]{12}): started", line)
    assert job
    log = base.log_with(f"{job[1]}: [INVALID_ARG] visual_input")
    assert not any(line.startswith("forged") for line in log.splitlines())
