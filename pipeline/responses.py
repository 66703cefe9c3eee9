"""Responses of a stage: one for each request, and error messages that `StageError.of` can parse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def failure(stage: str, request_id: str, error: BaseException) -> Any:
    """The error response for an exception, which is also logged."""
    code, message = describe(error)
    text = f"[{code}] {message}"
    log = pb.Logger.log_error if code == "INTERNAL" else pb.Logger.log_info
    log(f"{stage} {request_id}: {text}")
    return pb.InferenceResponse(error=pb.TritonError(text, getattr(pb.TritonError, code)))


def answer_each(
    stage: str, requests: Sequence[Any], work: Callable[..., list[Any]], *others: Sequence[Any]
) -> list[Any]:
    """One response per request: the tensors that `work` returns. A request that raises gets an error of its own.

    Args:
        work: called with each request, and like `map` with the elements of `others`.
    """
    responses = []
    for request, *arguments in zip(requests, *others, strict=True):
        try:
            responses.append(pb.InferenceResponse(work(request, *arguments)))
        except Exception as error:
            responses.append(failure(stage, request.request_id(), error))
    return responses
