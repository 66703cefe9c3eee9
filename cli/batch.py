"""Runs a batch file: several requests in flight, every line tried, finished lines of an earlier run skipped.

Line N of the batch file, counted from 0, becomes `N.mp4`. The outcome of every line is in `results.jsonl` beside it. A
line that fails leaves no `N.mp4`: the one of an earlier run is renamed to `N.earlier.mp4`.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from cosmos_triton.cli.batch_file import BatchLine
from cosmos_triton.cli.batch_lock import locked
from cosmos_triton.cli.batch_results import FILE, Result, read_results, video_name, write_results
from cosmos_triton.cli.exit_codes import BLOCKED, FAILED
from cosmos_triton.cli.files import TEXT_ROOM, VIDEO_ROOM, check_folder, check_output, save
from cosmos_triton.cli.messages import one_line
from cosmos_triton.cli.progress import print_warnings
from cosmos_triton.client.errors import GuardrailBlocked, ServerBusy, ServerUnreachable, WorldError
from cosmos_triton.client.tensors import Parameters
from cosmos_triton.client.world_client import Generation, WorldClient

FOLDER_FLAG = "--video_save_folder"
_MIN_BACKOFF, _MAX_BACKOFF = 1.0, 30.0  # seconds between two tries


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The lines of one batch file, and how to run them.

    path: the batch file, for messages
    parameters: parameters of every line, without the prompt
    folder: folder of the videos and the results
    deployment: the model that the server runs; a video of another one is generated again
    concurrency: requests in flight
    retry_seconds: how long a line is retried while the server is busy or unreachable
    """

    path: Path
    lines: list[BatchLine]
    parameters: Parameters
    folder: Path
    deployment: str
    concurrency: int
    retry_seconds: float = 600.0
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self, client: WorldClient) -> int:
        """Run every line.

        Returns:
            The exit code: FAILED if a line failed or the results could not be written, else BLOCKED if one was blocked,
            else 0.

        Raises:
            InvalidInput: the folder cannot be written, or another batch is writing to it; nothing was generated.
        """
        check_folder(FOLDER_FLAG, self.folder, room=VIDEO_ROOM)
        check_output(FOLDER_FLAG, self.folder / FILE, room=TEXT_ROOM)
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(FOLDER_FLAG, self.folder):
            return self._run_all(client)

    def _run_all(self, client: WorldClient) -> int:
        earlier = read_results(self.folder)
        results = {line.index: earlier[line.index] for line in self.lines if line.index in earlier}
        written = True
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            running = [
                pool.submit(self._run_line, client, line, earlier.get(line.index)) for line in self._checked_lines()
            ]
            for finished in tqdm(as_completed(running), total=len(running), unit="clip", disable=None):
                result = finished.result()
                results[result.index] = result
                if result.file is None:
                    self._set_aside(result.index)
                written = self._write(results, problem_is_known=not written)
                if result.error:
                    tqdm.write(one_line(f"{self.path}:{result.index + 1}: {result.error}"), file=sys.stderr)
        except BaseException:
            self._stopping.set()
            client.close()  # cancels what is in flight
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        skipped = sum(results.get(index) is result for index, result in earlier.items())
        code = self._summarize([results[index] for index in sorted(results)], skipped)
        return code if written else FAILED

    def _write(self, results: dict[int, Result], *, problem_is_known: bool) -> bool:
        """Write the results if possible. They are written again after each line, so a full disk ends no batch."""
        try:
            write_results(self.folder, results)
        except OSError as error:
            if not problem_is_known:
                problem = f"{FOLDER_FLAG}: value {error.filename!r}: {error.strerror}; the batch goes on"
                tqdm.write(one_line(problem), file=sys.stderr)
            return False
        return True

    def _set_aside(self, index: int) -> None:
        """Rename the video of an earlier run, which is not what this run was asked for."""
        video = self.folder / video_name(index)
        if video.is_file():
            with suppress(OSError):
                video.replace(video.with_suffix(".earlier.mp4"))

    def _run_line(self, client: WorldClient, line: BatchLine, earlier: Result | None) -> Result:
        result = Result(index=line.index, visual_input=line.visual_input, prompt=line.prompt, outcome="failed")
        if line.visual_input is None or line.problem is not None:
            return replace(result, error=line.problem)
        started = time.monotonic()
        video = self.folder / video_name(line.index)
        try:
            content = Path(line.visual_input).read_bytes()
            result = replace(result, fingerprint=self._fingerprint(content, line.prompt))
            if earlier and earlier.fingerprint == result.fingerprint and self._has_video(earlier):
                return earlier
            check_output(FOLDER_FLAG, video, room=VIDEO_ROOM)
            generation = self._generate(client, content, line.prompt)
        except GuardrailBlocked as blocked:
            outcome = blocked.report["outcome"]
            result = replace(result, outcome=outcome, error=f"{line.visual_input}: {blocked}", report=blocked.report)
        except WorldError as error:
            result = replace(result, error=f"{line.visual_input}: {error}")
        except OSError as error:  # the input cannot be read
            result = replace(result, error=f"{line.visual_input}: {error.strerror}")
        else:
            result = replace(result, report=generation.report)
            if problem := save(FOLDER_FLAG, video, generation.video):
                result = replace(result, error=problem)
            else:
                result = replace(result, outcome=generation.outcome, file=video.name)
        return replace(result, seconds=round(time.monotonic() - started, 3))

    def _checked_lines(self) -> list[BatchLine]:
        """The lines, with a problem where the batch would replace one of its own inputs, perhaps before it is read."""
        outputs = {os.path.realpath(self.folder / video_name(line.index)) for line in self.lines}
        return [
            replace(
                line, problem=f"visual_input: value {line.visual_input!r}; accepted: a file the batch does not write"
            )
            if line.visual_input is not None and os.path.realpath(line.visual_input) in outputs
            else line
            for line in self.lines
        ]

    def _fingerprint(self, content: bytes, prompt: str | None) -> str:
        """A hash of all that determines the video."""
        digest = hashlib.sha256(content).hexdigest()
        facts = {**self.parameters, "visual_input": digest, "prompt": prompt, "deployment": self.deployment}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _has_video(self, result: Result) -> bool:
        return result.file is not None and (self.folder / result.file).exists()

    def _generate(self, client: WorldClient, content: bytes, prompt: str | None) -> Generation:
        """Retry with exponential backoff while the server is busy or unreachable."""
        parameters: Parameters = {**self.parameters, "prompt": prompt}
        deadline = time.monotonic() + self.retry_seconds
        backoff = _MIN_BACKOFF
        while True:
            try:
                return client.generate(content, **parameters)
            except (ServerBusy, ServerUnreachable):
                delay = backoff * random.uniform(0.5, 1.0)  # jitter
                if time.monotonic() + delay > deadline or self._stopping.wait(delay):
                    raise
                backoff = min(2 * backoff, _MAX_BACKOFF)

    def _summarize(self, results: list[Result], skipped: int) -> int:
        print_warnings(*(result.report for result in results if result.report))
        outcomes = Counter(result.outcome for result in results)
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        earlier = f" ({skipped} of them by an earlier run)" if skipped else ""
        print(one_line(f"{self.folder}: {counts or 'no lines'}{earlier}"))
        if outcomes["failed"]:
            return FAILED
        return 0 if outcomes["generated"] == len(results) else BLOCKED
