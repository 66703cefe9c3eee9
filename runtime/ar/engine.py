"""Continuous batching of the autoregressive transformer: many requests, one KV cache, one thread.

The thread repeats one round: free the slots of cancelled requests, give free slots to the requests that wait longest,
prefill one chunk, advance every running slot by one step, hand out what is finished. A long prefill therefore delays
running clips by one chunk a step, never by its whole length.

Any thread may submit and cancel. Every request that `submit` accepts is answered exactly once, through its future, also
when the loop dies.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cosmos_triton.runtime.ar.decoder import Decoder, Prompt
from cosmos_triton.runtime.ar.window_policy import WindowPolicy

OnFrame = Callable[[int, int], None]


class EngineBusy(Exception):
    """The waiting line is full."""


class EngineStopped(Exception):
    """The engine is shutting down, or its loop has died."""


class GenerationCancelled(Exception):
    """The request was cancelled."""


@dataclass(eq=False, slots=True)
class Request:
    """One clip on its way. `future` ends as tokens [T, h, w] int64 on the CPU, or as an exception."""

    prompt: Prompt
    on_frame: OnFrame | None
    future: Future[Tensor] = field(default_factory=Future)
    cancelled: bool = False
    frames: int = 0  # latent frames that are known
    prefill: Iterator[None] | None = None  # what is left of it; None once the slot is decoding

    def cancel(self) -> None:
        """Stop within a step and free the slot; the future ends as GenerationCancelled."""
        self.cancelled = True


@dataclass(slots=True)
class EngineStats:
    """Counters since the start, and how things stand now."""

    waiting: int = 0
    running: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    tokens: int = 0  # drawn and kept
    slot_steps: int = 0  # steps, counted once for each slot that took part
    steps: int = 0
    step_seconds: float = 0.0

    @property
    def accepted_per_forward(self) -> float:
        """Tokens that one forward added to a clip, on average; 1 without speculation."""
        return self.tokens / max(self.slot_steps, 1)


class AREngine:
    """The thread and its waiting line.

    Args:
        decoder: where it has several windows, each step takes the one that earns the most tokens a second.
        max_waiting: requests in the line; one more is turned away.
    """

    def __init__(self, decoder: Decoder, *, max_waiting: int = 64) -> None:
        self.decoder = decoder
        self.max_waiting = max_waiting
        self.policy = WindowPolicy(decoder.windows)
        self.error: BaseException | None = None
        self._slots: list[Request | None] = [None] * decoder.slots
        self._waiting: deque[Request] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._stats = EngineStats()
        self._thread = threading.Thread(target=self._run, name="ar-engine", daemon=True)
        self._thread.start()

    def submit(self, prompt: Prompt, *, on_frame: OnFrame | None = None) -> Request:
        """Queue a clip.

        Args:
            on_frame: called from the engine's thread with (latent frames known, of how many); must return at once.

        Raises:
            EngineBusy: the line is full; try again later.
            EngineStopped: no request is taken any more.
            ValueError: the prompt does not fit the model.
        """
        self.decoder.check(prompt)
        request = Request(prompt, on_frame)
        request.future.set_running_or_notify_cancel()  # from here on only the engine ends it
        with self._changed:
            if self._closing or self.error is not None:
                raise EngineStopped(f"the engine has stopped: {self.error or 'shutting down'}")
            if len(self._waiting) >= self.max_waiting:
                raise EngineBusy(f"{len(self._waiting)} requests are waiting, accepted: {self.max_waiting}")
            self._waiting.append(request)
            self._changed.notify()
        return request

    @property
    def healthy(self) -> bool:
        return self.error is None and self._thread.is_alive()

    def stats(self) -> EngineStats:
        """A copy of the counters."""
        with self._changed:
            running = sum(request is not None for request in self._slots)
            numbers = {name: getattr(self._stats, name) for name in EngineStats.__slots__}
        return EngineStats(**{**numbers, "waiting": len(self._waiting), "running": running})

    def close(self, *, timeout: float | None = None) -> None:
        """Finish the running clips, refuse the waiting ones, end the thread; after `timeout` s, cancel instead."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            for request in list(self._slots):
                if request is not None:
                    request.cancel()
            self._thread.join()

    # ---- the engine's thread ----

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._drop_cancelled()
                self._admit()
                self._prefill_chunk()
                self._step()
        except BaseException as error:
            self.error = error
        finally:
            self._refuse_everyone()

    def _wait_for_work(self) -> bool:
        """False when the engine is to end."""
        with self._changed:
            while not self._waiting and not any(self._slots):
                if self._closing:
                    return False
                self._changed.wait()
            return not (self._closing and not any(self._slots))

    def _drop_cancelled(self) -> None:
        for slot, request in enumerate(self._slots):
            if request is not None and request.cancelled:
                self._free(slot)
                self._answer(request, GenerationCancelled("the request was cancelled"))
        with self._changed:
            dropped = [request for request in self._waiting if request.cancelled]
            self._waiting = deque(request for request in self._waiting if not request.cancelled)
        for request in dropped:
            self._answer(request, GenerationCancelled("the request was cancelled while it waited"))

    def _admit(self) -> None:
        for slot, occupant in enumerate(self._slots):
            with self._changed:
                if occupant is not None or self._closing or not self._waiting:
                    continue
                request = self._slots[slot] = self._waiting.popleft()
            request.prefill = self.decoder.prefill(slot, request.prompt)

    def _prefill_chunk(self) -> None:
        """One chunk of the first slot that has some left. A prompt that fails takes nobody along."""
        for slot, request in enumerate(self._slots):
            if request is None or request.prefill is None:
                continue
            try:
                next(request.prefill)
            except StopIteration:
                request.prefill = None
                request.frames = self._frames(self.decoder.read_known()[slot])
            except Exception as error:
                self._free(slot)
                self._answer(request, error)
            return

    def _step(self) -> None:
        decoding = {s: r for s, r in enumerate(self._slots) if r is not None and r.prefill is None}
        if not decoding:
            return
        before = self.decoder.read_known()
        window, started = self.policy.window, time.perf_counter()
        self.decoder.step(window, length=self.decoder.length_for(max(before[slot] for slot in decoding), window))
        after = self.decoder.read_known()
        seconds = time.perf_counter() - started
        accepted = [after[slot] - before[slot] for slot in decoding]
        self.policy.observe(window, sum(accepted) / len(accepted), seconds)
        stats = self._stats
        stats.tokens, stats.slot_steps = stats.tokens + sum(accepted), stats.slot_steps + len(decoding)
        stats.steps, stats.step_seconds = stats.steps + 1, stats.step_seconds + seconds
        for slot, request in decoding.items():
            try:
                self._report(slot, request, after[slot])
            except Exception as error:  # of the request's own callback
                self._free(slot)
                self._answer(request, error)

    def _report(self, slot: int, request: Request, known: int) -> None:
        total = self.decoder.config.latent_shape[0]
        frames = self._frames(known)
        if frames > request.frames and request.on_frame is not None:
            request.on_frame(frames, total)
        request.frames = frames
        if known == self.decoder.clip_length:
            tokens = self.decoder.tokens(slot)
            self._free(slot)
            self._answer(request, tokens)

    def _frames(self, known: int) -> int:
        config = self.decoder.config
        return (known - config.leading_tokens) // config.frame_tokens

    def _free(self, slot: int) -> None:
        self.decoder.release(slot)
        with self._changed:
            self._slots[slot] = None

    def _answer(self, request: Request, outcome: Tensor | BaseException) -> None:
        with self._changed:
            if isinstance(outcome, GenerationCancelled):
                self._stats.cancelled += 1
            elif isinstance(outcome, BaseException):
                self._stats.failed += 1
            else:
                self._stats.finished += 1
        if isinstance(outcome, BaseException):
            request.future.set_exception(outcome)
        else:
            request.future.set_result(outcome)

    def _refuse_everyone(self) -> None:
        with self._changed:
            self._closing = True
            requests = [request for request in self._slots if request is not None] + list(self._waiting)
            self._slots = [None] * len(self._slots)
            self._waiting.clear()
        for request in requests:
            self._answer(request, EngineStopped(f"the engine has stopped: {self.error or 'shutting down'}"))
