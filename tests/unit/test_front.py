"""The front without a server behind it: how requests are read, and what bounds them."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from cosmos_triton.serving.addresses import Addresses, StartError, bind
from cosmos_triton.serving.front import connection, grpc_proxy, limits, listener
from cosmos_triton.serving.front.budget import Budget
from cosmos_triton.serving.front.errors import Code, Refusal
from cosmos_triton.serving.front.http_messages import Answer, Head, Request
from cosmos_triton.serving.front.infer_request import read_infer_request
from cosmos_triton.serving.front.message_check import check_infer_request
from cosmos_triton.serving.front.tensors import FORMATS, element_count, pack, unpack
from cosmos_triton.serving.ports import free_ports

INFER = "/inference.GRPCInferenceService/ModelInfer"
NUMPY = {"BOOL": np.bool_, "FP32": np.float32, "FP64": np.float64} | {
    f"{sign}INT{bits}": np.dtype(f"{sign.lower()}int{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)
}


@pytest.mark.parametrize("datatype", FORMATS)
def test_numbers_are_packed_as_numpy_lays_them_out(datatype: str) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]], NUMPY[datatype])
    raw = pack("x", datatype, values.tolist(), element_count("x", list(values.shape)))
    assert raw == values.tobytes()
    assert unpack("x", datatype, raw) == values.ravel().tolist()


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT8", [128]),
        ("UINT8", [-1]),
        ("INT64", [2**63]),
        ("FP32", [1e300]),
        ("FP32", [True]),
        ("INT32", [1.0]),
        ("BOOL", [1]),
        ("BYTES", [1]),
        ("BYTES", ["\ud800"]),
        ("FP16", [1.0]),
        ("INT32", [{}]),
        ("INT32", [1, 2]),
    ],
)
def test_values_that_are_none_of_the_type_are_refused(datatype: str, data: list[object]) -> None:
    with pytest.raises(Refusal, match=r"\[INVALID_ARG\] x\."):
        pack("x", datatype, data, 1)


def test_bytes_that_are_not_text_come_back_as_they_were() -> None:
    content = bytes(range(256))
    (text,) = unpack("x", "BYTES", struct.pack("<I", 256) + content)
    assert text.encode(errors="surrogateescape") == content


def test_many_numbers_are_not_written_as_json() -> None:
    with pytest.raises(Refusal, match="binary_data"):
        unpack("x", "UINT8", bytes(limits.JSON_NUMBERS + 1))


def test_binary_and_json_tensors_make_one_message() -> None:
    inputs = [
        {"name": "a", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7, "more": 3}},
        {"name": "b", "datatype": "INT32", "shape": [2, 1], "data": [[5], [6]]},
        {"name": "c", "datatype": "FP16", "shape": [1], "parameters": {"binary_data_size": 2}},
    ]
    outputs = [{"name": "o"}, {"name": "p", "parameters": {"binary_data": True, "classification": 3}}]
    parameters = {"binary_data_output": True, "s": "x", "f": 0.5, "t": True}
    header = json.dumps({"id": "7", "inputs": inputs, "outputs": outputs, "parameters": parameters}).encode()
    tensors = struct.pack("<I", 3) + b"abc" + b"hi"
    request = read_infer_request("m", "2", str(len(header)), header + tensors)
    check_infer_request(request.message)
    message = pb.ModelInferRequest.FromString(request.message)
    assert (message.model_name, message.model_version, message.id) == ("m", "2", "7")
    assert list(message.raw_input_contents) == [tensors[:7], struct.pack("<ii", 5, 6), b"hi"]
    assert [(each.name, each.datatype, list(each.shape)) for each in message.inputs][1] == ("b", "INT32", [2, 1])
    assert message.inputs[0].parameters["more"].int64_param == 3
    assert message.outputs[1].parameters["classification"].int64_param == 3
    assert {name: value.WhichOneof("parameter_choice") for name, value in message.parameters.items()} == {
        "s": "string_param",
        "f": "double_param",
        "t": "bool_param",
    }
    assert ["o" in request.outputs, "p" in request.outputs, "q" in request.outputs] == [False, True, True]


def test_messages_of_every_shape_pass_or_are_refused() -> None:
    """Cut or changed anywhere, a message is either one whose structure is known, or refused."""
    message = pb.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"abc" * 100])
    message.inputs.add(name="a", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend([b"x", b"yy"])
    message.inputs[0].parameters["p"].int64_param = 5
    whole = message.SerializeToString()
    check_infer_request(whole)
    random = np.random.default_rng(0)
    for _ in range(3000):
        changed = bytearray(whole[: random.integers(1, len(whole) + 1)])
        changed[random.integers(len(changed))] = random.integers(256)
        with suppress(Refusal):
            check_infer_request(bytes(changed))


def test_contents_are_bounded_by_the_message_alone() -> None:
    """A clip may be in either form of contents; numbers in typed fields take many times their bytes."""
    clip = bytes(20 * 2**20)
    check_infer_request(pb.ModelInferRequest(model_name="m", raw_input_contents=[clip]).SerializeToString())
    typed = pb.ModelInferRequest(model_name="m")
    typed.inputs.add(name="a").contents.bytes_contents.append(clip)
    check_infer_request(typed.SerializeToString())
    typed.inputs[0].contents.int64_contents.extend([1] * (limits.STRUCTURE_BYTES + 1))
    with pytest.raises(Refusal, match="beside the contents"):
        check_infer_request(typed.SerializeToString())


async def echo(request: Request) -> Answer:
    return Answer(200, [request.take_body()])


def found(head: Head) -> tuple[Callable[[Request], Awaitable[Answer]], dict[str, str]]:
    return echo, {}


@asynccontextmanager
async def listening(budget: Budget | None = None) -> AsyncIterator[int]:
    (port,) = free_ports(1)
    http = listener.Listener(found, budget or Budget())
    await http.start(bind("127.0.0.1", port))
    try:
        yield port
    finally:
        await http.stop(1)


async def exchange(port: int, *parts: bytes) -> bytes:
    """Send the parts, and read until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer


