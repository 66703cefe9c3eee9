"""A batch: several requests in flight, every line tried, and what is already there is not done again.

Line N of the batch file, counted from 0, becomes `N.mp4`; `results.jsonl` beside the videos says what became of each.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from cosmos_triton.cli.batch_file import BatchLine
from cosmos_triton.cli.batch_results import Result, read_results, write_results
from cosmos_triton.cli.exit_codes import BLOCKED, FAILED
from cosmos_triton.cli.files import write_whole
from cosmos_triton.cli.progress import print_warnings
from cosmos_triton.client.errors import GuardrailBlocked, ServerBusy, ServerUnreachable, WorldError
from cosmos_triton.client.tensors import Parameters
from cosmos_triton.client.world_client import Generation, WorldClient

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds between two tries


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The lines of one batch file, and how to run them.

    path: of the batch file, for messages
    parameters: of every line; the prompt is the line's own
    folder: where the videos and the results go
    deployment: what the server runs; another deployment's videos are not taken for this one's
    concurrency: requests in flight
    patience: seconds for which a line goes on asking a server that is busy or away
    """

    path: Path
    lines: list[BatchLine]
    parameters: Parameters
    folder: Path
    deployment: str
    concurrency: int
    patience: float = 600.0
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self, client: WorldClient) -> int:
        """Try every line. Returns the exit code: of a failure, else of a blocked line, else 0."""
        earlier = read_results(self.folder)
        results = {line.index: earlier[line.index] for line in self.lines if line.index in earlier}
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            tries = [pool.submit(self._run_line, client, line, earlier.get(line.index)) for line in self.lines]
            for finished in tqdm(as_completed(tries), total=len(tries), unit="clip", disable=None):
                result = finished.result()
                results[result.index] = result
                write_results(self.folder, results)
                if result.error:
                    tqdm.write(f"{self.path}:{result.index + 1}: {result.error}", file=sys.stderr)
        except BaseException:
            self._stopping.set()
            client.close()  # cancels what is in flight
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return self._sum_up(
            [results[index] for index in sorted(results)],
            kept=sum(results.get(index) is earlier[index] for index in earlier),
        )

    def _run_line(self, client: WorldClient, line: BatchLine, earlier: Result | None) -> Result:
        result = Result(index=line.index, visual_input=line.visual_input, prompt=line.prompt, outcome="failed")
        if line.visual_input is None or line.problem is not None:
            return replace(result, error=line.problem)
        begun = time.monotonic()
        try:
            content = Path(line.visual_input).read_bytes()
            result = replace(result, fingerprint=self._fingerprint(content, line.prompt))
            if earlier and earlier.fingerprint == result.fingerprint and self._has_video(earlier):
                return earlier
            generation = self._generate(client, content, line.prompt)
            file = f"{line.index}.mp4"
            write_whole(self.folder / file, generation.video)
        except GuardrailBlocked as blocked:
            outcome = blocked.report["outcome"]
            result = replace(result, outcome=outcome, error=f"{line.visual_input}: {blocked}", report=blocked.report)
        except WorldError as error:
            result = replace(result, error=f"{line.visual_input}: {error}")
        except OSError as error:  # no such file; disk full
            result = replace(result, error=f"{error.filename}: {error.strerror}")
        else:
            result = replace(result, outcome=generation.outcome, file=file, report=generation.report)
        return replace(result, seconds=round(time.monotonic() - begun, 3))

    def _fingerprint(self, content: bytes, prompt: str | None) -> str:
        digest = hashlib.sha256(content).hexdigest()
        facts = {**self.parameters, "visual_input": digest, "prompt": prompt, "deployment": self.deployment}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _has_video(self, result: Result) -> bool:
        return result.file is not None and (self.folder / result.file).exists()

    def _generate(self, client: WorldClient, content: bytes, prompt: str | None) -> Generation:
        """Ask until there is an answer, with pauses that grow while the server is busy or away."""
        parameters: Parameters = {**self.parameters, "prompt": prompt}
        gives_up_at = time.monotonic() + self.patience
        pause = _FIRST_PAUSE
        while True:
            try:
                return client.generate(content, **parameters)
            except (ServerBusy, ServerUnreachable):
                delay = pause * random.uniform(0.5, 1.0)  # so that lines refused together do not come back together
                if time.monotonic() + delay > gives_up_at or self._stopping.wait(delay):
                    raise
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _sum_up(self, results: list[Result], *, kept: int) -> int:
        print_warnings(*(result.report for result in results if result.report))
        outcomes = Counter(result.outcome for result in results)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        print(f"{self.folder}: {counts or 'no lines'}" + (f" ({kept} of them by an earlier run)" if kept else ""))
        if outcomes["failed"]:
            return FAILED
        return 0 if outcomes["generated"] == len(results) else BLOCKED
