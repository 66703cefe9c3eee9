"""The engine answers every request exactly once, loses no slot, and gives the decoder's tokens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch

from cosmos_triton.runtime.ar.decoder import ARRequest, Decoder
from cosmos_triton.runtime.ar.engine import AREngine, EngineStopped, GenerationCancelled, QueueFull
from support.decoding import alone
from support.tiny_models import AR_CONFIGS, BASE, random_request, random_transformer

TIMEOUT = 60.0


class PausedDecoder(Decoder):
    """A decoder whose steps wait for `go`. `work` is what it has done: "chunk" or "step"."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.go = threading.Event()
        self.work: list[str] = []

    def prefill(self, slot: int, request: ARRequest) -> Iterator[None]:
        for _ in super().prefill(slot, request):
            self.work.append("chunk")
            yield

    def step(self, *, kv_len: int | None = None) -> None:
        self.work.append("step")
        assert self.go.wait(TIMEOUT)
        super().step(kv_len=kv_len)


@pytest.fixture
def engine() -> Iterator[AREngine]:
    engine = AREngine(Decoder(random_transformer(BASE), 3))
    yield engine
    engine.close(timeout=TIMEOUT)


@pytest.mark.parametrize("config", ["base", "video2world"])
def test_tokens_are_those_of_a_clip_alone(config: str) -> None:
    network = random_transformer(AR_CONFIGS[config])
    engine = AREngine(Decoder(network, 3, window=8))
    requests = [random_request(network.config, clip=i, seed=i, frames=1 + i % 4) for i in range(8)]
    sequences = [engine.submit(request) for request in requests]
    for request, sequence in zip(requests, sequences, strict=True):
        assert torch.equal(sequence.future.result(TIMEOUT), alone(network, request))
    engine.close(timeout=TIMEOUT)
    stats = engine.stats()
    assert (stats.finished, stats.cancelled, stats.failed, stats.waiting, stats.running) == (8, 0, 0, 0, 0)
    drawn = sum(BASE.clip_tokens - len(request.prompt_tokens) for request in requests)
    assert stats.tokens == drawn
    assert stats.accepted_per_forward > 1


def test_progress_names_every_latent_frame_once(engine: AREngine) -> None:
    seen: list[tuple[int, int]] = []
    engine.submit(random_request(BASE, frames=2), on_frame=lambda *event: seen.append(event)).future.result(TIMEOUT)
    assert seen == [(3, 5), (4, 5), (5, 5)]


def test_requests_start_in_the_order_they_came() -> None:
    decoder = PausedDecoder(random_transformer(BASE), 1)
    engine = AREngine(decoder)
    order: list[int] = []
    sequences = [engine.submit(random_request(BASE, seed=i, frames=4)) for i in range(4)]
    for i, sequence in enumerate(sequences):
        sequence.future.add_done_callback(lambda _, i=i: order.append(i))
    decoder.go.set()
    for sequence in sequences:
        sequence.future.result(TIMEOUT)
    assert order == [0, 1, 2, 3]
    engine.close(timeout=TIMEOUT)


