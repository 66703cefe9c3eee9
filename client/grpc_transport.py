"""Requests over gRPC: a stream of responses a request, which can be cancelled."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from queue import SimpleQueue
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE, service_pb2, service_pb2_grpc

from cosmos_triton.client.errors import Cancelled, ServerUnreachable, WorldError, server_error
from cosmos_triton.client.tensors import MODEL, STREAM_MODEL, Tensor, bytes_of

DEFAULT_URL = "localhost:8001"

_PROBE_SECONDS = 5.0
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_reconnect_backoff_ms", 5_000),  # two minutes by default, long after the server is back
]


class GrpcTransport:
    """One channel, for any number of requests from any number of threads."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._channel = grpc.insecure_channel(url, options=_OPTIONS)
        self._server = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(self, tensors: Sequence[Tensor], *, deadline: float | None) -> Generator[dict[str, bytes]]:
        """The responses as they come, each as output name -> content. Closing the iterator cancels the request."""
        request = service_pb2.ModelInferRequest(model_name=STREAM_MODEL)
        for tensor in tensors:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[1])
            request.raw_input_contents.append(tensor.raw)
        try:
            call = self._server.ModelStreamInfer(iter([request]), timeout=deadline)
        except ValueError:  # of a closed channel
            raise Cancelled("the client is closed") from None
        messages: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=_forward, args=(call, messages), daemon=True).start()
        refusal = ""
        try:
            # To the end, also after an error or the last response: a cancel that meets the server finishing a request
            # can leave it believing that the request goes on, and then it never unloads the model.
            while (message := messages.get()) is not None:
                if isinstance(message, grpc.RpcError):
                    raise self._translate(message)
                refusal = refusal or message.error_message
                response = message.infer_response
                names = (output.name for output in response.outputs)
                yield dict(zip(names, map(bytes_of, response.raw_output_contents), strict=True))
        finally:
            call.cancel()  # does nothing to a request that has ended
        if refusal:
            raise server_error(refusal, code=_guess_code(refusal))

    def model_parameters(self) -> dict[str, str]:
        """The `parameters` of the pipeline's config.pbtxt."""
        try:
            response = self._server.ModelConfig(service_pb2.ModelConfigRequest(name=MODEL), timeout=_PROBE_SECONDS)
        except grpc.RpcError as error:
            raise self._translate(error) from None
        return {name: value.string_value for name, value in response.config.parameters.items()}

    def close(self) -> None:
        self._channel.close()

    def _translate(self, error: grpc.RpcError) -> WorldError:
        code, message = error.code(), error.details()
        # A full queue and a lost connection have the same code. Only the first leaves somebody to answer.
        if code == grpc.StatusCode.UNAVAILABLE and not self._is_live():
            return ServerUnreachable(f"no connection to {self._url} over grpc: {message}")
        return server_error(message, code=code.name)

    def _is_live(self) -> bool:
        try:
            return self._server.ServerLive(service_pb2.ServerLiveRequest(), timeout=_PROBE_SECONDS).live
        except grpc.RpcError:
            return False


def _forward(call: Any, messages: SimpleQueue[Any]) -> None:
    """Hand on what the call brings: messages, then None or the error.

    In a thread of its own, because Ctrl-C in a thread that waits inside grpc can leave a lock of grpc's taken for ever.
    """
    try:
        for message in call:
            messages.put(message)
        messages.put(None)
    except grpc.RpcError as error:
        messages.put(error)


def _guess_code(message: str) -> str:
    """The code of an error in a stream, which is text alone.

    Triton has a header, `triton_grpc_error`, that makes it send the code, but release 24.10 can crash on an error that
    it sends in that way. So the pipeline tags its errors, and the server's own are known by sight.
    """
    is_away = "unknown model" in message or "no available versions" in message
    return "NOT_FOUND" if is_away else "INTERNAL"
