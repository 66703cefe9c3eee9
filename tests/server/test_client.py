"""The client library against a real server on which a toy pipeline plays scenarios."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cosmos_triton.client import (
    Cancelled,
    DeadlineExceeded,
    Event,
    Generation,
    GuardrailBlocked,
    InvalidInput,
    ServerBusy,
    ServerFailed,
    ServerUnreachable,
    WorldClient,
    WorldError,
)
from support.server import until
from support.toys import ToyServer, noted, notes, scenario

BOTH = pytest.mark.parametrize("protocol", ["grpc", "http"])
SLOW = {"stages": {"ar_sampler": 30}, "seconds": 0.1}  # longer than any test waits for it


@pytest.fixture
def client(server: ToyServer, request: pytest.FixtureRequest) -> Iterator[WorldClient]:
    """By the test's `protocol`, gRPC where it names none."""
    protocol = request.node.callspec.params.get("protocol", "grpc") if hasattr(request.node, "callspec") else "grpc"
    with WorldClient(server.url_of(protocol), protocol) as client:
        yield client


@BOTH
def test_every_parameter_reaches_the_server(toy_of: Callable[[str], ToyServer], protocol: str, tmp_path: Path) -> None:
    given = {
        "num_input_frames": 9,
        "temperature": 0.5,
        "top_p": 0.25,
        "seed": 2**40,
        "disable_diffusion_decoder": True,
        "prompt": "Une rue sous la pluie, 雨",
    }
    note = tmp_path / "note"
    with WorldClient(toy_of("5b-video2world").url_of(protocol), protocol) as client:
        generation = client.generate(scenario(note=str(note)), **given)
    assert notes(note)[0] == {"what": "started", **given}
    assert generation.video == b"video of seed %d" % 2**40
    assert generation.outcome == "generated"


@BOTH
def test_what_is_left_out_is_left_to_the_server(client: WorldClient, protocol: str) -> None:
    assert client.generate(scenario(), top_p=None).report["parameters"] == {}


