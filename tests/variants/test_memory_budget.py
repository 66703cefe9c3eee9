"""The real server within a budget that has room for one stage at work: it is kept, nobody starves, and the answers are
those of the server that keeps everything in memory."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from cosmos_triton.client import Generation, ServerFailed
from cosmos_triton.planning.memory_plan import MemoryPlan, plan_memory
from cosmos_triton.planning.units import GB
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.serving.planned_config import RESOURCE
from cosmos_triton.serving.run_directory import read_config
from support import media_files as files
from support.paths import SUPPORT
from support.pipeline_server import STOP_SECONDS, PipelineServer, cancellations, follow
from support.server import until
from support.stage_death import FAILED, assert_recovers, kill_at

REQUESTS, AT_ONCE = 100, 16
CLIP_EVERY, DIFFUSION_EVERY, GUARDRAIL_EVERY = 5, 20, 12  # requests; the others go to the encoder alone
SEEDS = 4


class BudgetedServer(PipelineServer):
    def __init__(self, plan: MemoryPlan, checkpoints: Path, folder: Path) -> None:
        super().__init__(plan.deployment, checkpoints, folder)
        script = SUPPORT / "serve_instrumented.py"
        self.command[:1] = [sys.executable, str(script), str(folder)]
        self.command.append(f"--gpu-memory={plan.minimum_bytes / GB}")
        self.intervals_file = folder / "intervals"


@dataclass(frozen=True, slots=True)
class Interval:
    stage: str
    begin: float
    end: float


@pytest.fixture(scope="module")
def plan() -> MemoryPlan:
    """Of the least memory that there is a plan for."""
    return plan_memory(DEPLOYMENTS["tiny"], 0)


@pytest.fixture(scope="module")
def server(plan: MemoryPlan, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BudgetedServer]:
    server = BudgetedServer(plan, checkpoints, tmp_path_factory.mktemp("budgeted"))
    server.start()
    try:
        yield server
    finally:
        server.close()


def clip_of(number: int) -> dict[str, object]:
    return {"seed": number // CLIP_EVERY % SEEDS, "disable_diffusion_decoder": number % DIFFUSION_EVERY != 0}


def ask(server: PipelineServer, number: int) -> tuple[float, Generation | dict[str, np.ndarray]]:
    """Seconds and answer of a request: a clip, or one to a stage alone, of which there is a flood."""
    began = time.monotonic()
    if number % CLIP_EVERY == 0:
        generation = server.generate(**clip_of(number))
        return time.monotonic() - began, generation
    frames = files.numbered(33, 256, 160)
    answer = (
        server.infer_stage("video_tokenizer_encoder", frames=frames[:1])
        if number % GUARDRAIL_EVERY
        else server.infer_stage("video_guardrail", video=frames)
    )
    return time.monotonic() - began, answer


def test_budget_is_kept_nobody_starves_and_answers_are_the_same(
    plan: MemoryPlan, server: BudgetedServer, base: PipelineServer
) -> None:
    configs = {stage.stage: read_config(server.run_dir / "models" / stage.stage) for stage in plan.stages}
    needs = {}
    for stage, config in configs.items():
        [resource] = config.instance_group[0].rate_limiter.resources
        assert resource.name == RESOURCE
        needs[stage] = resource.count
    pool = plan.pool_bytes >> 20
    assert max(needs.values()) == pool
    assert all(a + b > pool for a, b in combinations(needs.values(), 2))  # one at a time

    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(lambda number: ask(server, number), range(REQUESTS)))
    elapsed = time.monotonic() - began

    with ThreadPoolExecutor(2) as threads:
        numbers = {json.dumps(clip_of(number)): number for number in range(0, REQUESTS, CLIP_EVERY)}
        expected = dict(zip(numbers, threads.map(lambda number: ask(base, number)[1], numbers.values()), strict=True))
    for number, (_, answer) in enumerate(answers):
        if isinstance(answer, Generation):
            same = expected[json.dumps(clip_of(number))]
            assert isinstance(same, Generation)
            assert answer.report["tokens_sha256"] == same.report["tokens_sha256"]
            assert answer.video == same.video

    # Who waits for the flood to end is answered when it has ended.
    assert max(seconds for seconds, _ in answers) < elapsed / 2

    intervals = [
        Interval(stage, float(begin), float(end))
        for stage, begin, end in map(str.split, server.intervals_file.read_text().splitlines())
    ]
    assert {interval.stage for interval in intervals} == set(needs)
    assert len(intervals) >= REQUESTS
    for moment in (interval.begin for interval in intervals):
        at_work = [interval.stage for interval in intervals if interval.begin <= moment < interval.end]
        assert sum(needs[stage] for stage in at_work) <= pool, at_work


@pytest.mark.parametrize("stage", ["ar_sampler", "diffusion_decoder"])
def test_cancelled_stage_gives_its_memory_to_the_next(server: BudgetedServer, stage: str) -> None:
    stopped = cancellations(server, stage)
    with server.stream() as updates:
        follow(updates, stage)
    until(lambda: cancellations(server, stage) > stopped, seconds=STOP_SECONDS)
    assert server.generate(disable_diffusion_decoder=True).report["outcome"] == "generated"


@pytest.mark.parametrize("stage", ["ar_sampler", "diffusion_decoder"])
def test_stage_that_dies_at_work_takes_its_memory_from_nobody(server: BudgetedServer, stage: str) -> None:
    error, seconds, killed = kill_at(server, stage, lambda event: event.stage == stage and 0 < event.done < event.total)
    assert isinstance(error, ServerFailed)
    assert str(error) == f"{stage}: its process died"
    assert seconds < FAILED
    assert_recovers(server, killed)
