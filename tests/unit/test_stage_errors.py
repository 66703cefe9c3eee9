"""Which code and message an error of a stage has for the client."""

from __future__ import annotations

import pytest

from cosmos_triton.pipeline.errors import StageError


@pytest.mark.parametrize(
    ("message", "code", "told"),
    [
        ("[INVALID_ARG] seed: value -1; accepted: 0 or more", "INVALID_ARG", "seed: value -1; accepted: 0 or more"),
        ("Failed to process: [UNAVAILABLE] no free slot", "UNAVAILABLE", "ar_sampler: no free slot"),
        ("[CANCELLED] the request was cancelled", "CANCELLED", "ar_sampler: the request was cancelled"),
        ("Exceeds maximum queue size", "UNAVAILABLE", "ar_sampler: Exceeds maximum queue size"),
        (
            "Request for unknown model: 'x' is not found",
            "UNAVAILABLE",
            "ar_sampler: Request for unknown model: 'x' is not found",
        ),
        ("Stub process 'ar_sampler_0_0' is not healthy.", "INTERNAL", "ar_sampler: its process died"),
        ("\nboom\n  File ...", "INTERNAL", "ar_sampler: boom"),
    ],
)
def test_an_error_keeps_its_code_and_names_its_stage(message: str, code: str, told: str) -> None:
    error = StageError.of("ar_sampler", message)
    assert (error.code, str(error)) == (code, told)
