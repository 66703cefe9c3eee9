"""Progress bars, on a terminal only, and warnings."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Never, Self

from tqdm import tqdm

from cosmos_triton.cli.messages import print_problem
from cosmos_triton.client.world_client import Event


class StageBars:
    """One progress bar per stage of a request, in the order in which the stages start. Call it with each event."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Never]] = {}

    def __call__(self, event: Event) -> None:
        if event.stage not in self._bars:
            self._bars[event.stage] = tqdm(
                desc=event.stage,
                total=event.total,
                initial=event.done,
                position=len(self._bars),
                bar_format="{desc:24} |{bar}| {n_fmt}/{total_fmt}, {remaining} left",
                disable=None,
            )
        bar = self._bars[event.stage]
        bar.update(event.done - bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for bar in self._bars.values():
            bar.close()


def print_warnings(*reports: dict[str, Any]) -> None:
    """Print the warnings in the server's reports, each once."""
    warnings = [warning for report in reports for warning in report.get("warnings", ())]
    for warning in dict.fromkeys(warnings):
        print_problem(f"warning: {warning}")
