"""What `serve` promises of a server that it runs, held against the real one on models that compute nothing."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from cosmos_triton.runtime.processes import is_alive
from support.paths import TOYS
from support.server import Answer, Server, until
from support.toys import ToyServer, noted, scenario

BROKEN = "raise ValueError('weights: value none; accepted: some')"
MakeServer = Callable[..., Server]
SLOW_INPUTS = [
    {"name": "seconds", "datatype": "FP32", "shape": [1], "data": [0]},
    {"name": "note", "datatype": "BYTES", "shape": [1], "data": [""]},
]

UNREADY = 5  # seconds within which readiness must tell the truth
RECOVERED = 30  # seconds within which a deployment serves again
FAILED = 20  # seconds within which a request must have failed
LOCKED = -60  # seconds for which `slow` holds the interpreter lock
LOST = (
    0,
    http.HTTPStatus.SERVICE_UNAVAILABLE,
)  # what a request gets whose server ends: no answer, or that it may retry


@pytest.fixture
def in_background() -> Callable[..., Future[Answer]]:
    with ThreadPoolExecutor(8) as pool:
        yield pool.submit


def generate(server: Server, slow: float = 0, sampler: float = 0, note: str = "note") -> Answer:
    """A request that calls slow, sampler and echo, for so many seconds. Who takes it notes so."""
    calls = {"slow": slow, "sampler": sampler, "echo": 0}
    plays = scenario(calls=calls, note=str(server.run_dir.with_name(note))).decode()
    tensor = {"name": "visual_input", "datatype": "BYTES", "shape": [1], "data": [plays]}
    return server.request("models/world_generation/infer", {"inputs": [tensor]})


def wait_for_work(server: Server, stage: str, note: str = "note") -> None:
    """Until a request is at that stage."""
    until(lambda: stage in noted(server.run_dir.with_name(note)), seconds=20)
    if stage == "sampler":
        time.sleep(0.5)  # until its `execute` has returned, of which nothing tells: it answers from a thread


def assert_nothing_is_left(server: Server, shared_memory: str, seconds: float = 0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (server.left_processes() or regions(shared_memory)):
        time.sleep(0.1)
    assert server.left_processes() == []
    assert regions(shared_memory) == []


def regions(prefix: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{prefix}*"))


def shared_memory_of(server: Server) -> str:
    """The prefix of its regions; there are some while it runs."""
    prefix = server.shared_memory_prefix()
    assert regions(prefix)
    return prefix


def copy_of_toys(folder: Path) -> Path:
    return Path(shutil.copytree(TOYS, folder / "repository"))


def replace_initialize(repository: Path, model: str, statement: str) -> None:
    (repository / model / "1" / "model.py").write_text(
        f"class TritonPythonModel:\n    def initialize(self, args):\n        {statement}\n"
    )


def test_drain_finishes_requests_under_way_refuses_new_ones_and_leaves_nothing(
    toys: MakeServer, in_background: Callable[..., Future[Answer]]
) -> None:
    server = toys().start()
    shared_memory = shared_memory_of(server)
    assert server.ready_line == (
        f"toys is ready: http {server.url}, grpc {server.grpc_url}, metrics 127.0.0.1:{server.metrics_port}\n"
    )
    assert server.is_ready()
    assert generate(server).status == http.HTTPStatus.OK

    idle = http.client.HTTPConnection(server.url)  # which the server's own stop would wait for
    idle.request("GET", "/v2/health/live")
    idle.getresponse().read()
    # Between the two stages the server's own stop would fail it.
    under_way = in_background(generate, server, slow=1.5, sampler=1.5, note="under way")
    wait_for_work(server, "slow", "under way")
    began = time.monotonic()
    server.signal()
    server.wait_until(ready=False, seconds=UNREADY)
    assert generate(server).status == http.HTTPStatus.NOT_FOUND
    assert under_way.result().status == http.HTTPStatus.OK
    assert server.wait() == 0
    assert time.monotonic() - began < 15
    idle.close()
    assert server.output() == ""
    assert_nothing_is_left(server, shared_memory)


def test_second_signal_stops_at_once(toys: MakeServer, in_background: Callable[..., Future[Answer]]) -> None:
    server = toys().start()
    shared_memory = shared_memory_of(server)
    under_way = in_background(generate, server, slow=30)
    wait_for_work(server, "slow")
    server.signal()
    server.wait_until(ready=False, seconds=UNREADY)
    assert server.is_running
    began = time.monotonic()
    server.signal(signal.SIGINT)
    assert server.wait() == 1
    assert time.monotonic() - began < 5
    assert under_way.result().status in LOST
    assert_nothing_is_left(server, shared_memory)


def test_drain_does_not_wait_for_what_died(toys: MakeServer, in_background: Callable[..., Future[Answer]]) -> None:
    server = toys().start()
    shared_memory = shared_memory_of(server)
    under_way = in_background(generate, server, sampler=60)
    wait_for_work(server, "sampler")
    sampler = server.stub_pids("sampler")[0]
    server.signal()
    server.wait_until(ready=False, seconds=UNREADY)
    os.kill(sampler, signal.SIGKILL)
    assert server.wait(FAILED) == 1
    assert under_way.result().status in LOST
    assert_nothing_is_left(server, shared_memory)


def test_start_can_be_stopped(toys: MakeServer, tmp_path: Path) -> None:
    repository = copy_of_toys(tmp_path)
    replace_initialize(repository, "echo", "import time; time.sleep(60)")
    server = toys(repository).launch()
    until(lambda: "loading: echo" in server.log, seconds=30)
    server.signal()
    assert server.wait(10) == 0
    assert server.output() == ""
    assert server.left_processes() == []


def test_dead_stages_fail_their_requests_alone_and_come_back(
    toys: MakeServer, in_background: Callable[..., Future[Answer]]
) -> None:
    server = toys().start()
    shared_memory, triton = shared_memory_of(server), server.triton_pid
    elsewhere = in_background(generate, server, sampler=8, note="elsewhere")
    wait_for_work(server, "sampler", "elsewhere")
    here = in_background(generate, server, slow=60, note="here")
    wait_for_work(server, "slow", "here")
    dying = [server.stub_pids(model)[0] for model in ("slow", "echo")]
    server.signal(signal.SIGSTOP)  # so that both have died when it looks
    for pid in dying:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, dying)), seconds=10)
    server.signal(signal.SIGCONT)
    server.wait_until(ready=False, seconds=UNREADY)
    assert here.result().status == http.HTTPStatus.INTERNAL_SERVER_ERROR
    assert here.result().seconds < FAILED
    assert "'slow_0_0' is not healthy" in here.result().body
    server.wait_until(ready=True, seconds=RECOVERED)
    assert generate(server).status == http.HTTPStatus.OK
    assert elsewhere.result().status == http.HTTPStatus.OK
    assert server.triton_pid == triton
    assert server.log.count(" died: ") == 1  # the other process of echo was ended, and did not die
    assert len(server.stub_pids("echo")) == 2
    assert server.stop() == 0
    assert_nothing_is_left(server, shared_memory)


@pytest.mark.parametrize("how", ["stopped", "does not answer"])
def test_hung_stage_is_replaced_and_others_are_left_alone(
    toys: MakeServer, in_background: Callable[..., Future[Answer]], how: str
) -> None:
    """It is killed before anything can continue it: it would then take the server down with it."""
    server = toys().start()
    triton, before = server.triton_pid, server.stub_pids("slow")
    elsewhere = in_background(generate, server, sampler=15, note="elsewhere")
    wait_for_work(server, "sampler", "elsewhere")
    here = in_background(generate, server, slow=60 if how == "stopped" else LOCKED, note="here")
    wait_for_work(server, "slow", "here")
    if how == "stopped":
        os.kill(before[0], signal.SIGSTOP)
    server.wait_until(ready=False, seconds=UNREADY)
    assert here.result().status == http.HTTPStatus.INTERNAL_SERVER_ERROR
    assert here.result().seconds < FAILED
    server.wait_until(ready=True, seconds=RECOVERED)
    assert not is_alive(before[0])
    assert generate(server).status == http.HTTPStatus.OK
    assert elsewhere.result().status == http.HTTPStatus.OK
    assert server.triton_pid == triton
    assert f"{how}: slow" in server.log


@pytest.mark.parametrize("model", ["sampler", "world_generation"])
def test_dead_stage_that_answers_from_a_thread_restarts_the_server(
    toys: MakeServer, in_background: Callable[..., Future[Answer]], model: str
) -> None:
    """Nothing else ends the requests that died with it: the server waits for their answers."""
    server = toys().start()
    shared_memory, triton = shared_memory_of(server), server.triton_pid
    under_way = in_background(generate, server, sampler=60)
    wait_for_work(server, "sampler")
    os.kill(server.stub_pids(model)[0], signal.SIGKILL)
    server.wait_until(ready=False, seconds=UNREADY)
    assert under_way.result().status in LOST
    assert under_way.result().seconds < FAILED
    server.wait_until(ready=True, seconds=RECOVERED)
    assert generate(server).status == http.HTTPStatus.OK
    assert server.triton_pid != triton
    assert server.stop() == 0
    assert_nothing_is_left(server, shared_memory)


def test_killed_server_is_restarted(toys: MakeServer, in_background: Callable[..., Future[Answer]]) -> None:
    server = toys().start()
    shared_memory, triton = shared_memory_of(server), server.triton_pid
    under_way = in_background(generate, server, slow=60)
    wait_for_work(server, "slow")
    os.kill(triton, signal.SIGKILL)
    assert under_way.result().seconds < FAILED
    server.wait_until(ready=False, seconds=UNREADY)
    server.wait_until(ready=True, seconds=RECOVERED)
    assert generate(server).status == http.HTTPStatus.OK
    assert server.stop() == 0
    assert_nothing_is_left(server, shared_memory)


def test_server_that_does_not_answer_is_restarted(toys: MakeServer) -> None:
    server = toys().start()
    triton = server.triton_pid
    os.kill(triton, signal.SIGSTOP)
    until(lambda: "tritonserver stopped" in server.log, seconds=40)
    server.wait_until(ready=True, seconds=RECOVERED)
    assert server.triton_pid != triton


def test_nothing_outlives_a_killed_supervisor(toys: MakeServer, in_background: Callable[..., Future[Answer]]) -> None:
    """A stage that is at work does not notice, a stopped one neither; and what cleans up is itself looked after."""
    server = toys().start()
    shared_memory, reaper = shared_memory_of(server), server.reaper_pids()[0]
    os.kill(reaper, signal.SIGKILL)
    until(lambda: server.reaper_pids() not in ([], [reaper]), seconds=10)
    in_background(generate, server, slow=60)
    wait_for_work(server, "slow")
    os.kill(server.stub_pids("echo")[0], signal.SIGSTOP)
    server.signal(signal.SIGKILL)
    server.wait()
    assert_nothing_is_left(server, shared_memory, seconds=15)


def test_any_path_serves(tmp_path: Path) -> None:
    """The server starts its stages by a shell, and they read paths as ASCII."""
    folder = tmp_path / "it's $HOME; a\"b` é"
    folder.mkdir()
    server = ToyServer(folder)
    try:
        server.start()
        assert server.request("models/slow/infer", {"inputs": SLOW_INPUTS}).status == http.HTTPStatus.OK
    finally:
        server.close()


def test_what_it_holds_is_closed_to_other_users(toys: MakeServer) -> None:
    """Jobs, which stages can be called with, what clients send, and what an earlier server left there."""
    server = toys()
    jobs = server.run_dir / "jobs"
    jobs.mkdir(parents=True)
    (jobs / ("0" * 32)).touch()
    server.start()
    assert list(jobs.iterdir()) == []
    assert {path.name: path.stat().st_mode & 0o077 for path in server.run_dir.iterdir()} == dict.fromkeys(
        ("jobs", "lib", "models"), 0
    )
    held = regions(server.shared_memory_prefix())
    assert len(held) > len(list(TOYS.iterdir()))
    assert [path for path in held if path.stat().st_mode & 0o077] == []


def test_stage_that_cannot_come_back_ends_serve(toys: MakeServer, tmp_path: Path) -> None:
    repository = copy_of_toys(tmp_path)
    server = toys(repository).start()
    shared_memory = shared_memory_of(server)
    replace_initialize(repository, "echo", BROKEN)
    os.kill(server.stub_pids("echo")[0], signal.SIGKILL)
    assert server.wait(60) == 1
    assert "gave up" in server.log.splitlines()[-1]
    assert "echo: ValueError: weights: value none; accepted: some" in server.log.splitlines()[-1]
    assert_nothing_is_left(server, shared_memory)


def test_broken_model_ends_the_start_with_its_name_and_the_cause(toys: MakeServer, tmp_path: Path) -> None:
    repository = copy_of_toys(tmp_path)
    replace_initialize(repository, "slow", BROKEN)
    server = toys(repository).launch()
    assert server.wait(30) == 1
    assert server.log.splitlines()[-1] == "slow: ValueError: weights: value none; accepted: some"
    assert server.left_processes() == []


@pytest.mark.parametrize("port", ["http", "grpc", "metrics"])
def test_port_in_use_is_named(toys: MakeServer, port: str) -> None:
    server = toys()
    number = getattr(server, f"{port}_port")
    with socket.create_server(("127.0.0.1", number)):
        assert server.launch().wait(30) == 1
    assert server.log == (
        f"--{port}-port: value {number}; accepted: a free port of 127.0.0.1: Address already in use\n"
    )


def test_run_directory_serves_one_server_at_a_time(toys: MakeServer) -> None:
    first, second = toys(), toys()
    second.run_dir, second.log_file = first.run_dir, second.log_file.with_name("second log")
    first.start()
    assert second.launch().wait(30) == 1
    assert "accepted: a folder that no running server uses" in second.log
    assert first.is_ready()
