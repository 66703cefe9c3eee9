"""gRPC transport: a response stream per request. Requests can be cancelled."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Sequence
from ipaddress import ip_address
from queue import SimpleQueue
from typing import Any
from urllib.request import proxy_bypass

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE, service_pb2, service_pb2_grpc

from cosmos_triton.client.errors import Cancelled, ServerUnreachable, WorldError, server_error
from cosmos_triton.client.tensors import MODEL, STREAM_MODEL, Tensor, bytes_of

DEFAULT_URL = "localhost:8001"

_PROBE_SECONDS = 5.0
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")  # the first one counts; gRPC reads no other spelling
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_reconnect_backoff_ms", 5_000),  # by default two minutes, in which a restarted server is not noticed
]


class GrpcTransport:
    """One channel for all requests. Thread-safe.

    gRPC connects through a proxy of the environment, but never to this machine.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._proxy = _proxy_variable(_host_of(url))
        options = [*_OPTIONS, ("grpc.enable_http_proxy", int(self._proxy is not None))]
        self._channel = grpc.insecure_channel(url, options=options)
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
            through = f" through the proxy of {self._proxy}" if self._proxy else ""
            return ServerUnreachable(f"no connection to {self._url} over grpc{through}: {message}")
        return server_error(message, code=code.name)

    def _is_live(self) -> bool:
        try:
            return self._server.ServerLive(service_pb2.ServerLiveRequest(), timeout=_PROBE_SECONDS).live
        except grpc.RpcError:
            return False


def _host_of(url: str) -> str:
    """Of host:port or [::1]:port, which may have gRPC's ipv4: or ipv6: in front."""
    host, _, port = url.rpartition(":")
    return (host if port.isdecimal() else url).removeprefix("ipv4:").removeprefix("ipv6:").strip("[]")


def _proxy_variable(host: str) -> str | None:
    """The environment variable with the proxy that gRPC would connect through, if there is one for this host."""
    if _is_loopback(host) or proxy_bypass(host):
        return None
    return next((name for name in _PROXY_VARIABLES if os.environ.get(name)), None)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback or ip_address(host).is_unspecified
    except ValueError:  # a name
        return host.lower() in ("localhost", "ip6-localhost") or host.lower().endswith(".localhost")


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
