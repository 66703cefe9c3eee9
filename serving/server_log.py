"""The log of a running tritonserver: passed on to standard error, less what says nothing, and read for failures."""

from __future__ import annotations

import re
import sys
import threading
from typing import IO

# What a server without a GPU says at every start, and takes no harm from.
WITHOUT_GPU = ("CudaDriverHelper has not been initialized", "inned memory pool", "CUDA memory pool disabled")
# Start-up tables, 200 columns wide: what they hold of interest stands in other lines as well.
TABLE = re.compile(r"^(\+-|\|)|\] $")
FAILURE = re.compile(r"(?:failed to load|Poll failed for model directory) '([^']+)'(?: version \d+)?: (.+)")


class ServerLog:
    """Reads `stream` on a thread of its own until it ends.

    failures: why models failed to load, by model.
    last_error: the last line that was logged as an error.
    """

    def __init__(self, stream: IO[str], *, has_gpu: bool) -> None:
        self.failures: dict[str, str] = {}
        self.last_error = ""
        self._has_gpu = has_gpu
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for the rest of the log of a server that has ended."""
        self._thread.join(seconds)

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            if self._is_noise(line):
                continue
            sys.stderr.write(line)
            sys.stderr.flush()
            if failure := FAILURE.search(line):
                self.failures.setdefault(failure[1], _first_sentence(failure[2]))
            if re.search(r"Z E |^E\d|^error: ", line):
                self.last_error = _first_sentence(re.sub(r"^.*?\] |^error: ", "", line.strip()))

    def _is_noise(self, line: str) -> bool:
        if not line.strip() or TABLE.search(line.rstrip("\n")):
            return True
        return not self._has_gpu and any(text in line for text in WITHOUT_GPU)


def _first_sentence(text: str) -> str:
    r"""Of an escaped message: what stands before its traceback, without the server's own prefix."""
    text = text.partition(r"\n")[0].strip().strip('"').replace(r"\"", '"')
    return text.removeprefix("Internal: ")
