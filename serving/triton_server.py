"""One tritonserver process with its stages' processes: start, observe, stop, and remove all that it leaves."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cosmos_triton.runtime.processes import ProcessStatus, process_status
from cosmos_triton.serving.claim import Claim
from cosmos_triton.serving.log_output import log_output
from cosmos_triton.serving.observation import StageProcess
from cosmos_triton.serving.private_sockets import PrivateSockets
from cosmos_triton.serving.processes import die_with_parent
from cosmos_triton.serving.repository_api import RepositoryApi
from cosmos_triton.serving.run_directory import RunFolders
from cosmos_triton.serving.server_binary import ServerBinary
from cosmos_triton.serving.server_log import ServerLog
from cosmos_triton.serving.server_machine import LOAD_THREADS
from cosmos_triton.serving.stage_processes import StageProcesses
from cosmos_triton.serving.stop_signals import StopSignals

EXIT_SECONDS = 1  # timeout to exit when no model is left
KILL_SECONDS = 5  # timeout for killed processes to disappear
POLL_SECONDS = 0.1
# torch's allocator: segments that grow by pages have little fragmentation.
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


class TritonServer:
    """The server of one folder of models.

    The server, its stages and what they start carry the claim, so `kill` can remove all of it in any state.

    Args:
        folders: below a path of characters that a shell leaves as they are: the server has one start the stages.
        sockets: what it listens on.
    """

    def __init__(
        self,
        binary: ServerBinary,
        folders: RunFolders,
        *,
        claim: Claim,
        sockets: PrivateSockets,
        has_gpu: bool,
        options: Iterable[str] = (),
    ) -> None:
        self.api = RepositoryApi(sockets.http)
        self._claim, self._folders, self._sockets = claim, folders, sockets
        self._has_gpu = has_gpu
        self._environment = ALLOCATOR | binary.environment(folders.libraries) | claim.server_environment
        self._stages = StageProcesses(folders.models, claim.heartbeats)
        self._command = [
            str(binary.executable),
            f"--model-repository={folders.models}",
            f"--backend-directory={binary.backends}",
            f"--cache-directory={binary.caches}",
            # Every configuration is complete; auto-completion would start each stage twice.
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            "--load-model=*",
            f"--model-load-thread-count={LOAD_THREADS}",
            "--strict-readiness=true",
            f"--exit-timeout-secs={EXIT_SECONDS}",
            *sockets.options(),
            f"--backend-config=python,shm-region-prefix-name={claim.prefix}",
            # A dozen interpreters that start at once from a cold disk take long.
            "--backend-config=python,stub-timeout-seconds=120",
            "--log-format=ISO8601",
            # Stages exchange tensors in shared memory: the server's own memory pools are not used.
            "--pinned-memory-pool-byte-size=0",
            *(["--cuda-memory-pool-byte-size=0:0"] if has_gpu else ["--allow-gpu-metrics=false"]),
            *options,
        ]
        self._protected: set[Path] = set()  # regions that are closed to other users
        self._process: subprocess.Popen[str] | None = None
        self.log: ServerLog | None = None

    @property
    def exit_code(self) -> int | None:
        """The exit code of a server that has ended; negative for a signal."""
        return self._process.poll() if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def status(self) -> ProcessStatus | None:
        """Of the server's process; None where there is none."""
        return process_status(self._process.pid) if self._process and self.is_running else None

    def stages(self) -> dict[str, tuple[StageProcess, ...]]:
        """The living processes of each model."""
        self._protect_regions()
        return self._stages.scan(self._process.pid) if self._process else {}

    def _protect_regions(self) -> None:
        """Close the regions of shared memory to other users: the server makes them readable to all, whatever the
        umask. They are empty then.
        """
        regions = set(self._claim.regions())
        for region in regions - self._protected:
            with suppress(OSError):
                region.chmod(0o600)
        self._protected = regions

    def start(self) -> None:
        """Start the server, without waiting for it."""
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,  # Ctrl-C signals this process only, which then drains
            umask=0o077,
            preexec_fn=die_with_parent,
        )
        assert self._process.stdout
        self.log = ServerLog(self._process.stdout, log_output(), has_gpu=self._has_gpu)

    def stop(self, stop: StopSignals) -> None:
        """Ask the server to exit, for the sake of answers that it still sends, and kill it if it does not in time."""
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
        self._claim.clear()
        self._sockets.clear()
        self._folders.clear_jobs()
        if self.log:
            self.log.join(KILL_SECONDS)
        self._process = self.log = None
