"""Client library: generate videos with a running server."""

from cosmos_triton.client.errors import (
    Cancelled,
    DeadlineExceeded,
    GuardrailBlocked,
    InvalidInput,
    ServerBusy,
    ServerFailed,
    ServerUnreachable,
    WorldError,
)
from cosmos_triton.client.tensors import Parameters
from cosmos_triton.client.world_client import Event, Generation, WorldClient

__all__ = [
    "Cancelled",
    "DeadlineExceeded",
    "Event",
    "Generation",
    "GuardrailBlocked",
    "InvalidInput",
    "Parameters",
    "ServerBusy",
    "ServerFailed",
    "ServerUnreachable",
    "WorldClient",
    "WorldError",
]
