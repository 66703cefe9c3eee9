"""The command `cosmos-triton generate`, and the options of all commands that call a server."""

from __future__ import annotations

import argparse
from pathlib import Path

from cosmos_triton.cli.commands import Commands
from cosmos_triton.cli.single import generate_file
from cosmos_triton.client.tensors import Parameters
from cosmos_triton.client.world_client import WorldClient


def add_generate(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="one video from a clip or an image",
        description="Generate one video with a running server. Exit codes: 2 bad input, 3 blocked by a guardrail, "
        "130 cancelled with Ctrl-C, 1 anything else.",
        epilog="example: cosmos-triton generate clip.mp4 --prompt 'A street in the rain.' --seed 7",
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help="a png, jpeg, webp or mp4 file")
    parser.add_argument("--prompt", help="required by video2world models, refused by base models")
    parser.add_argument(
        "--num-input-frames", type=int, metavar="N", help="1 or 9 (default: 1 for an image, 9 for a clip)"
    )
    parser.add_argument("--temperature", type=float, help="default: 1.0")
    parser.add_argument("--top-p", type=float, help="default: the model's tuned value")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--disable-diffusion-decoder", action="store_true", help="decode with the discrete tokenizer: faster, coarser"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="default: outputs/, with INPUT's name, and .mp4 after any other ending",
    )
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="also write the server's report")
    add_server_options(parser)
    parser.set_defaults(run=_generate)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Address and protocol of the server."""
    parser.add_argument("--url", metavar="HOST:PORT", help="default: localhost, at the port of the protocol")
    parser.add_argument(
        "--protocol", choices=["grpc", "http"], default="grpc", help="default: grpc; http has no progress and no cancel"
    )


def _generate(args: argparse.Namespace) -> int:
    output = args.output or default_output(args.input)
    parameters = Parameters(
        prompt=args.prompt,
        num_input_frames=args.num_input_frames,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        disable_diffusion_decoder=args.disable_diffusion_decoder,
    )
    with WorldClient(args.url, args.protocol) as client:
        return generate_file(client, args.input, parameters, output=output, output_flag="--output", report=args.report)


def default_output(visual_input: Path) -> Path:
    """Inputs of one folder have different outputs: clip.mp4 and clip.jpg become clip.mp4 and clip.jpg.mp4."""
    name = visual_input.name
    return Path("outputs", name if visual_input.suffix == ".mp4" else f"{name}.mp4")
