"""The addresses that clients connect to."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from cosmos_triton.runtime.errors import CosmosError

ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # every interface, and how it is reached from this machine


class StartError(CosmosError):
    """The server did not become ready."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """host: a name, or an address of IPv4 or IPv6, without brackets."""

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002

    @property
    def reachable_host(self) -> str:
        """The server's address on this machine, as in a URL."""
        host = ANY.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host

    def check_free(self) -> None:
        """Raises StartError where a port is in use, so that another server is not taken for this one."""
        for name in ("http_port", "grpc_port", "metrics_port"):
            port = getattr(self, name)
            try:
                bind(self.host, port).close()
            except socket.gaierror as error:
                raise StartError(f"--host: value {self.host}; accepted: an address of this machine: {error}") from None
            except (OSError, OverflowError) as error:
                option = f"--{name.replace('_', '-')}"
                reason = error.strerror if isinstance(error, OSError) else error
                raise StartError(f"{option}: value {port}; accepted: a free port of {self.host}: {reason}") from None


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound, but does not listen. `::` is every address, those of IPv4 too.

    Raises:
        OSError: the address cannot be had.
    """
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    bound = socket.socket(family, kind)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound
