"""The stage ar_sampler: input tokens -> the tokens of the whole clip, through one engine for all requests.

With resident weights a clip takes two requests of the same job: one with inputs, answered as soon as the clip is
queued, and, once the job's progress is complete, one without inputs, answered with the tokens. So no response is
outstanding for long, and the engine batches continuously. The server's queue and statistics do not see this work: the
engine has a request queue and metrics of its own.

With offloaded weights the first request is answered with the tokens: an execution has the memory that the server's rate
limiter grants it until it returns, and no longer.
"""

import os
import threading
import time
from contextlib import suppress

import numpy as np
import torch
import triton_python_backend_utils as pb

from cosmos_triton.pipeline.ar_metrics import ARMetrics
from cosmos_triton.pipeline.errors import Cancelled, StageError
from cosmos_triton.pipeline.job_files import label
from cosmos_triton.pipeline.settings import Settings
from cosmos_triton.pipeline.stage import Stage, StageCall
from cosmos_triton.pipeline.tensors import array
from cosmos_triton.runtime.ar.decoder import ARRequest
from cosmos_triton.runtime.ar.engine import AREngine, EngineStopped, GenerationCancelled, QueueFull
from cosmos_triton.runtime.heartbeat import at_work, start_heartbeat

CODES = {QueueFull: "UNAVAILABLE", EngineStopped: "UNAVAILABLE", GenerationCancelled: "CANCELLED"}
NAME = "ar_sampler"
POLL_SECONDS = 0.05
METRICS_SECONDS = 0.25  # between two looks at the engine's statistics


class TritonPythonModel:
    def initialize(self, args):
        start_heartbeat()
        settings = Settings.for_networks(args)
        self.stage = Stage(settings)
        self.placement = settings.placement()
        parameters = settings.parameters
        decoder = settings.loader(self.placement).ar_decoder(parameters.slots, parameters.window)
        settings.warm_up(self.placement, decoder.warm_up)
        self.engine = AREngine(decoder, max_queue_size=parameters.max_queue_size)
        self.latent_frames, self.takes_context = decoder.config.latent_shape[0], decoder.config.is_video2world
        self.jobs = settings.jobs
        self.clips = {}  # by job, until their tokens are collected: sequence, and times of the call that submitted it
        self.metrics = ARMetrics()
        self.stopping = threading.Event()
        self.monitor = threading.Thread(target=self.monitor_engine, name="ar-monitor", daemon=True)
        self.monitor.start()

    @at_work
    def execute(self, requests):
        return self.stage.answer_each(requests, self.answer)

    def answer(self, call):
        try:
            if not call.inputs:
                return self.collect(call)
            if self.placement.is_resident:
                self.submit(call)
                call.is_counted = False  # but when the clip ends
                return []
            with self.placement.on_device():
                self.submit(call)
                return self.collect(call)
        except tuple(CODES) as error:
            raise StageError(CODES[type(error)], str(error)) from error

    def submit(self, call):
        job, tokens = call.job, array(call.inputs, "tokens")
        context = array(call.inputs, "context") if self.takes_context else None
        seed, temperature, top_p = (array(call.inputs, name).item() for name in ("seed", "temperature", "top_p"))
        ar_request = ARRequest(
            torch.from_numpy(tokens).long().flatten(),
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            context=None if context is None else torch.from_numpy(context.copy()),
        )
        total = self.latent_frames

        def report(frames):
            with suppress(Cancelled):  # the monitor cancels the sequence
                self.jobs.report(job, NAME, frames, total)

        def on_frame(frames, _):
            if frames < total:  # complete is reported once the tokens can be collected
                report(frames)

        report(len(tokens))
        sequence = self.engine.submit(ar_request, on_frame=on_frame)
        self.clips[job] = sequence, call.began, call.waited
        sequence.future.add_done_callback(lambda _: report(total))

    def collect(self, call):
        if call.job not in self.clips:
            if not self.jobs.is_wanted(call.job):
                raise Cancelled
            raise StageError("INTERNAL", "ar_sampler was reloaded and has lost the clip")
        clip = self.clips[call.job]
        try:
            return [pb.Tensor("tokens", clip[0].future.result().numpy().astype(np.int32))]
        finally:
            self.clips.pop(call.job, None)
            measure(call, *clip)

    def monitor_engine(self):
        """Cancel the sequences of cancelled jobs, update the metrics, and end the process if the engine has died."""
        updated = 0.0
        while not self.stopping.wait(POLL_SECONDS):
            for job, (sequence, *times) in list(self.clips.items()):
                if not self.jobs.is_wanted(job):
                    sequence.cancel()
                    self.clips.pop(job, None)
                    if self.placement.is_resident:  # otherwise the call that waits for the clip is counted
                        self.stage.count(measure(StageCall(), sequence, *times), Cancelled().code)
                    pb.Logger.log_info(f"{NAME} {label(job)}: the request was cancelled")
            if time.monotonic() - updated > METRICS_SECONDS:
                self.metrics.update(self.engine.stats())
                updated = time.monotonic()
            if not self.engine.healthy:
                pb.Logger.log_error(f"{NAME}: the engine has died, this process exits: {self.engine.error!r}")
                time.sleep(1)  # for the responses to be sent
                os._exit(1)  # the server cannot see that a model is unhealthy

    def finalize(self):
        self.stopping.set()
        self.monitor.join()
        self.engine.close(timeout=60)


def measure(call, sequence, submitted, waited):
    """Let `call`, which ends a clip, count from the clip's admission to a slot on: what was before is waiting."""
    call.began = sequence.admitted or time.monotonic()
    call.waited = None if waited is None else waited + call.began - submitted
    return call
