"""The front's process: `python -m cosmos_triton.serving.front --host HOST ...`, started and watched by `serve`.

Writes a byte to standard output when it listens, and then each second, so that who started it sees that it lives.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

from cosmos_triton.serving.addresses import Addresses, bind
from cosmos_triton.serving.front.budget import Budget
from cosmos_triton.serving.front.grpc_proxy import GrpcProxy, grpc_server
from cosmos_triton.serving.front.listener import Listener
from cosmos_triton.serving.front.routes import MetricsRoute, Routes
from cosmos_triton.serving.front.triton import Triton
from cosmos_triton.serving.private_sockets import PrivateSockets

BEAT_SECONDS = 1.0
STOP_SECONDS = 3.0  # for answers that are being sent


async def serve(addresses: Addresses, sockets: PrivateSockets) -> None:
    """Serve until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    triton, budget = Triton(sockets), Budget()
    http, metrics = Listener(Routes(triton).find, budget), Listener(MetricsRoute(triton).find, budget)
    proxy = GrpcProxy(triton, budget)
    grpc = grpc_server(proxy, addresses.host, addresses.grpc_port)
    await http.start(bind(addresses.host, addresses.http_port))
    await metrics.start(bind(addresses.host, addresses.metrics_port))
    await grpc.start()
    beat, guard = asyncio.create_task(_beat()), asyncio.create_task(proxy.guard())
    ended = asyncio.create_task(stopped.wait())
    await asyncio.wait((beat, guard, ended), return_when=asyncio.FIRST_COMPLETED)
    await asyncio.gather(http.stop(STOP_SECONDS), metrics.stop(STOP_SECONDS), grpc.stop(STOP_SECONDS))
    await triton.close()
    for task in (beat, guard, ended):
        task.cancel()


async def _beat() -> None:
    """Ends when nobody reads any more."""
    try:
        while True:
            os.write(sys.stdout.fileno(), b".")
            await asyncio.sleep(BEAT_SECONDS)
    except BrokenPipeError:
        return


def main() -> None:
    parser = argparse.ArgumentParser(prog="front")
    parser.add_argument("--host", required=True)
    for name in ("http", "grpc", "metrics"):
        parser.add_argument(f"--{name}-port", type=int, required=True)
    parser.add_argument("--sockets", type=Path, required=True, help="folder of tritonserver's private sockets")
    args = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    addresses = Addresses(args.host, args.http_port, args.grpc_port, args.metrics_port)
    try:
        asyncio.run(serve(addresses, PrivateSockets(args.sockets)))
    except OSError as error:
        sys.exit(f"front: {error}")


if __name__ == "__main__":
    main()
