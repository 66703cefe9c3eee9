"""Removes what a server leaves when its `serve` is killed: `python -m cosmos_triton.serving.reaper CLAIM`.

Standard input is a pipe that `serve` holds open. It ends with `serve`, for whatever reason that ends; then all
processes of the claim are killed and its shared memory is removed. This needs nothing of those processes: some of them
may be stopped, or compute in native code.
"""

from __future__ import annotations

import signal
import sys

from cosmos_triton.serving.claim import Claim
from cosmos_triton.serving.stop_signals import SIGNALS


def main(name: str) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # they are for `serve`, which ends when it has drained
    sys.stdin.buffer.read()
    Claim(name).remove()


if __name__ == "__main__":
    main(sys.argv[1])
