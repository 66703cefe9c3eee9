"""Available host memory, within the limit of the container."""

from __future__ import annotations

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # of this process, seen from inside of its container


def available_host_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> int:
    """Bytes that can be allocated without swapping, within the container's limit if there is one.

    Cached pages of files count as available: the system reclaims them.
    """
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit, used = (cgroup / "memory.max").read_text().strip(), (cgroup / "memory.current").read_text()
        files = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())["file"]
    except FileNotFoundError:
        return available
    return available if limit == "max" else min(available, int(limit) - int(used) + int(files))
