"""A real server of a tiny deployment, and what tests ask of it."""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from cosmos_triton.client import Event, Generation, WorldClient
from cosmos_triton.pipeline.job_files import JOB
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from support import media_files as files
from support.server import Server

LOG_SECONDS = 10  # within which a line is in the log
PROMPT = "a tractor crosses the meadow"
CLIP = files.clip(files.numbered(12))
STILL = files.still(files.quadrants(), "png")
SERVE = (Path(sys.executable).with_name("cosmos-triton"), "serve")
STOP_SECONDS = 1.0  # within which a cancelled request leaves its stage
TRITON = {"grpc": tritonclient.grpc, "http": tritonclient.http}
DTYPES = {
    "visual_input": np.object_,
    "prompt": np.object_,
    "num_input_frames": np.int32,
    "temperature": np.float32,
    "top_p": np.float32,
    "seed": np.int64,
    "disable_diffusion_decoder": np.bool_,
}


class PipelineServer(Server):
    """`cosmos-triton serve` of a deployment; prompts are filled in where it needs one."""

    def __init__(
        self, deployment: str, checkpoints: Path, folder: Path, *, serve: Sequence[str | Path] = SERVE
    ) -> None:
        super().__init__([*serve, "--deployment", deployment, "--checkpoint-dir", checkpoints], folder)
        self.deployment = DEPLOYMENTS[deployment]

    @property
    def defaults(self) -> dict[str, Any]:
        return {"visual_input": CLIP} | ({"prompt": PROMPT} if self.deployment.is_video2world else {})

    def generate(
        self, protocol: str = "grpc", *, on_event: Callable[[Event], None] | None = None, **inputs: Any
    ) -> Generation:
        """As users do."""
        with WorldClient(self.url_of(protocol), protocol) as client:
            return client.generate(deadline=120, on_event=on_event, **self.defaults | inputs)

    @contextmanager
    def stream(self, **inputs: Any) -> Iterator[Iterator[Event | Generation]]:
        """Events, then the Generation; leaving the context early cancels the request."""
        with WorldClient(self.grpc_url) as client:
            updates = client.stream(deadline=120, **self.defaults | inputs)
            try:
                yield updates
            finally:
                updates.close()

    def infer(self, protocol: str, **inputs: Any) -> dict[str, Any]:
        """world_generation as any other Triton client calls it; an input that is None is left out."""
        given = {name: value for name, value in (self.defaults | inputs).items() if value is not None}
        arrays = {name: np.array([value], DTYPES[name]) for name, value in given.items()}
        return self.infer_model("world_generation", protocol, **arrays)

    def infer_stage(self, stage: str, **arrays: np.ndarray) -> dict[str, Any]:
        """A stage alone, for a job that lives that long."""
        with self.job() as job:
            return self.infer_model(stage, parameters={JOB: job}, **arrays)

    def infer_model(
        self, model: str, protocol: str = "grpc", *, parameters: dict[str, Any] | None = None, **arrays: np.ndarray
    ) -> dict[str, Any]:
        triton = TRITON[protocol]
        with triton.InferenceServerClient(self.url_of(protocol)) as client:
            inputs = [tensor(triton, name, values) for name, values in arrays.items()]
            result = client.infer(model, inputs, parameters=parameters)
            outputs = result.get_response(as_json=True) if protocol == "grpc" else result.get_response()
            return {output["name"]: result.as_numpy(output["name"]) for output in outputs["outputs"]}

    def log_with(self, *parts: str, since: int = 0) -> str:
        """The log from character `since` on, once it has every part: a process's lines may come after its answer."""
        deadline = time.monotonic() + LOG_SECONDS
        while missing := [part for part in parts if part not in self.log[since:]]:
            assert time.monotonic() < deadline, f"not in the log after {LOG_SECONDS} s: {missing}"
            time.sleep(0.02)
        return self.log[since:]

    def statistics(self, model: str) -> dict[str, Any]:
        return json.loads(self.request(f"models/{model}/stats").body)["model_stats"][0]

    def runs(self, model: str) -> int:
        """How many requests the server has handed to a model."""
        return int(self.statistics(model)["inference_count"])

    def busy_seconds(self, model: str) -> float:
        """How long a model's processes have been at work, counting a batch once."""
        batches = self.statistics(model)["batch_stats"]
        return sum(int(batch["compute_infer"]["ns"]) for batch in batches) / 1e9

    def largest_batch(self, model: str) -> int:
        return max((int(batch["batch_size"]) for batch in self.statistics(model)["batch_stats"]), default=0)

    def metric(self, name: str) -> float:
        return self.metrics()[name]

    def metrics(self) -> dict[str, float]:
        """By name, with labels in braces where there are any."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics") as page:
            lines = page.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}

    def blocks(self, guardrail: str, category: str) -> float:
        """How many requests the metrics count."""
        return self.counted("cosmos_guardrail_blocks", guardrail=guardrail, category=category)

    def counted(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels, one a process."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        found = {key: value for key, value in self.metrics().items() if key.startswith(f"{name}{{")}
        return sum(value for key, value in found.items() if all(label in key for label in wanted))


def tensor(triton: Any, name: str, values: np.ndarray) -> Any:
    types = {"object": "BYTES", "float32": "FP32", "bool": "BOOL"}
    type = types.get(values.dtype.name, values.dtype.name.upper())
    held = triton.InferInput(name, values.shape, type)
    held.set_data_from_numpy(values)
    return held


def follow(updates: Iterator[Event | Generation], stage: str) -> Event:
    """Up to a stage's first news from its midst."""
    for update in updates:
        assert isinstance(update, Event), f"{stage} has ended too early"
        if update.stage == stage and 0 < update.done < update.total:
            return update
    raise AssertionError(f"{stage} has not begun")


def cancellations(server: PipelineServer, model: str) -> int:
    """How often the log says that a model gave a request up."""
    return sum(f'"{model} ' in line and "the request was cancelled" in line for line in server.log.splitlines())
