"""The stage ar_sampler: input tokens -> the tokens of the whole clip, through one engine for all requests.

A clip takes two requests: one with inputs, answered as soon as the engine has taken the job, and, when the job's
progress is complete, one without, answered with the tokens. So no answer is ever outstanding for long, and requests
join the running ones step by step. The server's own queue and statistics do not see the work: admission and metrics
are here.

Where the memory plan lets the weights in for one clip at a time, the first request is answered with the tokens: the
memory that the server's rate limiter gives an execution is its own until it ends, and no longer.
"""

import os
import threading
import time
from contextlib import suppress

import numpy as np
import torch
import triton_python_backend_utils as pb

from cosmos_triton.pipeline.errors import Cancelled, StageError
from cosmos_triton.pipeline.responses import answer_each
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.tensors import optional_array, scalar
from cosmos_triton.runtime.ar.decoder import Prompt
from cosmos_triton.runtime.ar.engine import AREngine, EngineBusy, EngineStopped, GenerationCancelled

CODES = {EngineBusy: "UNAVAILABLE", EngineStopped: "UNAVAILABLE", GenerationCancelled: "CANCELLED"}
NAME = "ar_sampler"
WATCH_SECONDS = 0.05


class TritonPythonModel:
    def initialize(self, args):
        settings = Settings.for_networks(args)
        self.placement = settings.placement()
        names = ("slots", "window", "max_waiting")
        slots, window, waiting = (int(settings.parameters[name]) for name in names)
        self.jobs = settings.jobs
        self.engine = AREngine(settings.stages(self.placement).ar_decoder(slots, window), max_waiting=waiting)
        self.generations = {}  # by job, until they are collected
        self.metrics = Metrics()
        self.stopping = threading.Event()
        self.watcher = threading.Thread(target=self.watch, name="ar-watcher", daemon=True)
        self.watcher.start()

    def execute(self, requests):
        return answer_each(NAME, requests, self.answer)

    def answer(self, request):
        job, tokens = self.jobs.of(request), optional_array(request, "tokens")
        try:
            if tokens is not None and self.placement.is_resident:
                self.submit(job, tokens, request)
                return []
            if tokens is not None:
                with self.placement.at_work():
                    self.submit(job, tokens, request)
                    return [pb.Tensor("tokens", self.collect(job))]
            return [pb.Tensor("tokens", self.collect(job))]
        except tuple(CODES) as error:
            raise StageError(CODES[type(error)], str(error)) from error

    def submit(self, job, tokens, request):
        context = optional_array(request, "context")
        prompt = Prompt(
            torch.from_numpy(tokens).long().flatten(),
            seed=scalar(request, "seed"),
            temperature=scalar(request, "temperature"),
            top_p=scalar(request, "top_p"),
            context=None if context is None else torch.from_numpy(context.copy()),
        )
        total = self.engine.decoder.config.latent_shape[0]

        def tell(done):
            with suppress(Cancelled):  # the watch sees to it
                self.jobs.report(job, NAME, done, total)

        def on_frame(done, _):
            if done < total:  # the last is told when the tokens can be collected
                tell(done)

        tell(len(tokens))
        self.generations[job] = generation = self.engine.submit(prompt, on_frame=on_frame)
        generation.future.add_done_callback(lambda _: tell(total))

    def collect(self, job):
        generation = self.generations.get(job)
        if generation is None:
            if not self.jobs.is_wanted(job):
                raise Cancelled
            raise StageError("INTERNAL", "ar_sampler was loaded anew, and has lost the clip")
        try:
            return generation.future.result().numpy().astype(np.int32)
        finally:
            self.generations.pop(job, None)

    def watch(self):
        """Pass cancellations to the engine, keep the metrics, and end the process if the engine has died."""
        while not self.stopping.wait(WATCH_SECONDS):
            for job, generation in list(self.generations.items()):
                if not self.jobs.is_wanted(job):
                    generation.cancel()
                    self.generations.pop(job, None)
                    pb.Logger.log_info(f"{NAME} {job}: the request was cancelled")
            self.metrics.update(self.engine.stats())
            if not self.engine.healthy:
                pb.Logger.log_error(f"ar_sampler: the engine has died, and this process with it: {self.engine.error!r}")
                time.sleep(1)  # for the answers to leave
                os._exit(1)  # the server has no other sign of a model that is not ready

    def finalize(self):
        self.stopping.set()
        self.watcher.join()
        self.engine.close(timeout=60)


class Metrics:
    """The engine's counters, on the server's metrics page."""

    GAUGES = ("waiting", "running")
    COUNTERS = ("finished", "cancelled", "failed", "tokens", "steps", "slot_steps", "step_seconds")

    def __init__(self):
        # The families must be kept: a metric whose family is gone cannot be written.
        self.families = {
            name: pb.MetricFamily(name=f"cosmos_ar_{name}", description=f"ar_sampler: {name}", kind=kind)
            for names, kind in ((self.GAUGES, pb.MetricFamily.GAUGE), (self.COUNTERS, pb.MetricFamily.COUNTER))
            for name in names
        }
        self.metrics = {name: family.Metric(labels={}) for name, family in self.families.items()}
        self.last = dict.fromkeys(self.COUNTERS, 0)

    def update(self, stats):
        for name in self.GAUGES:
            self.metrics[name].set(getattr(stats, name))
        for name in self.COUNTERS:
            value = getattr(stats, name)
            self.metrics[name].increment(value - self.last[name])
            self.last[name] = value
