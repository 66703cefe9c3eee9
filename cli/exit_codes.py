"""Exit codes of the command line, and how errors become one. No other room decides exit codes."""

from __future__ import annotations

from cosmos_triton.cli.messages import print_problem
from cosmos_triton.client.errors import GuardrailBlocked, InvalidInput, WorldError

FAILED = 1
INVALID = 2
BLOCKED = 3
INTERRUPTED = 130  # by Ctrl-C, as shells report it


def print_error(error: WorldError, *, about: object = None) -> int:
    """Print an error as one line on stderr, after the file that it is about; returns the exit code."""
    print_problem(error if about is None else f"{about}: {error}")
    match error:
        case InvalidInput():
            return INVALID
        case GuardrailBlocked():
            return BLOCKED
    return FAILED
