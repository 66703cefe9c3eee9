"""What the front adds to a request: each goes to it, and in turns to the private sockets of the tritonserver behind.

    cosmos-triton serve --deployment tiny --checkpoint-dir checkpoints/tiny
    python benchmarks/front.py

A request carries `--megabytes` that are no film, so that the pipeline refuses them at once, and what is measured is
little else than transport. Run it as the user who started the server, on the same machine. The front's CPU time is what
it takes from the stages on a machine whose cores are all at work.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import statistics
import struct
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
from tritonclient.grpc import service_pb2

from cosmos_triton.serving.private_sockets import PrivateSockets

MODEL = "world_generation"
INFER = "/inference.GRPCInferenceService/ModelInfer"


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self.path))


def front_of(port: int) -> psutil.Process:
    """The front that listens on `port`."""
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if "cosmos_triton.serving.front" in arguments and f"--http-port={port}" in arguments:
            return process
    raise SystemExit(f"--http-port: value {port}; accepted: the port of a running server of this user")


def http_call(connection: http.client.HTTPConnection, raw: bytes) -> Callable[[], None]:
    tensor = {"name": "visual_input", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    header = json.dumps({"inputs": [tensor]}).encode()

    def call() -> None:
        headers = {"Inference-Header-Content-Length": str(len(header))}
        connection.request("POST", f"/v2/models/{MODEL}/infer", header + raw, headers)
        response = connection.getresponse()
        assert response.status == http.HTTPStatus.BAD_REQUEST, response.read()
        response.read()

    return call


def grpc_call(url: str, raw: bytes) -> Callable[[], None]:
    infer = grpc.insecure_channel(url, options=[("grpc.max_send_message_length", -1)]).unary_unary(INFER)
    request = service_pb2.ModelInferRequest(model_name=MODEL, raw_input_contents=[raw])
    request.inputs.add(name="visual_input", datatype="BYTES", shape=[1])
    message = request.SerializeToString()

    def call() -> None:
        call = infer.future(message)
        assert call.code() == grpc.StatusCode.INVALID_ARGUMENT, call.details()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--megabytes", type=float, default=1, help="of a request (default: 1)")
    parser.add_argument("--runs", type=int, default=100, help="requests of each kind (default: 100)")
    args = parser.parse_args()
    front = front_of(args.http_port)
    (folder,) = (value[len("--sockets=") :] for value in front.cmdline() if value.startswith("--sockets="))
    sockets = PrivateSockets(Path(folder))
    content = bytes(int(args.megabytes * 1e6))
    raw = struct.pack("<I", len(content)) + content
    calls = {
        "HTTP, front": http_call(http.client.HTTPConnection("127.0.0.1", args.http_port), raw),
        "HTTP, direct": http_call(UnixConnection(sockets.http), raw),
        "gRPC, front": grpc_call(f"127.0.0.1:{args.grpc_port}", raw),
        "gRPC, direct": grpc_call(f"unix:{sockets.grpc}", raw),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in calls}
    cpu = dict.fromkeys(calls, 0.0)
    for _ in range(args.runs):
        for name, call in calls.items():
            used, began = sum(front.cpu_times()[:2]), time.perf_counter()
            call()
            milliseconds[name].append(1e3 * (time.perf_counter() - began))
            cpu[name] += 1e3 * (sum(front.cpu_times()[:2]) - used)
    print(f"{args.megabytes:g} MB, {args.runs} runs, load average {psutil.getloadavg()[0]:.1f}")
    print("ms                best  median   front's CPU")
    for name, values in milliseconds.items():
        print(f"{name:<16}{min(values):>6.1f}{statistics.median(values):>8.1f}{cpu[name] / args.runs:>14.1f}")


if __name__ == "__main__":
    main()
