"""The engine answers every request exactly once, loses no slot, and gives the decoder's tokens."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from cosmos_triton.runtime.ar.decoder import Decoder, Prompt
from cosmos_triton.runtime.ar.engine import AREngine, EngineBusy, EngineStopped, GenerationCancelled
from support.decoding import alone
from support.tiny_models import AR_CONFIGS, BASE, random_prompt, random_transformer

TIMEOUT = 60.0


class Brake(Decoder):
    """A decoder whose steps wait until the test lets them go."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.go = threading.Event()

    def step(self, window: int, *, length: int | None = None) -> None:
        assert self.go.wait(TIMEOUT)
        super().step(window, length=length)


@pytest.fixture
def engine() -> Iterator[AREngine]:
    engine = AREngine(Decoder(random_transformer(BASE), 3))
    yield engine
    engine.close(timeout=TIMEOUT)


@pytest.mark.parametrize("config", ["base", "video2world"])
def test_tokens_are_those_of_a_clip_alone(config: str) -> None:
    network = random_transformer(AR_CONFIGS[config])
    engine = AREngine(Decoder(network, 3, windows=(1, 2, 8)))
    prompts = [random_prompt(network.config, clip=i, seed=i, frames=1 + i % 4) for i in range(8)]
    requests = [engine.submit(prompt) for prompt in prompts]
    for prompt, request in zip(prompts, requests, strict=True):
        assert torch.equal(request.future.result(TIMEOUT), alone(network, prompt))
    engine.close(timeout=TIMEOUT)
    stats = engine.stats()
    assert (stats.finished, stats.cancelled, stats.failed, stats.waiting, stats.running) == (8, 0, 0, 0, 0)
    drawn = sum(BASE.clip_tokens - len(prompt.tokens) for prompt in prompts)
    assert stats.tokens == drawn
    assert stats.accepted_per_forward > 1


def test_progress_names_every_latent_frame_once(engine: AREngine) -> None:
    seen: list[tuple[int, int]] = []
    engine.submit(random_prompt(BASE, frames=2), on_frame=lambda *event: seen.append(event)).future.result(TIMEOUT)
    assert seen == [(3, 5), (4, 5), (5, 5)]


def test_requests_start_in_the_order_they_came() -> None:
    decoder = Brake(random_transformer(BASE), 1)
    engine = AREngine(decoder)
    order: list[int] = []
    requests = [engine.submit(random_prompt(BASE, seed=i, frames=4)) for i in range(4)]
    for i, request in enumerate(requests):
        request.future.add_done_callback(lambda _, i=i: order.append(i))
    decoder.go.set()
    for request in requests:
        request.future.result(TIMEOUT)
    assert order == [0, 1, 2, 3]
    engine.close(timeout=TIMEOUT)


def test_a_full_line_refuses_at_once() -> None:
    decoder = Brake(random_transformer(BASE), 1)
    engine = AREngine(decoder, max_waiting=2)
    running = engine.submit(random_prompt(BASE))
    wait_until(lambda: engine.stats().running == 1)
    waiting = [engine.submit(random_prompt(BASE)) for _ in range(2)]
    with pytest.raises(EngineBusy, match="2 requests are waiting, accepted: 2"):
        engine.submit(random_prompt(BASE))
    decoder.go.set()
    for request in (running, *waiting):
        request.future.result(TIMEOUT)
    engine.close(timeout=TIMEOUT)


def test_cancelling_frees_the_slot_and_leaves_the_neighbours_alone() -> None:
    decoder = Brake(random_transformer(BASE), 2)
    engine = AREngine(decoder)
    first, second, third = (random_prompt(BASE, clip=i, seed=i) for i in range(3))
    running, neighbour, waiting = (engine.submit(prompt) for prompt in (first, second, third))
    also_waiting = engine.submit(first)
    running.cancel()
    also_waiting.cancel()
    decoder.go.set()
    for cancelled in (running, also_waiting):
        with pytest.raises(GenerationCancelled):
            cancelled.future.result(TIMEOUT)
    for request, prompt in ((neighbour, second), (waiting, third)):
        assert torch.equal(request.future.result(TIMEOUT), alone(decoder.network, prompt))
    engine.close(timeout=TIMEOUT)
    assert engine.stats().cancelled == 2


