"""`serve` killed, starved of its log and of shared memory: what is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tritonclient.utils import InferenceServerException

from cosmos_triton.runtime.processes import is_alive
from cosmos_triton.runtime.stages import STAGES
from cosmos_triton.serving.claim import SHARED_MEMORY
from cosmos_triton.serving.ports import free_ports
from support.figures import Note
from support.held_server import HeldServer
from support.pipeline_server import SERVE, PipelineServer
from support.server import until

START = 300  # seconds, on a busy machine
LEFT = 15  # seconds after which nothing is left of a killed `serve`
CLIPS = 400
WORK = {"idle": None, "AR": "ar_sampler", "diffusion": "diffusion_decoder"}
REQUESTS = 170  # more than fill the pipe of a log that nobody reads
SETTLED = 40  # clips after which nothing grows any more
LARGEST_GROWTH = 0.1

MakeServer = Callable[[], HeldServer]


@pytest.fixture
def make_server(checkpoints: Path, deployment: str, tmp_path: Path) -> Iterator[MakeServer]:
    servers: list[HeldServer] = []

    def make() -> HeldServer:
        folder = tmp_path / str(len(servers))
        folder.mkdir()
        servers.append(HeldServer(deployment, checkpoints, folder))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def regions(prefix: str) -> list[str]:
    return sorted(path.name for path in SHARED_MEMORY.glob(f"{prefix}*"))


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("stopped", ["", "ar_sampler"])
def test_nothing_is_left_of_a_killed_serve(make_server: MakeServer, note: Note, work: str, stopped: str) -> None:
    server, stage = make_server(), WORK[work]
    server.start()
    assert server.generate(disable_diffusion_decoder=True).report["outcome"] == "generated"
    processes, prefix = server.processes(), server.shared_memory_prefix()
    assert len(processes) > len(STAGES)
    assert regions(prefix)
    with ThreadPoolExecutor(1) as pool, ExitStack() as held:
        if stage:
            held.enter_context(server.hold(stage))
            pool.submit(server.generate)
            server.wait_at_work(stage)
        if stopped:
            os.kill(server.stub_pids(stopped)[0], signal.SIGSTOP)
        server.signal(signal.SIGKILL)
        began = time.monotonic()
        server.wait()
        until(lambda: not any(map(is_alive, processes)) and not regions(prefix), seconds=LEFT)
        seconds = time.monotonic() - began
    scenario = f"serve killed, {work}{f', {stopped} stopped' if stopped else ''}"
    note(scenario, processes_left=0, regions_left=0, after=seconds)


def test_next_start_reclaims_what_is_left_where_the_reaper_was_killed_too(make_server: MakeServer, note: Note) -> None:
    """And nothing of a server that runs."""
    first, other, second = make_server(), make_server(), make_server()
    first.start()
    other.start()
    prefix, others = first.shared_memory_prefix(), other.shared_memory_prefix()
    for pid in (*first.reaper_pids(), first.processes()[0]):
        os.kill(pid, signal.SIGKILL)
    first.wait()
    left = len(regions(prefix))
    assert left
    second.start()
    assert regions(prefix) == []
    assert regions(others)
    assert other.generate(disable_diffusion_decoder=True).report["outcome"] == "generated"
    note("serve and its reaper killed, then a next start", regions_before=left, regions_left=0)


def fill_log(server: HeldServer) -> None:
    """Requests that are refused with a line or two in the log."""
    for _ in range(REQUESTS):
        with pytest.raises(InferenceServerException, match="visual_input"):
            server.infer("grpc", visual_input=b"no image" * 1000)


@pytest.mark.parametrize("fault", ["closed", "not read"])
def test_log_that_nobody_takes_holds_nothing_up(make_server: MakeServer, note: Note, fault: str) -> None:
    server = make_server()
    reading, writing = os.pipe()
    server.start(stderr=writing)
    if fault == "closed":
        os.close(reading)
    began = time.monotonic()
    fill_log(server)
    assert server.is_ready()
    note(f"stderr {fault}", requests=REQUESTS, unanswered=0, seconds=time.monotonic() - began)


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own takes root")
def test_full_disk_under_the_log_holds_nothing_up(make_server: MakeServer, note: Note, tmp_path: Path) -> None:
    """And what was lost is said once there is space again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        server, ballast = make_server(), disk / "ballast"
        ballast.write_bytes(bytes(32 << 10))
        with (disk / "log").open("ab", buffering=0) as log:
            server.start(stderr=log.fileno())
            fill_log(server)
            assert server.is_ready()
            ballast.unlink()
            fill_log(server)
        assert "lines of this log were lost" in (disk / "log").read_text()
        server.close()
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
    note("disk of the log full, then space", requests=2 * REQUESTS, unanswered=0)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="a small /dev/shm takes root")
def test_too_little_shared_memory_is_refused_before_the_start(checkpoints: Path, note: Note) -> None:
    ports = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), free_ports(3), strict=True)]
    command = [*map(str, SERVE), "--deployment=tiny", f"--checkpoint-dir={checkpoints}", *ports]
    script = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    began = time.monotonic()
    refused = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command], capture_output=True, text=True, timeout=START
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("/dev/shm: ")
    assert refused.stderr.count("\n") == 1
    note("/dev/shm of 1 MiB", refused_after=time.monotonic() - began)


def test_any_path_serves(
    checkpoints: Path, deployment: str, note: Note, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's $HOME; a\"b` é"
    shutil.copytree(checkpoints, folder / "checkpoints", copy_function=os.link, symlinks=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("LC_ALL", "C")
    server = PipelineServer(deployment, folder / "checkpoints", folder)
    try:
        server.start()
        assert server.generate().report["outcome"] == "generated"
        assert server.stop() == 0
    finally:
        server.close()
    note("paths with spaces, quotes, $ and é", answered=1)


def test_soak_of_clips_grows_nothing(make_server: MakeServer, note: Note) -> None:
    server = make_server()
    server.start()
    used: list[Usage] = []
    with ThreadPoolExecutor(4) as pool:
        for count in (SETTLED, CLIPS - SETTLED):
            requests = [
                pool.submit(server.generate, seed=seed, disable_diffusion_decoder=seed % 4 > 0) for seed in range(count)
            ]
            assert all(request.result().report["outcome"] == "generated" for request in requests)
            used.append(Usage.of(server))
    before, after = used
    assert after.resident < before.resident * (1 + LARGEST_GROWTH)
    assert after.shared <= before.shared * (1 + LARGEST_GROWTH)
    assert after.descriptors <= before.descriptors + 8
    assert after.threads <= before.threads + 8
    note(
        f"{CLIPS} clips, after {SETTLED} and after all",
        resident_MB=f"{before.resident >> 20} to {after.resident >> 20}",
        shared_MB=f"{before.shared >> 20} to {after.shared >> 20}",
        descriptors=f"{before.descriptors} to {after.descriptors}",
        threads=f"{before.threads} to {after.threads}",
    )


@dataclass(frozen=True, slots=True)
class Usage:
    """Of all processes of a server together, in bytes and in numbers."""

    resident: int
    shared: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, server: HeldServer) -> Usage:
        processes = [psutil.Process(pid) for pid in server.processes()]
        prefix = server.shared_memory_prefix()
        return cls(
            resident=sum(process.memory_info().rss for process in processes),
            shared=sum((SHARED_MEMORY / name).stat().st_blocks * 512 for name in regions(prefix)),
            descriptors=sum(process.num_fds() for process in processes),
            threads=sum(process.num_threads() for process in processes),
        )
