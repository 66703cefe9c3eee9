"""The paths of the HTTP interface: KServe v2, with Triton's extensions for clients."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from cosmos_triton.serving.front import json_text
from cosmos_triton.serving.front.errors import Code, Refusal
from cosmos_triton.serving.front.generate_request import read_generate_request
from cosmos_triton.serving.front.http_messages import Answer, Handler, Head, Request, Stream
from cosmos_triton.serving.front.infer_answer import generated, infer_answer
from cosmos_triton.serving.front.infer_request import HEADER_LENGTH, read_infer_request
from cosmos_triton.serving.front.triton import INFER, Triton

MODEL = r"/v2/models/(?P<model>[\w.\-]{1,256})(/versions/(?P<version>\d{1,18}))?"
PLAIN = "text/plain"
EVENTS = "text/event-stream; charset=utf-8"
# Interfaces closed to clients: loading a model runs code, and one client could read another's tensors.
RESTRICTED = re.compile(
    r"/v2/(repository|systemsharedmemory|cudasharedmemory|trace|logging)\b.*|/v2/models/.*/trace/.*"
)
# Triton drops an error's code in a stream, so the models put it into their messages. Its own begin like this when the
# request does not suit the model.
CODE_PREFIX = re.compile(r"\[(?P<code>[A-Z_]+)\] ")
UNSUITABLE = re.compile(r"\[request id: |unexpected inference (in|out)put ")
CODES = {"INVALID_ARG": Code.INVALID_ARGUMENT} | {code.name: code for code in Code}
ONE_RESPONSE = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various "
    "number of responses"
)


class Routes:
    """Finds the handler of a request."""

    def __init__(self, triton: Triton) -> None:
        self._triton = triton
        table = [
            ("GET", r"/v2/health/live", self._live),
            ("GET", r"/v2/health/ready", self._ready),
            ("GET", rf"{MODEL}/ready", self._model_ready),
            ("GET", r"/v2|/v2/models/stats", self._page),
            ("GET", rf"{MODEL}(/config|/stats)?", self._page),
            ("POST", rf"{MODEL}/infer", self._infer),
            ("POST", rf"{MODEL}/generate", self._generate),
            ("POST", rf"{MODEL}/generate_stream", self._generate_stream),
        ]
        self._table = [(method, re.compile(path, re.ASCII), handler) for method, path, handler in table]

    def find(self, head: Head) -> tuple[Handler, Mapping[str, str]]:
        """Raises Refusal where there is no such path, or not with this method."""
        path = head.path.removesuffix("/")
        if RESTRICTED.fullmatch(path):
            raise Refusal(Code.PERMISSION_DENIED, "This API is restricted")
        method = "GET" if head.method == "HEAD" else head.method
        is_path = False
        for accepted, pattern, handler in self._table:
            if match := pattern.fullmatch(path):
                is_path = True
                if method == accepted:
                    groups = {name: value or "" for name, value in match.groupdict().items()}
                    return handler, groups
        raise Refusal(Code.NOT_FOUND, "Method Not Allowed" if is_path else "Not Found", status=405 if is_path else 404)

    async def _live(self, request: Request) -> Answer:
        return _says(await self._triton.is_live())

    async def _ready(self, request: Request) -> Answer:
        return _says(await self._triton.is_ready())

    async def _model_ready(self, request: Request) -> Answer:
        if await self._triton.is_model_ready(**request.groups):
            return _says(True)
        return Answer(400, [json_text.error_body("Model version not ready")], PLAIN)

    async def _page(self, request: Request) -> Answer:
        page = await self._triton.page(request.head.path.removesuffix("/"))
        return Answer(page.status, [page.body], page.content_type)

    async def _infer(self, request: Request) -> Answer:
        length = request.head.headers.get(HEADER_LENGTH)
        parsed = read_infer_request(**request.groups, header_length=length, body=request.take_body())
        return infer_answer(parsed.outputs, await self._triton.call(INFER, parsed.message))

    async def _generate(self, request: Request) -> Answer:
        model, version = request.groups["model"], request.groups["version"]
        metadata = await self._triton.metadata(model, version)
        message = read_generate_request(metadata, version, request.take_body(), parameters={})
        if not await self._triton.is_decoupled(model, version):
            answer = service_pb2.ModelInferResponse.FromString(await self._triton.call(INFER, message))
            return Answer(200, [json_text.write(generated(answer))])
        values = []
        async with aclosing(self._responses(message)) as responses:
            async for value in responses:
                values.append(value)
                if len(values) > 1:
                    return Answer(200, [json_text.error_body(ONE_RESPONSE)])
        return Answer(200, values if values else [json_text.error_body(ONE_RESPONSE)])

    async def _generate_stream(self, request: Request) -> Answer | Stream:
        metadata = await self._triton.metadata(**request.groups)
        message = read_generate_request(metadata, request.groups["version"], request.take_body(), parameters={})
        responses = self._responses(message)
        try:
            first = await anext(responses, None)
        except Refusal as refusal:
            return Answer(refusal.status, [_event(json_text.error_body(refusal.message))], EVENTS)
        return Stream(200, _events(first, responses), EVENTS)

    async def _responses(self, message: bytes) -> AsyncGenerator[bytes]:
        """The JSON of each response that has outputs. Leaving early cancels the request.

        Raises:
            Refusal: the model's error, which ends the stream.
        """
        call = await self._triton.stream()
        try:
            await call.write(message)
            await call.done_writing()
            del message
            while (answer := await call.read()) is not grpc.aio.EOF:
                response = service_pb2.ModelStreamInferResponse.FromString(answer)
                if response.error_message:
                    raise _refusal(response.error_message)
                if response.infer_response.outputs:
                    yield json_text.write(generated(response.infer_response))
            if await call.code() != Code.OK:
                raise self._triton.refusal(await call.code(), await call.details())
        except (grpc.aio.AioRpcError, grpc.aio.UsageError):
            raise self._triton.refusal(await call.code(), await call.details()) from None
        finally:
            call.cancel()


async def _events(first: bytes | None, responses: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(responses):
        if first is not None:
            yield _event(first)
        try:
            async for response in responses:
                yield _event(response)
        except Refusal as refusal:
            yield _event(json_text.error_body(refusal.message))


def _event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _refusal(message: str) -> Refusal:
    if prefix := CODE_PREFIX.match(message):
        return Refusal(CODES.get(prefix["code"], Code.INTERNAL), message)
    return Refusal(Code.INVALID_ARGUMENT if UNSUITABLE.match(message) else Code.INTERNAL, message)


def _says(yes: bool) -> Answer:
    return Answer(200 if yes else 400, content_type=PLAIN)


class MetricsRoute:
    """The one page of the metrics port."""

    def __init__(self, triton: Triton) -> None:
        self._triton = triton

    def find(self, head: Head) -> tuple[Handler, Mapping[str, str]]:
        if head.path.removesuffix("/") != "/metrics" or head.method not in ("GET", "HEAD"):
            raise Refusal(Code.NOT_FOUND, "Not Found")
        return self._page, {}

    async def _page(self, request: Request) -> Answer:
        page = await self._triton.metrics()
        return Answer(page.status, [page.body], page.content_type)
