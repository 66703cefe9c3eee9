"""One tritonserver process with its stages' processes: start, observe, stop, and remove all that it leaves."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from cosmos_triton.runtime.processes import is_alive
from cosmos_triton.serving.addresses import StartError
from cosmos_triton.serving.private_sockets import PrivateSockets
from cosmos_triton.serving.processes import arguments_of, children_of, die_with_parent, kill_group
from cosmos_triton.serving.repository_api import RepositoryApi
from cosmos_triton.serving.server_binary import ServerBinary
from cosmos_triton.serving.server_log import ServerLog
from cosmos_triton.serving.stop_signals import StopSignals

START_SECONDS = 1800  # timeout to load every stage
EXIT_SECONDS = 1  # timeout to exit when no model is left
KILL_SECONDS = 5  # timeout for killed processes to disappear
POLL_SECONDS = 0.1
SHARED_MEMORY = Path("/dev/shm")
# torch's allocator: segments that grow by pages have little fragmentation.
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


class TritonServer:
    """The server of one folder of models.

    The server and its Python stubs are one process group, and their shared memory has a unique prefix, so `kill` can
    remove all of it in any state.

    Args:
        jobs: where stages and pipeline exchange progress and cancellation.
        sockets: what it listens on.
        libraries: a folder for shared libraries that the stages load before the system's.
    """

    def __init__(
        self,
        binary: ServerBinary,
        models: Path,
        *,
        jobs: Path,
        libraries: Path,
        sockets: PrivateSockets,
        has_gpu: bool,
        options: Iterable[str] = (),
    ) -> None:
        self._models, self._jobs, self._sockets = models, jobs, sockets
        self.api = RepositoryApi(sockets.http)
        self._has_gpu = has_gpu
        self._environment = ALLOCATOR | binary.environment(libraries)
        self._shared_memory = f"cosmos_triton_{secrets.token_hex(8)}_"
        self._command = [
            str(binary.executable),
            f"--model-repository={models}",
            f"--backend-directory={binary.backends}",
            f"--cache-directory={binary.caches}",
            # Every configuration is complete; auto-completion would start each stage twice.
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            "--load-model=*",
            "--strict-readiness=true",
            f"--exit-timeout-secs={EXIT_SECONDS}",
            *sockets.options(),
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory}",
            # A dozen interpreters that start at once from a cold disk take long.
            "--backend-config=python,stub-timeout-seconds=120",
            "--log-format=ISO8601",
            # Stages exchange tensors in shared memory: the server's own memory pools are not used.
            "--pinned-memory-pool-byte-size=0",
            *(["--cuda-memory-pool-byte-size=0:0"] if has_gpu else ["--allow-gpu-metrics=false"]),
            *options,
        ]
        self._process: subprocess.Popen[str] | None = None
        self._log: ServerLog | None = None
        self._stubs: dict[int, str] = {}
        self._retired: set[int] = set()

    @property
    def exit_code(self) -> int | None:
        """The exit code of a server that has ended; negative for a signal."""
        return self._process.poll() if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, stop: StopSignals) -> None:
        """Start the server and return when it is ready.

        Raises:
            StartError: a model could not be loaded, or the server ended or was not ready in time. It has been killed.
        """
        try:
            self._start(stop)
        except BaseException:
            self.kill()
            raise

    def _start(self, stop: StopSignals) -> None:
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,  # Ctrl-C signals this process only, which then drains
            preexec_fn=die_with_parent,
        )
        assert self._process.stdout
        self._log = ServerLog(self._process.stdout, has_gpu=self._has_gpu)
        deadline = time.monotonic() + START_SECONDS
        while not self.api.is_ready():
            if self._log.failures or not self.is_running:
                raise StartError(self._cause_of_failure())
            if time.monotonic() > deadline:
                raise StartError(f"tritonserver: not ready after {START_SECONDS} seconds")
            stop.sleep(POLL_SECONDS)
        self.find_stubs()

    def _cause_of_failure(self) -> str:
        assert self._log
        if not self.is_running:
            self._log.join(KILL_SECONDS)
        if self._log.failures:
            return "; ".join(f"{model}: {cause}" for model, cause in self._log.failures.items())
        return f"tritonserver: {self._log.last_error or f'ended with code {self.exit_code}'}"

    def find_stubs(self) -> None:
        """Record the current processes of the stages. One that has died unnoticed stays in the record."""
        assert self._process
        known = {pid: model for pid, model in self._stubs.items() if pid not in self._retired}
        children = children_of(self._process.pid)
        self._retired.intersection_update(children)
        found = {pid: self._model_of(arguments_of(pid)) for pid in children if pid not in self._retired}
        self._stubs = known | {pid: model for pid, model in found.items() if model}

    def retire(self, model: str) -> None:
        """Stop observing the processes of `model`: they end when their requests have finished."""
        self._retired.update(pid for pid, name in self._stubs.items() if name == model)

    def _model_of(self, arguments: list[str]) -> str | None:
        """The model of a stub process, from the path of its model.py among the arguments."""
        paths = (Path(argument) for argument in arguments)
        return next((path.relative_to(self._models).parts[0] for path in paths if self._models in path.parents), None)

    def dead_models(self) -> set[str]:
        """Models with a process that has ended since `find_stubs`."""
        return {model for pid, model in self._stubs.items() if not is_alive(pid)}

    def stop(self, stop: StopSignals) -> None:
        """Ask a server without models to exit, and kill it if it does not in time."""
        if self._process and self.is_running:
            self._process.terminate()
            deadline = time.monotonic() + EXIT_SECONDS + 2  # the server counts in whole seconds
            while self.is_running and time.monotonic() < deadline:
                stop.sleep(POLL_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill every process of the server and remove its shared memory, its sockets and its jobs."""
        if self._process:
            self._process.kill()
            self._process.wait()
            kill_group(self._process.pid, seconds=KILL_SECONDS)
            if self._log:
                self._log.join(KILL_SECONDS)
            self._process = self._log = None
            self._stubs, self._retired = {}, set()
        for region in SHARED_MEMORY.glob(f"{self._shared_memory}*"):
            region.unlink(missing_ok=True)
        self._sockets.clear()
        for job in self._jobs.iterdir():
            job.unlink()
