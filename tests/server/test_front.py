"""No client can take the server down, or make it hold what it does not need: hostile requests on both protocols."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import brotli
import grpc
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from cosmos_triton.client import WorldClient
from support import hostile
from support.server import until
from support.toys import ToyServer, noted, scenario

MIB = 2**20
GROWTH = 200 * MIB  # of the front's memory at its peak, above which a request has been unpacked
SERVICE = "/inference.GRPCInferenceService/"
VISUAL = {"name": "visual_input", "datatype": "BYTES", "shape": [1], "data": ["toy{}"]}
HEADER = "Inference-Header-Content-Length"
ZEROS = bytes(200 * MIB)


@pytest.fixture(autouse=True)
def unharmed(server: ToyServer) -> Iterator[None]:
    """Whatever a test sends: the same processes, no more shared memory, and the next requests work."""
    before = server.triton_pid, server.front_pid, shared_memory(server)
    yield
    assert (server.triton_pid, server.front_pid, shared_memory(server)) == before
    works(server)


def works(server: ToyServer) -> None:
    for protocol in ("grpc", "http"):
        with WorldClient(server.url_of(protocol), protocol) as client:
            assert client.generate(scenario(), deadline=20).outcome == "generated"


def shared_memory(server: ToyServer) -> int:
    """Bytes of the server's regions."""
    arguments = Path(f"/proc/{server.triton_pid}/cmdline").read_text()
    prefix = re.search(r"prefix-name=(\w+)", arguments)
    assert prefix
    return sum(region.stat().st_size for region in Path("/dev/shm").glob(f"{prefix[1]}*"))


def peak_memory(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


def with_data(data: str) -> bytes:
    return b'{"inputs":[{"name":"visual_input","datatype":"BYTES","shape":[1],"data":%b}]}' % data.encode()


JSON_BODIES = {
    **{f"{depth} lists": with_data("[" * depth) for depth in (25_000, 50_000, 1_000_000)},
    "50000 closed lists": with_data("[" * 50_000 + '"toy{}"' + "]" * 50_000),
    "50000 objects": b'{"a":' * 50_000,
    "50000 objects as a parameter": b'{"inputs":[],"parameters":{"a":%b}}' % (b'{"a":' * 50_000 + b"1" + b"}" * 50_001),
    "nested shape": json.dumps({"inputs": [{**VISUAL, "shape": [[[1]]]}]}).encode(),
    "long number": json.dumps({"inputs": [{**VISUAL, "shape": [1]}]}).replace("[1]", f"[{'1' * 100_000}]").encode(),
    "not a number": json.dumps({"inputs": [{**VISUAL, "data": [float("nan")]}]}).encode(),
    "half a surrogate pair": with_data(r'["\ud800"]'),
    "not UTF-8": with_data('["%"]').replace(b"%", b"\xff"),
    "long id": json.dumps({"id": "i" * 1_000_000, "inputs": [VISUAL]}).encode(),
    "many outputs": json.dumps({"inputs": [VISUAL], "outputs": [{"name": "video"}] * 10_000}).encode(),
    "many parameters": json.dumps(
        {"inputs": [VISUAL], "parameters": dict.fromkeys(map(str, range(10_000)), 1)}
    ).encode(),
    "shared memory": json.dumps({"inputs": [{**VISUAL, "parameters": {"shared_memory_region": "a"}}]}).encode(),
    "long JSON": with_data(json.dumps(["a" * 20 * MIB])),
    **{
        f"shape {shape}"[:40]: json.dumps({"inputs": [{**VISUAL, "shape": shape}]}).encode()
        for shape in (
            [-1],
            [0],
            [2],
            [2**62, 4],
            [2**63],
            [2**32, 2**32],
            [1] * 1000,
            [1.5],
            ["1"],
            [True],
            1,
            {},
            None,
        )
    },
    **{
        f"binary_data_size {size}"[:40]: json.dumps(
            {
                "inputs": [
                    {
                        "name": "visual_input",
                        "datatype": "BYTES",
                        "shape": [1],
                        "parameters": {"binary_data_size": size},
                    }
                ]
            }
        ).encode()
        for size in (-1, 1, 2**31, 2**63, 10**30, 1.5, "5", True, None, [], {})
    },
}


@pytest.mark.parametrize("case", JSON_BODIES)
@pytest.mark.parametrize("method", ["infer", "generate"])
def test_json_is_refused(server: ToyServer, case: str, method: str) -> None:
    status, body = hostile.post(server, JSON_BODIES[case], path=f"/v2/models/world_generation/{method}")
    assert status == 400, body[:300]
    assert len(json.loads(body)["error"]) < 1000


def test_a_long_request_id_is_not_in_the_log(server: ToyServer) -> None:
    hostile.post_json(server, {"id": "i" * 10_000, "inputs": [VISUAL]})
    message = pb.ModelInferRequest(model_name="world_generation", id="i" * 1_000_000).SerializeToString()
    with grpc.insecure_channel(server.grpc_url) as channel:
        infer = channel.unary_unary(SERVICE + "ModelInfer")
        with pytest.raises(grpc.RpcError):
            infer(message)
    assert "i" * 1000 not in server.log


@pytest.mark.parametrize("length", ["-1", "0", "+5", "1e3", "0x10", "1000000", str(10**30), "", "5, 5", "\xb2"])
def test_length_of_json_is_refused(server: ToyServer, length: str) -> None:
    status, _ = hostile.post(server, with_data('["toy{}"]'), [f"{HEADER}: {length}"])
    assert status == 400


def test_binary_tensor_that_lies_about_its_length(server: ToyServer) -> None:
    for content in (struct.pack("<I", 2**32 - 1) + b"toy{}", struct.pack("<I", 4) + b"toy{}", b"", b"\0"):
        tensor = {"name": "visual_input", "datatype": "BYTES", "shape": [1]}
        header = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(content)}}]}).encode()
        status, body = hostile.post(server, header + content, [f"{HEADER}: {len(header)}"])
        assert status == 400, body