def test_a_full_queue_refuses_at_once() -> None:
    decoder = PausedDecoder(random_transformer(BASE), 1)
    engine = AREngine(decoder, max_queue_size=2)
    running = engine.submit(random_request(BASE))
    wait_until(lambda: engine.stats().running == 1)
    waiting = [engine.submit(random_request(BASE)) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 requests are waiting, accepted: 2"):
        engine.submit(random_request(BASE))
    decoder.go.set()
    for sequence in (running, *waiting):
        sequence.future.result(TIMEOUT)
    engine.close(timeout=TIMEOUT)


def test_cancelling_frees_the_slot_and_leaves_the_neighbours_alone() -> None:
    decoder = PausedDecoder(random_transformer(BASE), 2)
    engine = AREngine(decoder)
    first, second, third = (random_request(BASE, clip=i, seed=i) for i in range(3))
    running, neighbour, waiting = (engine.submit(request) for request in (first, second, third))
    also_waiting = engine.submit(first)
    running.cancel()
    also_waiting.cancel()
    decoder.go.set()
    for cancelled in (running, also_waiting):
        with pytest.raises(GenerationCancelled):
            cancelled.future.result(TIMEOUT)
    for sequence, request in ((neighbour, second), (waiting, third)):
        assert torch.equal(sequence.future.result(TIMEOUT), alone(decoder.network, request))
    engine.close(timeout=TIMEOUT)
    assert engine.stats().cancelled == 2


def test_a_dying_engine_fails_all_sequences_and_accepts_no_more() -> None:
    decoder = PausedDecoder(random_transformer(BASE), 1)
    engine = AREngine(decoder)
    sequences = [engine.submit(random_request(BASE)) for _ in range(3)]
    decoder.num_tokens = None  # type: ignore[assignment]  # the next step fails
    decoder.go.set()
    for sequence in sequences:
        with pytest.raises(EngineStopped):
            sequence.future.result(TIMEOUT)
    wait_until(lambda: not engine.healthy)
    with pytest.raises(EngineStopped):
        engine.submit(random_request(BASE))


def test_a_callback_that_raises_fails_its_own_request_only(engine: AREngine) -> None:
    def fail(done: int, total: int) -> None:
        raise RuntimeError("listener is gone")

    bad = engine.submit(random_request(BASE), on_frame=fail)
    good = engine.submit(random_request(BASE, seed=1))
    with pytest.raises(RuntimeError, match="listener is gone"):
        bad.future.result(TIMEOUT)
    good.future.result(TIMEOUT)
    assert engine.healthy


def test_a_request_that_does_not_fit_is_refused_before_it_is_queued(engine: AREngine) -> None:
    with pytest.raises(ValueError, match="prompt has 0 tokens"):
        engine.submit(ARRequest(torch.empty(0, dtype=torch.int64)))


def test_a_future_that_is_cancelled_by_itself_does_not_stop_the_engine(engine: AREngine) -> None:
    sequence = engine.submit(random_request(BASE))
    assert not sequence.future.cancel()
    sequence.future.result(TIMEOUT)
    assert engine.healthy


def test_a_prefill_delays_running_sequences_by_one_chunk_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosmos_triton.runtime.ar.decoder.PREFILL_CHUNK", 7)
    decoder = PausedDecoder(random_transformer(BASE), 3)
    engine = AREngine(decoder)
    sequences = [engine.submit(random_request(BASE, frames=1))]
    wait_until(lambda: decoder.work[-1:] == ["step"])
    decoder.work.clear()
    sequences += [engine.submit(random_request(BASE, clip=clip, frames=2)) for clip in (1, 2)]
    decoder.go.set()
    for sequence in sequences:
        sequence.future.result(TIMEOUT)
    engine.close(timeout=TIMEOUT)
    assert decoder.work.count("chunk") == 2 * 6
    assert ("chunk", "chunk") not in pairwise(decoder.work)


@pytest.mark.parametrize("window", [1, 4])
def test_a_step_reads_as_much_of_the_cache_as_its_longest_sequence_needs(
    monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """Clips here are shorter than the multiple that lengths are rounded up to: it would hide any other length."""
    network = random_transformer(BASE)
    requests = [random_request(BASE, clip=i, seed=i, frames=frames) for i, frames in enumerate((1, 4, 2))]
    expected = [alone(network, request) for request in requests]
    monkeypatch.setattr("cosmos_triton.runtime.ar.decoder.KV_LEN_MULTIPLE", 1)
    engine = AREngine(Decoder(network, 3, window=window))
    sequences = [engine.submit(request) for request in requests]
    for sequence, tokens in zip(sequences, expected, strict=True):
        assert torch.equal(sequence.future.result(TIMEOUT), tokens)
    engine.close(timeout=TIMEOUT)


def test_a_slot_that_becomes_free_while_the_engine_closes_stays_free() -> None:
    decoder = PausedDecoder(random_transformer(BASE), 2)
    engine = AREngine(decoder)
    running = [engine.submit(random_request(BASE, frames=frames)) for frames in (4, 1)]  # the first ends earlier
    waiting = engine.submit(random_request(BASE))
    wait_until(lambda: engine.stats().running == 2)
    closing = threading.Thread(target=engine.close, kwargs={"timeout": TIMEOUT})
    closing.start()
    wait_until(lambda: engine._closing)
    decoder.go.set()
    for sequence in running:
        sequence.future.result(TIMEOUT)
    with pytest.raises(EngineStopped):
        waiting.future.result(TIMEOUT)
    closing.join(TIMEOUT)
    assert engine.stats().finished == 2


def test_closing_finishes_running_sequences_and_fails_queued_ones() -> None:
    decoder = PausedDecoder(random_transformer(BASE), 1)
    engine = AREngine(decoder)
    running = engine.submit(random_request(BASE))
    wait_until(lambda: engine.stats().running == 1)
    waiting = engine.submit(random_request(BASE))
    closing = threading.Thread(target=engine.close, kwargs={"timeout": TIMEOUT})
    closing.start()
    decoder.go.set()
    running.future.result(TIMEOUT)
    with pytest.raises(EngineStopped):
        waiting.future.result(TIMEOUT)
    closing.join(TIMEOUT)
    assert not closing.is_alive()


def test_a_close_that_takes_too_long_cancels_every_sequence() -> None:
    decoder = PausedDecoder(random_transformer(BASE), 3)
    engine = AREngine(decoder)
    running = [engine.submit(random_request(BASE)) for _ in range(3)]
    wait_until(lambda: engine.stats().running == 3)
    closing = threading.Thread(target=engine.close, kwargs={"timeout": 0.1})
    closing.start()
    wait_until(lambda: any(sequence.cancelled for sequence in running))
    decoder.go.set()
    for sequence in running:
        with pytest.raises(GenerationCancelled):
            sequence.future.result(TIMEOUT)
    closing.join(TIMEOUT)
    assert not closing.is_alive()


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)
