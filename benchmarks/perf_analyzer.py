"""Triton's own load generator, perf_analyzer, on world_generation of a running server.

    cosmos-triton serve --deployment tiny --checkpoint-dir checkpoints/tiny
    python benchmarks/perf_analyzer.py clip.mp4 --concurrency 1 4
    python benchmarks/perf_analyzer.py clip.mp4 --prompt "A quiet street." -- --percentile 95 -f latencies.csv

The first run installs the program, from the tritonclient wheel, and two libraries that it needs into the folder
perf_analyzer/ of the environment. It needs Debian or Ubuntu on x86-64. Options after `--` are passed on to the program:
`FILE -- --help` lists them.

Only the client's columns are meaningful. The server's columns measure the time until the pipeline has accepted a
request; it answers later.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM_WHEEL = "tritonclient==2.46.0"  # the last release that includes the program
CUDA_WHEEL = "nvidia-cuda-runtime-cu12==12.9.79"
DEBIAN_PACKAGE = "libb64-0d"
INSTALLED = Path(sys.prefix, "perf_analyzer")


def install() -> None:
    """Download the program and its libraries, unless they are installed."""
    if INSTALLED.exists():
        return
    with tempfile.TemporaryDirectory(prefix=".perf_analyzer-", dir=sys.prefix) as temporary:
        folder = Path(temporary, "tree")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, "--target", folder, PROGRAM_WHEEL, CUDA_WHEEL], check=True)
        try:
            subprocess.run(["apt-get", "--quiet=2", "download", DEBIAN_PACKAGE], cwd=temporary, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(f"{DEBIAN_PACKAGE}: {error}; on Debian or Ubuntu: apt-get update, then again") from None
        [package] = Path(temporary).glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
        shutil.move(folder, INSTALLED)


def environment() -> dict[str, str]:
    """The environment variables with which the program finds its libraries."""
    folders = {str(library.parent) for library in INSTALLED.rglob("*.so.*")}
    inherited = os.environ.get("LD_LIBRARY_PATH")
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join([*sorted(folders), *([inherited] if inherited else [])])}


def bytes_tensor(content: bytes) -> dict[str, str]:
    """A BYTES tensor of one element, as in Triton's binary format: a length and the bytes."""
    return {"b64": base64.b64encode(struct.pack("<I", len(content)) + content).decode()}


def write_input(path: Path, visual_input: bytes, prompt: str | None) -> None:
    """Write the input file of perf_analyzer."""
    request: dict[str, object] = {"visual_input": bytes_tensor(visual_input)}
    if prompt is not None:
        request["prompt"] = bytes_tensor(prompt.encode())
    path.write_text(json.dumps({"data": [request]}))


def run(args: argparse.Namespace, options: list[str]) -> int:
    install()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "input.json")
        write_input(path, args.visual_input.read_bytes(), args.prompt)
        command = [INSTALLED / "bin" / "perf_analyzer", "-m", "world_generation", "-i", args.protocol, "-u", args.url]
        command += ["--async", "--input-data", path, "--request-count", str(args.requests)]
        # One run per concurrency: for a range, the program requires stable measurement windows, which a few requests
        # of seconds each do not give.
        codes = [
            subprocess.run([*command, "--concurrency-range", str(n), *options], env=environment()).returncode
            for n in args.concurrency
        ]
        return max(codes, key=abs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.usage = "%(prog)s [options] FILE [-- perf_analyzer's own options]"
    parser.add_argument("visual_input", type=Path, metavar="FILE", help="the image or clip of every request")
    parser.add_argument("--prompt", metavar="TEXT", help="for Video2World deployments")
    parser.add_argument("--protocol", choices=["grpc", "http"], default="grpc", help="default: grpc")
    parser.add_argument("--url", metavar="HOST:PORT", help="default: localhost, port 8001 (grpc) or 8000 (http)")
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=[1], metavar="N", help="requests in flight (default: 1)"
    )
    parser.add_argument("--requests", type=int, default=10, help="of each measurement (default: 10)")
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser.parse_args(arguments[:end])
    if not args.visual_input.is_file():
        parser.error(f"FILE: value {args.visual_input}; accepted: an image or a clip")
    args.url = args.url or {"grpc": "localhost:8001", "http": "localhost:8000"}[args.protocol]
    return run(args, arguments[end + 1 :])


if __name__ == "__main__":
    sys.exit(main())
