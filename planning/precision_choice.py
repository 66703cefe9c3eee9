"""The precision that a stage is to have: options STAGE=PRECISION of the command line."""

from __future__ import annotations

from collections.abc import Sequence

from cosmos_triton.runtime.errors import InvalidValue
from cosmos_triton.runtime.stages import PRECISIONS, Precision


def parse_precisions(choices: Sequence[str]) -> dict[str, Precision]:
    """By stage.

    Raises:
        InvalidValue: an option has another form, or names no stage or precision.
    """
    precisions: dict[str, Precision] = {}
    for choice in choices:
        stage, _, wanted = choice.partition("=")
        if stage not in PRECISIONS:
            stages = ", ".join(PRECISIONS)
            raise InvalidValue("--precision", choice, f"STAGE=PRECISION with STAGE of {stages}")
        found = next((precision for precision in PRECISIONS[stage] if precision == wanted), None)
        if found is None:
            accepted = f"{stage}=PRECISION with PRECISION of {', '.join(PRECISIONS[stage])}"
            raise InvalidValue("--precision", choice, accepted)
        precisions[stage] = found
    return precisions
