"""The policy settles on the window that earns the most tokens a second, and follows it when that changes."""

from __future__ import annotations

from collections import Counter

from cosmos_triton.runtime.ar.window_policy import WindowPolicy

SECONDS = {1: 1.0, 8: 1.3, 32: 2.5}


def play(policy: WindowPolicy, accepted: dict[int, float], steps: int) -> Counter[int]:
    used: Counter[int] = Counter()
    for _ in range(steps):
        window = policy.window
        used[window] += 1
        policy.observe(window, accepted[window], SECONDS[window])
    return used


def test_it_settles_on_the_best_window_and_still_looks_at_the_others() -> None:
    policy = WindowPolicy(tuple(SECONDS))
    used = play(policy, {1: 1.0, 8: 3.0, 32: 4.0}, 3000)
    assert used[8] > 2000
    assert used[1] > 0
    assert used[32] > 0


def test_it_falls_back_to_plain_decoding_when_drafts_fail_and_returns_when_they_hold() -> None:
    policy = WindowPolicy(tuple(SECONDS))
    assert play(policy, {1: 1.0, 8: 1.05, 32: 1.1}, 3000)[1] > 2000
    assert play(policy, {1: 1.0, 8: 6.0, 32: 20.0}, 3000)[32] > 2000


def test_one_window_is_always_used() -> None:
    assert play(WindowPolicy((1,)), {1: 1.0}, 10) == {1: 10}
