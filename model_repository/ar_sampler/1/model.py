"""The stage ar_sampler: input tokens -> the tokens of the whole clip, through one engine for all requests.

`execute` hands a request to the engine and returns; the engine's thread answers when the clip is done. The server's own
queue, statistics and cancellation do not reach such a model: admission and metrics are here.
"""

import os
import threading
import time

import numpy as np
import torch
import triton_python_backend_utils as pb

from cosmos_triton.model_repository import glue
from cosmos_triton.runtime.ar_decoder import Prompt
from cosmos_triton.runtime.ar_engine import AREngine, EngineBusy, EngineStopped, GenerationCancelled
from cosmos_triton.runtime.stages import Stages

CODES = {EngineBusy: "UNAVAILABLE", EngineStopped: "UNAVAILABLE", GenerationCancelled: "CANCELLED"}
WATCH_SECONDS = 0.05


class TritonPythonModel:
    def initialize(self, args):
        settings = glue.Settings.for_networks(args)
        stages = Stages(settings.deployment, settings.checkpoint_dir, settings.device)
        slots, waiting = (int(settings.parameters[name]) for name in ("slots", "max_waiting"))
        self.jobs = settings.jobs
        self.engine = AREngine(stages.ar_decoder(slots), max_waiting=waiting)
        self.running = {}  # engine request -> job
        self.metrics = Metrics()
        self.stopping = threading.Event()
        self.watcher = threading.Thread(target=self.watch, name="ar-watcher", daemon=True)
        self.watcher.start()

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                self.submit(request, sender)
            except Exception as error:
                glue.fail_stream("ar_sampler", sender, request.request_id(), translated(error))

    def submit(self, request, sender):
        job = self.jobs.of(request)
        tokens, context = glue.array(request, "tokens"), glue.optional_array(request, "context")
        prompt = Prompt(
            torch.from_numpy(tokens).long().flatten(),
            seed=glue.scalar(request, "seed"),
            temperature=glue.scalar(request, "temperature"),
            top_p=glue.scalar(request, "top_p"),
            context=None if context is None else torch.from_numpy(context.copy()),
        )

        def on_frame(done, total):
            sender.send(pb.InferenceResponse([glue.json_tensor("event", {"done": done, "total": total})]))

        on_frame(len(tokens), self.engine.decoder.config.latent_shape[0])
        generation = self.engine.submit(prompt, on_frame=on_frame)
        self.running[generation] = job
        generation.future.add_done_callback(lambda _: self.finish(generation, job, sender))

    def finish(self, generation, job, sender):
        self.running.pop(generation, None)
        error = generation.future.exception()
        if error is not None:
            glue.fail_stream("ar_sampler", sender, job, translated(error))
            return
        tokens = pb.Tensor("tokens", generation.future.result().numpy().astype(np.int32))
        sender.send(pb.InferenceResponse([tokens]), flags=glue.FINAL)

    def watch(self):
        """Pass cancellations to the engine, keep the metrics, and end the process if the engine has died."""
        while not self.stopping.wait(WATCH_SECONDS):
            for generation, job in list(self.running.items()):
                if not self.jobs.is_wanted(job):
                    generation.cancel()
            self.metrics.update(self.engine.stats())
            if not self.engine.healthy:
                pb.Logger.log_error(f"ar_sampler: the engine has died, and this process with it: {self.engine.error!r}")
                time.sleep(1)  # for the answers to leave
                os._exit(1)  # the server has no other sign of a model that is not ready

    def finalize(self):
        self.stopping.set()
        self.watcher.join()
        self.engine.close(timeout=60)


def translated(error):
    code = CODES.get(type(error))
    return error if code is None else glue.StageError(code, str(error))


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