def test_a_body_may_come_in_pieces_of_any_size() -> None:
    async def run() -> None:
        async with listening() as port:
            body = bytes(range(256)) * 20
            for size in (1, 7, 100, len(body)):
                pieces = [body[begin : begin + size] for begin in range(0, len(body), size)]
                chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
                head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
                chunked = await exchange(port, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
                plain = await exchange(port, head + b"Content-Length: %d\r\n\r\n" % len(body), *pieces)
                offer = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
                offering = await exchange(port, offer + b"Content-Length: %d\r\n\r\n" % len(body), *pieces)
                assert chunked == plain == offering
                assert plain.endswith(b"\r\n\r\n" + body)

    asyncio.run(run())


def test_a_client_that_asks_first_is_told_before_it_sends() -> None:
    async def run() -> None:
        async with listening() as port:
            head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close\r\n"
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + b"Content-Length: 2\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"hi")
            assert (await reader.read()).endswith(b"hi")
            assert b" 400 " in await exchange(port, head + b"Content-Length: %d\r\n\r\n" % (limits.BODY_BYTES + 1))

    asyncio.run(run())


def test_requests_together_are_bounded() -> None:
    async def run() -> None:
        budget = Budget(1000)
        async with listening(budget) as port:
            post = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 600\r\n\r\n"
            _, first = await asyncio.open_connection("127.0.0.1", port)
            first.write(post + bytes(500))
            while budget.used < 500:
                await asyncio.sleep(0.01)
            assert b" 503 " in await exchange(port, post + bytes(600))
            first.close()
            while budget.used:
                await asyncio.sleep(0.01)
            assert b" 200 " in await exchange(port, post + bytes(600))

    asyncio.run(run())


@pytest.mark.parametrize("sent", [b"", b"P", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhi"])
def test_who_does_not_go_on_is_let_go(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    for name in ("IDLE_SECONDS", "HEAD_SECONDS", "STALL_SECONDS"):
        monkeypatch.setattr(connection, name, 0.1)

    async def run() -> None:
        async with listening() as port:
            assert await exchange(port, sent) == b""

    asyncio.run(run())


def test_one_connection_too_many_ends_the_one_that_is_idle_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CONNECTIONS", 3)

    async def run() -> None:
        async with listening() as port:
            links = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
            assert await asyncio.wait_for(links[0][0].read(), 5) == b""
            links[1][1].write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b" 200 " in await links[1][0].readline()
            for _, writer in links:
                writer.close()

    asyncio.run(run())


@asynccontextmanager
async def proxied(triton: Any, budget: Budget) -> AsyncIterator[Any]:
    """A channel to the proxy."""
    proxy = grpc_proxy.GrpcProxy(triton, budget)
    (port,) = free_ports(1)
    server = grpc_proxy.grpc_server(proxy, "127.0.0.1", port)
    await server.start()
    guard = asyncio.create_task(proxy.guard())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    guard.cancel()
    await server.stop(0)


class Slow:
    """In the place of tritonserver: answers when it is told to."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def call(self, method: str, message: bytes, *, seconds: float | None = None) -> bytes:
        try:
            await self.answer.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return b"answer"


def test_messages_together_are_bounded_and_a_call_that_is_cancelled_gives_its_bytes_back() -> None:
    async def run() -> None:
        budget, triton = Budget(1000), Slow()
        message = pb.ModelInferRequest(raw_input_contents=[bytes(600)]).SerializeToString()
        async with proxied(triton, budget) as channel:
            infer = channel.unary_unary(INFER)
            first = infer(message)
            while not budget.used:
                await asyncio.sleep(0.01)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await infer(message)
            assert caught.value.code() == Code.UNAVAILABLE
            first.cancel()
            await asyncio.wait_for(triton.cancelled.wait(), 5)
            while budget.used:
                await asyncio.sleep(0.01)
            triton.answer.set()
            assert await infer(message) == b"answer"

    asyncio.run(run())


class Answering:
    """In the place of tritonserver, for streams: answers each request in two responses, while `answers`."""

    def __init__(self) -> None:
        self.answers = True
        self._responses: asyncio.Queue[Any] = asyncio.Queue()

    async def stream(self) -> Answering:
        return self

    async def write(self, message: bytes) -> None:
        for is_last in (False, True) if self.answers else ():
            response = pb.ModelStreamInferResponse()
            response.infer_response.parameters["triton_final_response"].bool_param = is_last
            self._responses.put_nowait(response.SerializeToString())

    async def read(self) -> Any:
        return await self._responses.get()

    async def done_writing(self) -> None:
        self._responses.put_nowait(grpc.aio.EOF)

    async def code(self) -> grpc.StatusCode:
        return Code.OK

    def cancel(self) -> None:
        pass


def test_a_stream_is_bounded_by_what_is_not_answered() -> None:
    async def run() -> None:
        budget, triton = Budget(1000), Answering()
        message = pb.ModelInferRequest(raw_input_contents=[bytes(600)]).SerializeToString()
        async with proxied(triton, budget) as channel:
            call = channel.stream_stream(grpc_proxy.STREAM)()
            for _ in range(5):
                await call.write(message)
                await call.read()
                await call.read()
                while budget.used:
                    await asyncio.sleep(0.01)
            triton.answers = False
            await call.write(message)
            await call.write(message)
            assert await call.code() == Code.UNAVAILABLE
            while budget.used:
                await asyncio.sleep(0.01)

    asyncio.run(run())


def test_arriving_messages_are_dropped_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_proxy, "MEMORY_BYTES", 0)
    monkeypatch.setattr(grpc_proxy, "GUARD_SECONDS", 0.05)

    async def run() -> None:
        async with proxied(Slow(), Budget()) as channel:
            call = channel.stream_unary(INFER)()  # and no message
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await asyncio.wait_for(call, 5)
            assert caught.value.code() == Code.UNAVAILABLE

    asyncio.run(run())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "::", "0.0.0.0"])
def test_every_form_of_host_is_listened_on(host: str) -> None:
    (port,) = free_ports(1)
    with bind(host, port) as taken:
        taken.listen()
        reachable = Addresses(host).reachable_host.strip("[]")
        socket.create_connection((reachable, port), 5).close()
        if host == "::":
            socket.create_connection(("127.0.0.1", port), 5).close()
        with pytest.raises(StartError, match=f"--http-port: value {port}; accepted: a free port of {host}"):
            Addresses(host, port).check_free()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_grpc_listens_on_every_form_of_host(host: str) -> None:
    async def run() -> None:
        (port,) = free_ports(1)
        server = grpc_proxy.grpc_server(grpc_proxy.GrpcProxy(Slow(), Budget()), host, port)
        await server.start()
        socket.create_connection((Addresses(host).reachable_host.strip("[]"), port), 5).close()
        await server.stop(0)

    asyncio.run(run())


def test_a_host_that_is_no_address_is_named() -> None:
    with pytest.raises(StartError, match=r"--host: value no\.such\.host\.invalid"):
        Addresses("no.such.host.invalid").check_free()
