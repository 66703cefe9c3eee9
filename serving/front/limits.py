"""What a request may cost before Triton sees it, and what all of them together may cost."""

from __future__ import annotations

from cosmos_triton.runtime.media.limits import LIMITS, MIB

# A request
STRUCTURE_BYTES = MIB  # JSON, or what is not content of tensors in a protobuf message
BODY_BYTES = LIMITS.file_bytes + STRUCTURE_BYTES
CHUNKS = 100_000  # of a chunked body: 700 bytes each in the largest
HEAD_BYTES = 16 * 1024  # request line, headers and trailers
FIELDS = 1024  # of a protobuf message, and of the tensors in it
NAME_BYTES = 256  # request id, model, version
CONTROL_BYTES = 64 * 1024  # a gRPC request that is none for inference
JSON_NUMBERS = 1_000_000  # of one output in JSON

# Seconds
IDLE_SECONDS = 3600.0  # a connection between two requests; clients keep them open for long
HEAD_SECONDS = 30.0  # from a request's first byte to the end of its headers
STALL_SECONDS = 30.0  # without one byte of a body, or without one taken of an answer
BODY_SECONDS = 600.0  # a body as a whole, however slow the network
LINGER_SECONDS = 10.0  # for the rest of a refused body, behind which the client reads the refusal
PRIVATE_SECONDS = 3.0  # an answer of Triton's about itself
CONNECT_SECONDS = 0.3  # to a Triton that has just come back

# All requests
IN_FLIGHT_BYTES = 320 * MIB  # bodies that are arriving or being worked on, and answers that are being sent
MEMORY_BYTES = 2048 * MIB  # of this process, beyond which arriving gRPC messages are dropped
CONNECTIONS = 4096  # of each protocol
CALLS = 4096  # of gRPC