def test_bytes_behind_the_tensors_are_refused(server: ToyServer) -> None:
    header = with_data('["toy{}"]')
    assert hostile.post(server, header + b"more", [f"{HEADER}: {len(header)}"])[0] == 400


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity", "x"])
def test_compressed_bodies_are_refused_unread(server: ToyServer, encoding: str) -> None:
    compress = {"gzip": gzip.compress, "deflate": zlib.compress, "br": partial(brotli.compress, quality=1)}.get(
        encoding, gzip.compress
    )
    before = peak_memory(server.front_pid)
    status, body = hostile.post(server, compress(bytes(50 * MIB)), [f"Content-Encoding: {encoding}"])
    assert status == 415, body
    assert peak_memory(server.front_pid) < before + GROWTH


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_unpacked_within_the_limit(server: ToyServer, algorithm: grpc.Compression) -> None:
    before = peak_memory(server.front_pid)
    with grpc.insecure_channel(server.grpc_url, options=[("grpc.max_send_message_length", -1)]) as channel:
        for kind in (channel.unary_unary, channel.stream_unary):
            method = "ModelInfer" if kind == channel.unary_unary else "ModelStreamInfer"
            with pytest.raises(grpc.RpcError) as caught:
                kind(SERVICE + method)(ZEROS if method == "ModelInfer" else iter([ZEROS]), compression=algorithm)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert peak_memory(server.front_pid) < before + GROWTH
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        assert client.infer("world_generation", [visual_input()], compression_algorithm="gzip").as_numpy("report").size


