"""Units of memory."""

from __future__ import annotations

GB = 10**9  # of options, tables and messages
MIB = 2**20  # of the server's rate limiter