@BOTH
def test_a_path_and_its_bytes_are_the_same_input(client: WorldClient, protocol: str, tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(scenario(faces=3))
    assert client.generate(path) == client.generate(str(path)) == client.generate(path.read_bytes())


@BOTH
def test_messages_larger_than_grpcs_default_limit(client: WorldClient, protocol: str) -> None:
    size = 6 * 2**20
    assert len(client.generate(scenario(padding=size) + b" " * size).video) > size


@BOTH
def test_the_deployment_is_the_servers(client: WorldClient, protocol: str) -> None:
    assert client.deployment() == "4b"


def test_events_come_in_order_while_the_server_works(client: WorldClient) -> None:
    stages = {"ar_sampler": 3, "media_encoder": 1}
    begun = time.monotonic()
    arrivals = [(update, time.monotonic() - begun) for update in client.stream(scenario(stages=stages, seconds=0.2))]
    updates = [update for update, _ in arrivals]
    assert updates[:-1] == [Event("ar_sampler", done, 3) for done in (1, 2, 3)] + [Event("media_encoder", 1, 1)]
    assert isinstance(updates[-1], Generation)
    assert arrivals[0][1] < 0.5 * arrivals[-1][1], "the first event waited for the result"


def test_over_http_there_is_the_result_alone(server: ToyServer) -> None:
    with WorldClient(server.url, "http") as client:
        (generation,) = client.stream(scenario())
    assert isinstance(generation, Generation)


@BOTH
@pytest.mark.parametrize(
    ("plays", "parameters", "expected"),
    [
        ({"frames": 5}, {"num_input_frames": 9}, InvalidInput),
        ({}, {"prompt": "to a base model"}, InvalidInput),
        ({}, {"top_p": float("nan")}, InvalidInput),
        ({}, {"seed": 2**63}, InvalidInput),
        ({"outcome": "prompt_blocked"}, {}, GuardrailBlocked),
        ({"error": ["UNAVAILABLE", "queue is full"]}, {}, ServerBusy),
        ({"error": ["INTERNAL", "a stage died"]}, {}, ServerFailed),
        ({"error": ["INTERNAL", "a stage died"], "error_after": 3}, {}, ServerFailed),
        (SLOW, {"deadline": 0.3}, DeadlineExceeded),
    ],
)
def test_each_failure_has_its_exception(
    client: WorldClient, protocol: str, plays: dict, parameters: dict, expected: type[WorldError]
) -> None:
    with pytest.raises(WorldError) as failure:
        client.generate(scenario(**plays), **parameters)
    assert type(failure.value) is expected
    assert client.generate(scenario()).outcome == "generated", "the next request must work"


@BOTH
def test_refused_input_says_field_value_and_what_is_accepted(client: WorldClient, protocol: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        client.generate(scenario(), top_p=1.5)
    error = refused.value
    assert (error.field, error.value, error.accepted) == ("top_p", "1.5", "above 0, at most 1")


@BOTH
def test_a_blocked_video_comes_with_its_report(client: WorldClient, protocol: str) -> None:
    with pytest.raises(GuardrailBlocked, match=r"video_blocked: blocklist") as blocked:
        client.generate(scenario(outcome="video_blocked"), seed=4)
    assert blocked.value.report["parameters"] == {"seed": 4}


def test_a_file_that_is_not_there_is_invalid_input(client: WorldClient, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="No such file") as refused:
        client.generate(tmp_path / "clip.mp4")
    assert refused.value.field == "visual_input"


@pytest.mark.parametrize(("url", "protocol"), [("http://localhost:8000", "http"), ("", "grpc"), (None, "ftp")])
def test_a_wrong_address_is_refused_before_anything_is_sent(url: str | None, protocol: str) -> None:
    with pytest.raises(InvalidInput):
        WorldClient(url, protocol)


@BOTH
def test_nobody_listening_is_unreachable_not_busy(protocol: str) -> None:
    with WorldClient("127.0.0.1:1", protocol) as client:
        with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"):
            client.generate(scenario())
        with pytest.raises(ServerUnreachable):
            client.deployment()


@BOTH
def test_a_server_that_dies_with_the_request_is_unreachable(
    toys: Callable[[], ToyServer], protocol: str, tmp_path: Path
) -> None:
    note, server = tmp_path / "note", toys()
    server.start()
    with WorldClient(server.url_of(protocol), protocol) as client:
        killer = threading.Thread(target=lambda: (until(lambda: noted(note), seconds=10), server.kill()))
        killer.start()
        with pytest.raises(ServerUnreachable):
            client.generate(scenario(note=str(note), **SLOW))
        killer.join()


def test_a_model_that_is_away_is_busy(toys: Callable[[], ToyServer]) -> None:
    """As in a server that finishes its last request before it ends."""
    server = toys()
    server.start()
    with WorldClient(server.grpc_url) as under_way:
        next(updates := under_way.stream(scenario(**SLOW)))
        server.signal()
        server.wait_until(ready=False, seconds=10)
        for protocol in ("grpc", "http"):
            with WorldClient(server.url_of(protocol), protocol) as client, pytest.raises(ServerBusy):
                client.generate(scenario())
        updates.close()


def test_closing_the_iterator_stops_the_server(client: WorldClient, tmp_path: Path) -> None:
    note = tmp_path / "note"
    updates = client.stream(scenario(note=str(note), **SLOW))
    next(updates)
    updates.close()
    until(lambda: noted(note) == ["started", "cancelled"], seconds=2)


def test_an_exception_in_on_event_stops_the_server(client: WorldClient, tmp_path: Path) -> None:
    note = tmp_path / "note"

    def fail(event: Event) -> None:
        raise RuntimeError(event.stage)

    with pytest.raises(RuntimeError, match="ar_sampler"):
        client.generate(scenario(note=str(note), **SLOW), on_event=fail)
    until(lambda: noted(note) == ["started", "cancelled"], seconds=2)


def test_a_deadline_stops_the_server(client: WorldClient, tmp_path: Path) -> None:
    note = tmp_path / "note"
    with pytest.raises(DeadlineExceeded):
        client.generate(scenario(note=str(note), **SLOW), deadline=0.3)
    until(lambda: noted(note) == ["started", "cancelled"], seconds=2)


@BOTH
def test_closing_the_client_cancels_what_another_thread_waits_for(
    client: WorldClient, protocol: str, tmp_path: Path
) -> None:
    note = tmp_path / "note"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.generate, scenario(note=str(note), **SLOW))
        until(lambda: noted(note), seconds=5)
        client.close()
        with pytest.raises(Cancelled):
            waiting.result(timeout=2)
    until(lambda: noted(note)[-1] == "cancelled", seconds=5)


def test_a_finished_generation_leaves_nothing_open_in_the_server(toys: Callable[[], ToyServer]) -> None:
    server = toys()
    server.start()
    with WorldClient(server.grpc_url) as client:
        for seed in range(20):
            client.generate(scenario(), seed=seed)
        assert server.stop() == 0, "a request that the server believes unfinished keeps its model from unloading"


@BOTH
def test_a_closed_client_says_so(client: WorldClient, protocol: str) -> None:
    client.close()
    with pytest.raises(Cancelled, match="closed"):
        client.generate(scenario())


@BOTH
def test_threads_share_a_client_and_get_their_own_answers(client: WorldClient, protocol: str) -> None:
    plays = scenario(stages={"ar_sampler": 2}, seconds=0.25)
    begun = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        videos = list(pool.map(lambda seed: client.generate(plays, seed=seed).video, range(16)))
    assert videos == [b"video of seed %d" % seed for seed in range(16)]
    assert time.monotonic() - begun < 0.25 * 16, "requests waited for each other"


@BOTH
def test_the_client_needs_none_of_the_servers_packages(server: ToyServer, protocol: str) -> None:
    program = f"""
import sys
for package in ("torch", "einops", "safetensors", "transformers", "tokenizers", "huggingface_hub", "nltk", "av"):
    sys.modules[package] = None  # importing it raises ImportError
from cosmos_triton.client import WorldClient
from cosmos_triton.cli.main import main
with WorldClient("{server.url_of(protocol)}", "{protocol}") as client:
    print(client.generate({scenario()!r}, seed=5).video.decode())
main(["generate", "--help"])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("video of seed 5\nusage: cosmos-triton generate")