@pytest.mark.parametrize("chunks", [3_000_000, 100_001])
def test_chunks_are_bounded(server: ToyServer, chunks: int) -> None:
    head = f"POST {hostile.INFER} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    status, body = hostile.send(server, head, b"1\r\n[\r\n" * chunks)
    assert status == 400
    assert b"chunks" in body


HEADS = {
    "long header": (b"POST %b HTTP/1.1\r\nA: %b\r\n\r\n" % (hostile.INFER.encode(), b"a" * MIB), 431),
    "many headers": (b"POST %b HTTP/1.1\r\n%b\r\n" % (hostile.INFER.encode(), b"A: a\r\n" * 100_000), 431),
    "long path": (b"GET /%b HTTP/1.1\r\n\r\n" % (b"a" * MIB), 431),
    "endless header": (b"POST %b HTTP/1.1\r\nA: %b" % (hostile.INFER.encode(), b"a" * MIB), 431),
    "negative length": (b"POST %b HTTP/1.1\r\nContent-Length: -1\r\n\r\n" % hostile.INFER.encode(), 400),
    "absurd length": (b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (hostile.INFER.encode(), 10**18), 400),
    "length of 10**30": (b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (hostile.INFER.encode(), 10**30), 400),
    "two forms of a body": (
        b"POST %b HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}" % hostile.INFER.encode(),
        400,
    ),
    "compressed transfer": (
        b"POST %b HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" % hostile.INFER.encode(),
        501,
    ),
    "long trailer": (
        b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nA: %b\r\n\r\n"
        % (hostile.INFER.encode(), b"a" * MIB),
        431,
    ),
    "no HTTP": (bytes(range(256)) * 100, 400),
    "HTTP/2": (hostile.PREFACE, 400),
    "method": (b"BREW /v2 HTTP/1.1\r\n\r\n", 400),
}


@pytest.mark.parametrize("case", HEADS)
def test_heads_are_refused(server: ToyServer, case: str) -> None:
    sent, expected = HEADS[case]
    assert hostile.send(server, sent)[0] == expected


def test_a_body_above_the_limit_is_refused_and_the_client_reads_why(server: ToyServer) -> None:
    before = peak_memory(server.front_pid)
    status, body = hostile.post(server, ZEROS[: 80 * MIB])
    assert status == 400
    assert b"at most" in body
    head = f"POST {hostile.INFER} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    assert hostile.send(server, head, b"%x\r\n" % (80 * MIB), ZEROS[: 80 * MIB], b"\r\n0\r\n\r\n")[0] == 400
    assert peak_memory(server.front_pid) < before + GROWTH


def test_requests_in_a_pipeline_end_the_connection_behind_the_first(server: ToyServer) -> None:
    with socket.create_connection(("127.0.0.1", server.http_port), timeout=10) as link:
        link.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n" * 1000)
        answers = b""
        while piece := link.recv(65536):
            answers += piece
    assert answers.count(b"HTTP/1.1 200 OK") == 1


def test_connections_are_kept_between_requests(server: ToyServer) -> None:
    with tritonclient.http.InferenceServerClient(server.url) as client:
        for _ in range(3):
            assert client.is_server_ready()
            assert client.get_model_metadata("world_generation")["name"] == "world_generation"
            tensor = tritonclient.http.InferInput("visual_input", [1], "BYTES")
            tensor.set_data_from_numpy(visual_input_array())
            assert client.infer("world_generation", [tensor], request_id="7").get_response()["id"] == "7"


def test_control_calls_are_refused(server: ToyServer) -> None:
    """A load request may carry the code of a model, and regions of shared memory hold other clients' tensors."""
    for path in (
        "repository/index",
        "repository/models/echo/load",
        "logging",
        "trace/setting",
        "cudasharedmemory/status",
    ):
        for body in (None, {}):
            assert server.request(path, body).status == 403
    allowed = {"ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig"}
    allowed |= {"ModelStatistics", "ModelInfer", "ModelStreamInfer"}
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
    with grpc.insecure_channel(server.grpc_url) as channel:
        for method in methods - allowed | {"Unknown"}:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(SERVICE + method)(b"")
            assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
            assert "restricted" in caught.value.details()


def visual_input_array() -> Any:
    import numpy as np

    return np.array([scenario()], np.object_)


def visual_input() -> Any:
    tensor = tritonclient.grpc.InferInput("visual_input", [1], "BYTES")
    tensor.set_data_from_numpy(visual_input_array())
    return tensor


def request(*, model: str = "world_generation", raw: tuple[bytes, ...] | None = None, **fields: Any) -> Any:
    message = pb.ModelInferRequest(model_name=model, **fields)
    if not message.inputs:
        message.inputs.add(name="visual_input", datatype="BYTES", shape=[1])
    content = scenario()
    message.raw_input_contents.extend(raw if raw is not None else (struct.pack("<I", len(content)) + content,))
    return message


def tensor(**fields: Any) -> Any:
    return [
        pb.ModelInferRequest.InferInputTensor(**{"name": "visual_input", "datatype": "BYTES", "shape": [1]} | fields)
    ]


MESSAGES: dict[str, Callable[[], bytes]] = {
    "long id": lambda: request(id="i" * 300).SerializeToString(),
    "long model": lambda: request(model="m" * 1_000_000).SerializeToString(),
    "many empty fields": lambda: request().SerializeToString() + b"\x3a\0" * 1_000_000,
    "groups in groups": lambda: request().SerializeToString() + b"\x0b" * 1_000_000,
    "no message": lambda: b"\xff" * 1000,
    "cut": lambda: request().SerializeToString()[:-1],
    "longer than it is": lambda: b"\x3a\xff\xff\xff\xff\x0f",
    "many parameters": lambda: request(
        inputs=tensor(parameters={str(n): pb.InferParameter(bool_param=True) for n in range(100_000)})
    ).SerializeToString(),
    "many dimensions": lambda: request(inputs=tensor(shape=[1] * 2_000_000)).SerializeToString(),
    "many strings": lambda: request(
        inputs=tensor(contents=pb.InferTensorContents(bytes_contents=[b""] * 2_000_000)), raw=()
    ).SerializeToString(),
    "many numbers": lambda: request(
        inputs=tensor(contents=pb.InferTensorContents(int64_contents=[1] * 2_000_000)), raw=()
    ).SerializeToString(),
    "no contents": lambda: request(raw=()).SerializeToString(),
    "contents of two": lambda: request(raw=(b"", b"")).SerializeToString(),
    "a lie about its length": lambda: request(raw=(struct.pack("<I", 2**32 - 1) + b"a",)).SerializeToString(),
    "shared memory": lambda: request(
        inputs=tensor(parameters={"shared_memory_region": pb.InferParameter(string_param="a")}), raw=()
    ).SerializeToString(),
    **{
        f"shape {shape}"[:40]: (lambda shape=shape: request(inputs=tensor(shape=shape)).SerializeToString())
        for shape in ([-1], [0], [2], [2**62, 4], [2**63 - 1], [2**32, 2**32], [-(2**63)], [1] * 1000, [])
    },
    **{
        f"seed of shape {shape}"[:40]: (
            lambda shape=shape: request(
                inputs=[*tensor(), *tensor(name="seed", datatype="INT64", shape=shape)], raw=(b"\0" * 9, b"\0" * 8)
            ).SerializeToString()
        )
        for shape in ([-1], [2**61], [2**62, 4], [2**63 - 1])
    },
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages_are_refused(server: ToyServer, case: str) -> None:
    message = MESSAGES[case]()
    with grpc.insecure_channel(server.grpc_url) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(SERVICE + "ModelInfer")(message, timeout=20)
        assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
        stream = channel.stream_stream(SERVICE + "ModelStreamInfer")(iter([message]), timeout=20)
        try:
            refused = next(stream)
        except grpc.RpcError:
            return
        assert pb.ModelStreamInferResponse.FromString(refused).error_message


def test_the_header_that_crashes_triton_does_not_reach_it(server: ToyServer) -> None:
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(20):
            bad = request(model="world_generation_stream", raw=(struct.pack("<I", 1) + b"x",))
            answers = list(stub.ModelStreamInfer(iter([bad]), metadata=[("triton_grpc_error", "true")], timeout=20))
            assert "INVALID_ARG" in answers[0].error_message
    status, _ = hostile.post(server, with_data('["toy{}"]'), ["triton_grpc_error: true"])
    assert status == 200


def test_large_metadata_are_refused(server: ToyServer) -> None:
    with grpc.insecure_channel(server.grpc_url) as channel:
        live = channel.unary_unary(SERVICE + "ServerLive")
        with pytest.raises(grpc.RpcError):
            live(b"", metadata=[("a", "b" * MIB)], timeout=20)


def test_pings_are_welcome(server: ToyServer) -> None:
    often = [
        ("grpc.keepalive_time_ms", 100),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_time_between_pings_ms", 100),
    ]
    with grpc.insecure_channel(server.grpc_url, options=often) as channel:
        infer = channel.unary_unary(SERVICE + "ModelInfer")
        content = scenario(stages={"ar_sampler": 10}, seconds=0.3)
        message = request(raw=(struct.pack("<I", len(content)) + content,)).SerializeToString()
        assert infer(message, timeout=20)


LONG = {"stages": {"ar_sampler": 300}, "seconds": 0.1}


@pytest.mark.parametrize(
    "path", ["world_generation/infer", "world_generation/generate", "world_generation_stream/generate_stream"]
)
def test_http_client_that_leaves_is_cancelled(server: ToyServer, path: str, tmp_path: Path) -> None:
    note = tmp_path / "note"
    text = scenario(note=str(note), **LONG).decode()
    value = {"inputs": [{**VISUAL, "data": [text]}]} if path.endswith("infer") else {"visual_input": text}
    body = json.dumps(value).encode()
    with socket.create_connection(("127.0.0.1", server.http_port)) as link:
        link.sendall(
            f"POST /v2/models/{path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        until(lambda: noted(note) == ["started"], seconds=10)
    until(lambda: noted(note) == ["started", "cancelled"], seconds=2)


def test_many_that_leave_cost_nothing(server: ToyServer, tmp_path: Path) -> None:
    body = json.dumps(
        {"inputs": [{**VISUAL, "data": [scenario(note=str(tmp_path / "note"), **LONG).decode()]}]}
    ).encode()
    head = f"POST {hostile.INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with ExitStack() as stack:
        for _ in range(60):
            link = stack.enter_context(socket.create_connection(("127.0.0.1", server.http_port)))
            link.sendall(head + body)
        until(lambda: noted(tmp_path / "note").count("started") == 60, seconds=20)
    until(lambda: noted(tmp_path / "note").count("cancelled") == 60, seconds=5)


def test_half_sent_requests_hold_nobody_up(server: ToyServer) -> None:
    before = peak_memory(server.front_pid)
    head = f"POST {hostile.INFER} HTTP/1.1\r\nHost: a\r\nContent-Length: {60 * MIB}\r\n\r\n".encode()
    with ExitStack() as stack:
        for sent in (b"P", head[:-2], head, head + bytes(65536)):
            for _ in range(50):
                link = stack.enter_context(socket.create_connection(("127.0.0.1", server.http_port)))
                link.sendall(sent)
        for _ in range(200):
            stack.enter_context(hostile.half_sent_grpc(server, 65536 - 5))
        began = time.monotonic()
        works(server)
        assert time.monotonic() - began < 10
    assert peak_memory(server.front_pid) < before + GROWTH


def test_idle_connections_hold_nobody_up(server: ToyServer) -> None:
    with ExitStack() as stack:
        for port in (server.http_port, server.grpc_port):
            for _ in range(2000):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        works(server)


def test_300_at_once_are_all_answered(server: ToyServer) -> None:
    def generate(number: int) -> bytes:
        protocol = ("grpc", "http")[number % 2]
        with WorldClient(server.url_of(protocol), protocol) as client:
            return client.generate(scenario(), seed=number, deadline=60).video

    with ThreadPoolExecutor(300) as pool:
        assert list(pool.map(generate, range(300))) == [b"video of seed %d" % number for number in range(300)]


def test_front_that_dies_or_hangs_is_replaced_alone(toys: Callable[[], ToyServer]) -> None:
    server = toys().start()
    for number in (signal.SIGKILL, signal.SIGSTOP):
        triton, front = server.triton_pid, server.front_pid
        os.kill(front, number)
        until(lambda front=front: not psutil.pid_exists(front), seconds=20)
        server.wait_until(ready=True, seconds=10)
        works(server)
        assert server.triton_pid == triton
    assert server.stop() == 0
    assert server.left_processes() == []
