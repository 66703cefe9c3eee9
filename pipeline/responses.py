"""Responses of a stage: one for each request, and errors that keep their code on the way through a pipeline.

The server drops an error's code where one model calls another. A message therefore starts with its code in brackets,
and the pipeline reads it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import triton_python_backend_utils as pb

from cosmos_triton.pipeline.errors import StageError
from cosmos_triton.runtime.errors import InvalidValue

FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def tagged(code: str, message: str) -> str:
    return f"[{code}] {message}"


def describe(error: BaseException) -> tuple[str, str]:
    """Code and message of what went wrong."""
    if isinstance(error, InvalidValue):
        return "INVALID_ARG", str(error)
    if isinstance(error, StageError):
        return error.code, str(error)
    return "INTERNAL", f"{type(error).__name__}: {error}"


def failure(stage: str, request_id: str, error: BaseException) -> Any:
    """The response for what went wrong, which the log is told as well."""
    code, message = describe(error)
    log = pb.Logger.log_error if code == "INTERNAL" else pb.Logger.log_info
    log(f"{stage} {request_id}: {tagged(code, message)}")
    return pb.InferenceResponse(error=pb.TritonError(tagged(code, message), getattr(pb.TritonError, code)))


def answer_each(stage: str, requests: Sequence[Any], work: Callable[[Any], list[Any]]) -> list[Any]:
    """One response for each request, whatever it holds: its neighbours must not suffer."""
    responses = []
    for request in requests:
        try:
            responses.append(pb.InferenceResponse(work(request)))
        except Exception as error:
            responses.append(failure(stage, request.request_id(), error))
    return responses
