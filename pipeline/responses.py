"""Error responses: messages that `StageError.of` can parse."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb

from cosmos_triton.pipeline.errors import StageError
from cosmos_triton.runtime.errors import InvalidValue

FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def describe(error: BaseException) -> tuple[str, str]:
    """Code and message of an exception."""
    if isinstance(error, InvalidValue):
        return "INVALID_ARG", str(error)
    if isinstance(error, StageError):
        return error.code, str(error)
    return "INTERNAL", f"{type(error).__name__}: {error}"


def failure(model: str, whose: str, error: BaseException) -> Any:
    """The error response for an exception, which is also logged.

    Args:
        whose: what the log calls the request.
    """
    code, message = describe(error)
    text = f"[{code}] {message}"
    log = pb.Logger.log_error if code == "INTERNAL" else pb.Logger.log_info
    log(f"{model} {whose}: {text}")
    return pb.InferenceResponse(error=pb.TritonError(text, getattr(pb.TritonError, code)))
