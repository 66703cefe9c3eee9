"""The commands `base` and `video2world`: the flags of the reference's scripts, with a running server instead."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cosmos_triton.cli.batch import FOLDER_FLAG, Batch
from cosmos_triton.cli.batch_file import read_batch
from cosmos_triton.cli.batch_results import FILE
from cosmos_triton.cli.commands import Commands
from cosmos_triton.cli.generate_command import add_server_options
from cosmos_triton.cli.single import generate_file
from cosmos_triton.client.errors import InvalidInput, ServerFailed
from cosmos_triton.client.tensors import Parameters
from cosmos_triton.client.world_client import WorldClient
from cosmos_triton.runtime.deployments import DEPLOYMENTS, Deployment
from cosmos_triton.runtime.releases import RELEASES

# Memory flags of the scripts, which the server's memory plan replaces.
_OFFLOAD_FLAGS = (
    "--offload_guardrail_models",
    "--offload_diffusion_decoder",
    "--offload_ar_model",
    "--offload_tokenizer",
    "--offload_text_encoder_model",
    "--offload_prompt_upsampler",
)


def add_base(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "base",
        allow_abbrev=False,
        help="the reference's base.py: a clip or an image to a video",
        description="The flags of the reference's base.py, against a running server with a base model (4B, 12B).",
        epilog="example: cosmos-triton base --input_type=video --input_image_or_video_path=clip.mp4",
    )
    parser.set_defaults(run=_run, is_video2world=False, prompt=None, input_prompts_path=None)
    parser.add_argument("--input_type", choices=["video", "image"], default="video", help="default: video")
    _add_common(parser)


def add_video2world(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "video2world",
        allow_abbrev=False,
        help="the reference's video2world.py: a clip or an image, and a text, to a video",
        description="The flags of the reference's video2world.py, against a running server with a video2world model "
        "(5B, 13B).",
        epilog="example: cosmos-triton video2world --input_image_or_video_path=clip.mp4 --prompt='A street.'",
    )
    parser.set_defaults(run=_run, is_video2world=True)
    parser.add_argument(
        "--input_type",
        choices=["text_and_video", "text_and_image"],
        default="text_and_video",
        help="default: text_and_video",
    )
    parser.add_argument("--prompt", help="the text for a single video")
    parser.add_argument(
        "--input_prompts_path",
        type=Path,
        metavar="JSONL",
        help="prompts for a batch, line by line, where the batch file has none",
    )
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input_image_or_video_path", type=Path, metavar="FILE", help="the input of a single video")
    parser.add_argument(
        "--batch_input_path",
        type=Path,
        metavar="JSONL",
        help='one {"visual_input": "clip.mp4"} a line, with a "prompt" for video2world; line N, from 0, becomes N.mp4',
    )
    parser.add_argument("--video_save_name", default="output", help="of a single video (default: output)")
    parser.add_argument(
        "--video_save_folder", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs/"
    )
    parser.add_argument("--num_input_frames", type=int, default=9, help="of a clip, the last ones (default: 9)")
    parser.add_argument("--temperature", type=float, help="default: 1.0")
    parser.add_argument("--top_p", type=float, help="default: the model's tuned value")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--disable_diffusion_decoder", action="store_true", help="decode with the discrete tokenizer")
    parser.add_argument("--ar_model_dir", metavar="NAME", help="the model that the server must run")
    parser.add_argument("--checkpoint_dir", metavar="DIR", help="ignored; the server has its own")
    parser.add_argument("--num_gpus", type=int, metavar="N", help="ignored; the server has its own")
    parser.add_argument("--disable_guardrail", action="store_true", help="refused; guardrails cannot be disabled")
    for flag in _OFFLOAD_FLAGS:
        parser.add_argument(flag, action="store_true", help="ignored; the server plans its memory")
    parser.add_argument(
        "--concurrency", type=int, default=4, metavar="N", help="requests of a batch in flight (default: 4)"
    )
    add_server_options(parser)


def _run(args: argparse.Namespace) -> int:
    _check_combination(args)
    _warn_about_unused(args)
    with WorldClient(args.url, args.protocol) as client:
        deployment = _deployment_of(client, args)
        return _run_batch(args, client, deployment) if _is_batch(args) else _run_single(args, client)


def _run_single(args: argparse.Namespace, client: WorldClient) -> int:
    parameters = _parameters(args)
    parameters["prompt"] = args.prompt
    output = args.video_save_folder / f"{args.video_save_name}.mp4"
    return generate_file(
        client,
        args.input_image_or_video_path,
        parameters,
        output=output,
        output_flag=f"--video_save_name in {FOLDER_FLAG}",
    )


def _run_batch(args: argparse.Namespace, client: WorldClient, deployment: Deployment) -> int:
    path = args.batch_input_path or args.input_prompts_path
    _check_is_not_results(args)
    try:
        lines = read_batch(path, prompts_path=args.input_prompts_path, takes_prompt=args.is_video2world)
    except OSError as error:
        raise InvalidInput(f"{error.filename}: {error.strerror}") from None
    return Batch(
        path=path,
        lines=lines,
        parameters=_parameters(args),
        folder=args.video_save_folder,
        deployment=deployment.ar_folder,
        concurrency=args.concurrency,
    ).run(client)


def _check_is_not_results(args: argparse.Namespace) -> None:
    results = os.path.realpath(args.video_save_folder / FILE)
    for flag, path in (
        ("--batch_input_path", args.batch_input_path),
        ("--input_prompts_path", args.input_prompts_path),
    ):
        if path and os.path.realpath(path) == results:
            raise InvalidInput(f"{flag}: value {str(path)!r}; accepted: a file other than the batch's own results")


def _is_batch(args: argparse.Namespace) -> bool:
    return bool(args.batch_input_path or args.input_prompts_path)


def _parameters(args: argparse.Namespace) -> Parameters:
    return Parameters(
        num_input_frames=1 if args.input_type.endswith("image") else args.num_input_frames,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        disable_diffusion_decoder=args.disable_diffusion_decoder,
    )


def _check_combination(args: argparse.Namespace) -> None:
    if _is_batch(args) == bool(args.input_image_or_video_path):
        raise InvalidInput("give --input_image_or_video_path for one video, or --batch_input_path for a batch")
    if args.is_video2world and _is_batch(args) == (args.prompt is not None):
        raise InvalidInput("give --prompt for one video; in a batch each line has its own")
    if args.disable_guardrail:
        raise InvalidInput("--disable_guardrail: value given; accepted: none, since guardrails cannot be disabled")
    if args.concurrency < 1:
        raise InvalidInput(f"--concurrency: value {args.concurrency}; accepted: 1 and more")


def _warn_about_unused(args: argparse.Namespace) -> None:
    offload = [flag for flag in _OFFLOAD_FLAGS if getattr(args, flag.removeprefix("--"))]
    if offload:
        flags = ", ".join(offload)
        print(
            f"{flags}: not needed, memory is the scheduler's: see `cosmos-triton plan` on the server", file=sys.stderr
        )
    if args.checkpoint_dir:
        print("--checkpoint_dir: not used, the server has its own: see `cosmos-triton serve`", file=sys.stderr)
    if args.num_gpus is not None:
        print("--num_gpus: not used, the server has GPUs of its own: see `cosmos-triton serve`", file=sys.stderr)


def _deployment_of(client: WorldClient, args: argparse.Namespace) -> Deployment:
    """The server's deployment.

    Raises:
        InvalidInput: it is not the one that the command line expects.
        ServerFailed: it is unknown.
    """
    name = client.deployment()
    if name not in DEPLOYMENTS:
        raise ServerFailed(f"the server runs a deployment {name!r}, which this client does not know")
    release = client.release()
    if release not in RELEASES:
        raise ServerFailed(f"the server runs a release {release!r}, which this client does not know")
    deployment = DEPLOYMENTS[name].of(RELEASES[release])
    if args.ar_model_dir and Path(args.ar_model_dir).name != deployment.ar_folder:
        raise InvalidInput(f"--ar_model_dir: value {args.ar_model_dir}; accepted: {deployment.ar_folder}, the server's")
    if args.is_video2world != deployment.is_video2world:
        command = "video2world" if deployment.is_video2world else "base"
        raise InvalidInput(f"the server runs {deployment.ar_folder}, whose command is `cosmos-triton {command}`")
    return deployment
