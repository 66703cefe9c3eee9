"""The log of a running tritonserver: filtered, copied to standard error, and parsed for loads and failures."""

from __future__ import annotations

import re
import threading
from typing import IO

from cosmos_triton.serving.log_output import LogOutput
from cosmos_triton.serving.repository_api import ModelState

# Harmless warnings of a server without a GPU.
WITHOUT_GPU = ("CudaDriverHelper has not been initialized", "inned memory pool", "CUDA memory pool disabled")
# Stages that are idle are ended with the server when it is told to exit.
EXPECTED = ("Exit timeout expired. Exiting immediately",)
# Of each connection to a socket that is a file.
WITHOUT_TCP = "NODELAY NOT SUPPORTED"
# Start-up tables, 200 columns wide; other lines have the same content.
TABLE = re.compile(r"^(\+-|\|)|\] $")
LOADING = re.compile(r'"loading: ([^:"]+):\d+"')
LOADED = re.compile(r"successfully loaded '([^']+)'")
FAILURE = re.compile(r"(?:failed to load|Poll failed for model directory) '([^']+)'(?: version \d+)?: (.+)")
ERROR = re.compile(r"Z E |^E\d|^error: ")


class ServerLog:
    """Reads `stream` on a thread until it ends. Whatever becomes of the output, it goes on reading: a server whose log
    nobody reads stops when the pipe is full.

    states: LOADING or READY, of each model whose load has begun.
    failures: causes of failed loads, by model.
    last_error: the last line of level error.
    """

    def __init__(self, stream: IO[str], output: LogOutput, *, has_gpu: bool) -> None:
        self.states: dict[str, ModelState] = {}
        self.failures: dict[str, str] = {}
        self.last_error = ""
        self._output = output
        self._has_gpu = has_gpu
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the rest of the log after the server has ended."""
        self._thread.join(seconds)

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            if self._is_noise(line):
                continue
            self._output.write(line)
            for pattern, state in ((LOADING, "LOADING"), (LOADED, "READY")):
                if model := pattern.search(line):
                    self.states[model[1]] = ModelState(state)
            if failure := FAILURE.search(line):
                self.failures.setdefault(failure[1], _first_sentence(failure[2]))
            if ERROR.search(line):
                self.last_error = _first_sentence(re.sub(r"^.*?\] |^error: ", "", line.strip()))

    def _is_noise(self, line: str) -> bool:
        if not line.strip() or TABLE.search(line.rstrip("\n")) or WITHOUT_TCP in line:
            return True
        return any(text in line for text in (EXPECTED if self._has_gpu else EXPECTED + WITHOUT_GPU))


def _first_sentence(text: str) -> str:
    r"""The part of an escaped message before its traceback, without the server's prefix."""
    text = text.partition(r"\n")[0].strip().strip('"').replace(r"\"", '"')
    return text.removeprefix("Internal: ")
