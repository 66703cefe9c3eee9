"""The engine under a thousand requests, most of them cancelled at random."""

from __future__ import annotations

import gc
import random
import threading
import time

import torch

from cosmos_triton.runtime.ar.decoder import Decoder
from cosmos_triton.runtime.ar.engine import AREngine, GenerationCancelled
from support.decoding import alone
from support.tiny_models import BASE, random_request, random_transformer

TIMEOUT = 60.0


def test_a_thousand_requests_with_random_cancellations_lose_no_slot_and_no_answer() -> None:
    engine = AREngine(Decoder(random_transformer(BASE), 3), max_queue_size=1000)
    chance = random.Random(5)
    network = engine.decoder.network
    expected = {seed: alone(network, random_request(BASE, seed=seed, frames=4)) for seed in range(5)}
    sequences, memory = [], []
    for i in range(1000):
        sequence = engine.submit(random_request(BASE, seed=i % 5, frames=4))
        sequences.append((i % 5, sequence, chance.random() < 0.7))
        if sequences[-1][2]:
            threading.Timer(chance.random() * 0.2, sequence.cancel).start()
        if i % 100 == 0:
            time.sleep(chance.random() * 0.05)
            gc.collect()
            memory.append(resident_bytes())
    outcomes = {"done": 0, "cancelled": 0}
    for seed, sequence, may_be_cancelled in sequences:
        try:
            assert torch.equal(sequence.future.result(TIMEOUT), expected[seed])
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
    engine.close(timeout=TIMEOUT)


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096
