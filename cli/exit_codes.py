"""What a shell hears of an error. Everything that is not here is 1."""

from __future__ import annotations

import sys

from cosmos_triton.client.errors import GuardrailBlocked, InvalidInput, WorldError

FAILED = 1
INVALID = 2
BLOCKED = 3


def complain(error: WorldError, *, about: object = None) -> int:
    """Print an error as one line, headed by the file that it is about; returns the exit code."""
    print(error if about is None else f"{about}: {error}", file=sys.stderr)
    match error:
        case InvalidInput():
            return INVALID
        case GuardrailBlocked():
            return BLOCKED
    return FAILED
