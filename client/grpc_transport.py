"""gRPC transport: a response stream per request. Requests can be cancelled."""

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
    ("grpc.max_reconnect_backoff_ms", 5_000),  # by default two minutes, in which a restarted server is not noticed
]


class GrpcTransport:
    """One channel for all requests. Thread-safe."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._channel = grpc.insecure_channel(url, options=_OPTIONS)
        self._server = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(self, tensors: Sequence[Tensor], *, deadline: float | None) -> Generator[dict[str, bytes]]:
        """The responses, each a dictionary from output name to content. Closing the generator cancels the request."""
        request = service_pb2.ModelInferRequest(model_name=STREAM_MODEL)
        for tensor in tensors:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[1])
            request.raw_input_contents.append(tensor.raw)
        try:
            call = self._server.ModelStreamInfer(iter([request]), timeout=deadline)
        except ValueError:  # the channel is closed
            raise Cancelled("the client is closed") from None
        messages: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=_forward, args=(call, messages), daemon=True).start()
        error_message = ""
        try:
            # Read to the end, also after an error or the final response: if a cancellation arrives while the server
            # completes the request, it may count the request as running for ever and never unload the model.
            while (message := messages.get()) is not None:
                if isinstance(message, grpc.RpcError):
                    raise self._translate(message)
                error_message = error_message or message.error_message
                response = message.infer_response
                names = (output.name for output in response.outputs)
                yield dict(zip(names, map(bytes_of, response.raw_output_contents), strict=True))
        finally:
            call.cancel()  # has no effect once the request has ended
        if error_message:
            raise server_error(error_message, code=_guess_code(error_message))

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
        # A full queue and a lost connection have the same code. Only in the first case is the server live.
        if code == grpc.StatusCode.UNAVAILABLE and not self._is_live():
            return ServerUnreachable(f"no connection to {self._url} over grpc: {message}")
        return server_error(message, code=code.name)

    def _is_live(self) -> bool:
        try:
            return self._server.ServerLive(service_pb2.ServerLiveRequest(), timeout=_PROBE_SECONDS).live
        except grpc.RpcError:
            return False


def _forward(call: Any, messages: SimpleQueue[Any]) -> None:
    """Put the call's messages into the queue, then None or the error.

    This runs in a separate thread, because Ctrl-C in a thread that waits inside grpc can leave one of its locks held.
    """
    try:
        for message in call:
            messages.put(message)
        messages.put(None)
    except grpc.RpcError as error:
        messages.put(error)


def _guess_code(message: str) -> str:
    """The code of an error in a stream, which carries a message only.

    Triton would send the code if a request had the header `triton_grpc_error`, but release 24.10 can crash on such an
    error. So the pipeline puts the code into its messages, and Triton's own are recognised by their text.
    """
    is_not_found = "unknown model" in message or "no available versions" in message
    return "NOT_FOUND" if is_not_found else "INTERNAL"
