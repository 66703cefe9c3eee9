"""Continuous batching of the autoregressive transformer: many requests, one KV cache, one thread.

The thread repeats one scheduling round: free the slots of cancelled sequences, admit queued sequences to free slots
(first come, first served), run one prefill chunk, run one decode step for all running sequences, publish what is
finished. So a long prefill delays running sequences by one chunk per step, not by its whole length.

Any thread may submit and cancel. Every accepted sequence ends exactly once, through its future, also if the
thread dies.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cosmos_triton.runtime.ar.decoder import ARRequest, Decoder

OnFrame = Callable[[int, int], None]


class QueueFull(Exception):
    """The request queue is full."""


class EngineStopped(Exception):
    """The engine is shutting down, or its thread has died."""


class GenerationCancelled(Exception):
    """The sequence was cancelled."""


@dataclass(eq=False, slots=True)
class Sequence:
    """A submitted request and its state. `future` ends as tokens [T, h, w] int64 on the CPU, or as an exception."""

    request: ARRequest
    on_frame: OnFrame | None
    future: Future[Tensor] = field(default_factory=Future)
    cancelled: bool = False
    frames: int = 0  # finished latent frames
    admitted: float | None = None  # `time.monotonic()` when it was given a slot
    prefill: Iterator[None] | None = None  # remaining prefill chunks; None before admission and while decoding

    def cancel(self) -> None:
        """Stop within one step and free the slot; the future ends as GenerationCancelled."""
        self.cancelled = True


@dataclass(slots=True)
class EngineStats:
    """Gauges (waiting, running) and counters since the start."""

    waiting: int = 0  # in the request queue
    running: int = 0  # in a slot
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    tokens: int = 0  # generated
    slot_steps: int = 0  # decode steps, summed over the slots that took part
    steps: int = 0
    step_seconds: float = 0.0

    @property
    def accepted_per_forward(self) -> float:
        """Mean tokens that one forward adds to a sequence; 1 without speculation."""
        return self.tokens / max(self.slot_steps, 1)


class AREngine:
    """The scheduler thread and its request queue.

    Args:
        max_queue_size: sequences that may wait for a slot.
    """

    def __init__(self, decoder: Decoder, *, max_queue_size: int = 64) -> None:
        self.decoder = decoder
        self.max_queue_size = max_queue_size
        self.error: BaseException | None = None
        self._slots: list[Sequence | None] = [None] * decoder.slots
        self._queue: deque[Sequence] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._stats = EngineStats()
        self._thread = threading.Thread(target=self._run, name="ar-engine", daemon=True)
        self._thread.start()

    def submit(self, request: ARRequest, *, on_frame: OnFrame | None = None) -> Sequence:
        """Queue a clip.

        Args:
            on_frame: called from the engine's thread with (finished latent frames, all latent frames). Must not block.

        Raises:
            QueueFull: the request queue is full; try again later.
            EngineStopped: the engine accepts no more requests.
            ValueError: the request does not fit the model.
        """
        self.decoder.validate(request)
        sequence = Sequence(request, on_frame)
        sequence.future.set_running_or_notify_cancel()  # from here on Future.cancel has no effect
        with self._changed:
            if self._closing or self.error is not None:
                raise self._stopped()
            if len(self._queue) >= self.max_queue_size:
                raise QueueFull(
                    f"request queue: {len(self._queue)} requests are waiting, accepted: {self.max_queue_size}"
                )
            self._queue.append(sequence)
            self._changed.notify()
        return sequence

    @property
    def healthy(self) -> bool:
        return self.error is None and self._thread.is_alive()

    def stats(self) -> EngineStats:
        """A snapshot."""
        with self._changed:
            running = sum(sequence is not None for sequence in self._slots)
            return replace(self._stats, waiting=len(self._queue), running=running)

    def close(self, *, timeout: float | None = None) -> None:
        """Finish the running sequences, fail the queued ones, end the thread; after `timeout` seconds, cancel."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            for sequence in list(self._slots):
                if sequence is not None:
                    sequence.cancel()
            self._thread.join()

    def _stopped(self) -> EngineStopped:
        return EngineStopped(f"the engine has stopped: {self.error or 'shutting down'}")

    # ---- engine thread ----

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._remove_cancelled()
                self._admit()
                self._prefill_chunk()
                self._decode_step()
        except BaseException as error:
            self.error = error
        finally:
            self._fail_all()

    def _wait_for_work(self) -> bool:
        """False if the thread is to end."""
        with self._changed:
            while not self._queue and not any(self._slots):
                if self._closing:
                    return False
                self._changed.wait()
            return not (self._closing and not any(self._slots))

    def _remove_cancelled(self) -> None:
        for slot, sequence in enumerate(self._slots):
            if sequence is not None and sequence.cancelled:
                self._end(slot, sequence, GenerationCancelled("the request was cancelled"))
        with self._changed:
            cancelled = [sequence for sequence in self._queue if sequence.cancelled]
            self._queue = deque(sequence for sequence in self._queue if not sequence.cancelled)
        for sequence in cancelled:
            self._resolve(sequence, GenerationCancelled("the request was cancelled while it waited"))

    def _admit(self) -> None:
        for slot, occupant in enumerate(self._slots):
            with self._changed:
                if occupant is not None or self._closing or not self._queue:
                    continue
                sequence = self._slots[slot] = self._queue.popleft()
            sequence.admitted = time.monotonic()
            sequence.prefill = self.decoder.prefill(slot, sequence.request)

    def _prefill_chunk(self) -> None:
        """Run one chunk of the first slot in prefill. An error ends that sequence alone."""
        for slot, sequence in enumerate(self._slots):
            if sequence is None or sequence.prefill is None:
                continue
            try:
                next(sequence.prefill)
            except StopIteration:
                sequence.prefill = None
                sequence.frames = self._finished_frames(self.decoder.read_num_tokens()[slot])
            except Exception as error:
                self._end(slot, sequence, error)
            return

    def _decode_step(self) -> None:
        decoding = {
            slot: sequence
            for slot, sequence in enumerate(self._slots)
            if sequence is not None and sequence.prefill is None
        }
        if not decoding:
            return
        before, started = self.decoder.read_num_tokens(), time.perf_counter()
        self.decoder.step(kv_len=self.decoder.kv_len_for(max(before[slot] for slot in decoding)))
        after, stats = self.decoder.read_num_tokens(), self._stats
        stats.step_seconds += time.perf_counter() - started
        stats.steps += 1
        stats.slot_steps += len(decoding)
        stats.tokens += sum(after[slot] - before[slot] for slot in decoding)
        for slot, sequence in decoding.items():
            try:
                self._publish(slot, sequence, after[slot])
            except Exception as error:  # raised by the sequence's on_frame
                self._end(slot, sequence, error)

    def _publish(self, slot: int, sequence: Sequence, num_tokens: int) -> None:
        """Report newly finished latent frames, and end the sequence if it is complete."""
        frames = self._finished_frames(num_tokens)
        if frames > sequence.frames and sequence.on_frame is not None:
            sequence.on_frame(frames, self.decoder.config.latent_shape[0])
        sequence.frames = frames
        if num_tokens == self.decoder.clip_length:
            self._end(slot, sequence, self.decoder.tokens(slot))

    def _finished_frames(self, num_tokens: int) -> int:
        config = self.decoder.config
        return (num_tokens - config.leading_tokens) // config.frame_tokens

    def _end(self, slot: int, sequence: Sequence, outcome: Tensor | BaseException) -> None:
        """Free the slot, then resolve the future."""
        self.decoder.release(slot)
        with self._changed:
            self._slots[slot] = None
        self._resolve(sequence, outcome)

    def _resolve(self, sequence: Sequence, outcome: Tensor | BaseException) -> None:
        with self._changed:
            if isinstance(outcome, GenerationCancelled):
                self._stats.cancelled += 1
            elif isinstance(outcome, BaseException):
                self._stats.failed += 1
            else:
                self._stats.finished += 1
        if isinstance(outcome, BaseException):
            sequence.future.set_exception(outcome)
        else:
            sequence.future.set_result(outcome)

    def _fail_all(self) -> None:
        with self._changed:
            self._closing = True
            sequences = [sequence for sequence in self._slots if sequence is not None] + list(self._queue)
            self._slots = [None] * len(self._slots)
            self._queue.clear()
        for sequence in sequences:
            self._resolve(sequence, self._stopped())
