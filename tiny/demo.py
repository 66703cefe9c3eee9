"""`make demo`: a clip and an image through the whole pipeline, with tiny checkpoints and a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosmos_triton.export.checkpoints.convert import convert
from cosmos_triton.export.checkpoints.verify import require
from cosmos_triton.runtime.deployments import DEPLOYMENTS
from cosmos_triton.runtime.errors import CheckpointError
from cosmos_triton.serving.ports import free_ports
from cosmos_triton.tiny.checkpoint_tree import write_tiny_tree
from cosmos_triton.tiny.contact_sheet import contact_sheet
from cosmos_triton.tiny.sample_media import write_samples

DEPLOYMENT = "tiny-video2world"
PROMPT = "The camera drives along a country road, past trees and hills, towards the evening sun."
CHECKPOINTS = Path("checkpoints/tiny")
OUTPUTS = Path("outputs")
STOP_SECONDS = 60
LOG_SHOWN = 2000  # characters
COMMAND = str(Path(sys.executable).with_name("cosmos-triton"))


def main() -> int:
    if not are_usable(CHECKPOINTS):
        print("making tiny checkpoints, with random weights")
        write_tiny_tree(CHECKPOINTS)
        convert(CHECKPOINTS)
    clip, still = write_samples(OUTPUTS / "samples")
    arguments = ["--deployment", DEPLOYMENT, "--checkpoint-dir", str(CHECKPOINTS)]
    with served(arguments, OUTPUTS / "server.log") as url:
        for source in (clip, still):
            generate(source, url)
    print(f"videos and contact sheets are in {OUTPUTS}/; the weights are random, so what was generated is noise")
    return 0


def generate(source: Path, url: str) -> None:
    """Writes a video, its report, and a contact sheet of it."""
    video = OUTPUTS / f"{source.stem}_{source.suffix[1:]}.mp4"
    report_file = video.with_suffix(".json")
    command = [COMMAND, "generate", str(source), "--prompt", PROMPT, "--url", url]
    subprocess.run([*command, "--output", str(video), "--report", str(report_file)], check=True)
    report = json.loads(report_file.read_text())
    print(json.dumps(report, indent=2))
    sheet = contact_sheet(
        source.read_bytes(), video.read_bytes(), input_frames=report["parameters"]["num_input_frames"]
    )
    video.with_suffix(".jpg").write_bytes(sheet)


def are_usable(checkpoints: Path) -> bool:
    """Whether the tiny checkpoints exist and are those of this version."""
    try:
        require(checkpoints, DEPLOYMENTS[DEPLOYMENT])
    except CheckpointError:
        return False
    return True


@contextmanager
def served(arguments: list[str], log_file: Path) -> Iterator[str]:
    """Run `cosmos-triton serve` with `arguments` on free ports; yields its gRPC address once it is ready."""
    ports = free_ports(3)
    command = [COMMAND, "serve", *arguments]
    names = ("http", "grpc", "metrics")
    command += [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]
    with log_file.open("w") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert server.stdout is not None
    try:
        line = server.stdout.readline()
        if not line:
            raise SystemExit(f"the server did not start; {log_file} ends with:\n{log_file.read_text()[-LOG_SHOWN:]}")
        print(line, end="")
        yield f"127.0.0.1:{ports[1]}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(STOP_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