def test_a_dying_loop_answers_everyone_and_takes_nobody_new() -> None:
    decoder = Brake(random_transformer(BASE), 1)
    engine = AREngine(decoder)
    requests = [engine.submit(random_prompt(BASE)) for _ in range(3)]
    decoder.known = None  # type: ignore[assignment]  # the next step fails
    decoder.go.set()
    for request in requests:
        with pytest.raises(EngineStopped):
            request.future.result(TIMEOUT)
    wait_until(lambda: not engine.healthy)
    with pytest.raises(EngineStopped):
        engine.submit(random_prompt(BASE))


def test_a_callback_that_raises_fails_its_own_request_only(engine: AREngine) -> None:
    def fail(done: int, total: int) -> None:
        raise RuntimeError("listener is gone")

    bad = engine.submit(random_prompt(BASE), on_frame=fail)
    good = engine.submit(random_prompt(BASE, seed=1))
    with pytest.raises(RuntimeError, match="listener is gone"):
        bad.future.result(TIMEOUT)
    good.future.result(TIMEOUT)
    assert engine.healthy


def test_a_prompt_that_does_not_fit_is_refused_before_it_waits(engine: AREngine) -> None:
    with pytest.raises(ValueError, match="prompt has 0 tokens"):
        engine.submit(Prompt(torch.empty(0, dtype=torch.int64)))


def test_a_future_that_is_cancelled_by_itself_does_not_stop_the_engine(engine: AREngine) -> None:
    request = engine.submit(random_prompt(BASE))
    assert not request.future.cancel()
    request.future.result(TIMEOUT)
    assert engine.healthy


def test_closing_finishes_what_runs_and_refuses_what_waits() -> None:
    decoder = Brake(random_transformer(BASE), 1)
    engine = AREngine(decoder)
    running = engine.submit(random_prompt(BASE))
    wait_until(lambda: engine.stats().running == 1)
    waiting = engine.submit(random_prompt(BASE))
    closing = threading.Thread(target=engine.close, kwargs={"timeout": TIMEOUT})
    closing.start()
    decoder.go.set()
    running.future.result(TIMEOUT)
    with pytest.raises(EngineStopped):
        waiting.future.result(TIMEOUT)
    closing.join(TIMEOUT)
    assert not closing.is_alive()


def test_a_close_that_takes_too_long_cancels() -> None:
    decoder = Brake(random_transformer(BASE), 1)
    engine = AREngine(decoder)
    running = engine.submit(random_prompt(BASE))
    wait_until(lambda: engine.stats().running == 1)
    threading.Timer(0.3, decoder.go.set).start()
    engine.close(timeout=0.1)
    with pytest.raises((GenerationCancelled, EngineStopped)):
        running.future.result(TIMEOUT)


def test_a_thousand_requests_with_random_cancellations_lose_no_slot_and_no_answer(engine: AREngine) -> None:
    chance = random.Random(5)
    network = engine.decoder.network
    expected = {seed: alone(network, random_prompt(BASE, seed=seed, frames=4)) for seed in range(5)}
    engine.max_waiting = 1000
    requests, memory = [], []
    for i in range(1000):
        request = engine.submit(random_prompt(BASE, seed=i % 5, frames=4))
        requests.append((i % 5, request, chance.random() < 0.7))
        if requests[-1][2]:
            threading.Timer(chance.random() * 0.2, request.cancel).start()
        if i % 100 == 0:
            time.sleep(chance.random() * 0.05)
            gc.collect()
            memory.append(resident_bytes())
    outcomes = {"done": 0, "cancelled": 0}
    for seed, request, may_be_cancelled in requests:
        try:
            assert torch.equal(request.future.result(TIMEOUT), expected[seed])
            outcomes["done"] += 1
        except GenerationCancelled:
            assert may_be_cancelled
            outcomes["cancelled"] += 1
    assert outcomes["done"] >= 250
    assert outcomes["cancelled"] >= 100
    stats = engine.stats()
    assert (stats.finished, stats.cancelled) == (outcomes["done"], outcomes["cancelled"])
    assert (stats.running, stats.waiting) == (0, 0)
    assert memory[-1] - memory[1] < 20 << 20, f"resident memory grew: {memory}"


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)
