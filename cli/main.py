"""The command `cosmos-triton`. Subcommands import what they need when they run: the client works without torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from cosmos_triton.cli import (
    checkpoints_command,
    export_command,
    generate_command,
    plan_command,
    serve_command,
    source_commands,
)
from cosmos_triton.cli.exit_codes import FAILED, INTERRUPTED, print_error
from cosmos_triton.cli.messages import accept_any_character, print_problem
from cosmos_triton.client.errors import WorldError
from cosmos_triton.runtime.errors import CosmosError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    accept_any_character()
    parser = argparse.ArgumentParser(
        prog="cosmos-triton", description="Cosmos autoregressive world models, served by Triton."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    checkpoints_command.add_checkpoints(commands)
    export_command.add_export(commands)
    plan_command.add_plan(commands)
    serve_command.add_serve(commands)
    generate_command.add_generate(commands)
    source_commands.add_base(commands)
    source_commands.add_video2world(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except WorldError as error:
        return print_error(error)
    except CosmosError as error:
        print(error, file=sys.stderr)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cosmos_triton"):
            raise
        print(f"{error}: this command needs the server packages: pip install 'cosmos-triton[server]'", file=sys.stderr)
    except OSError as error:  # such as a full disk or a missing permission
        print_problem(f"{error.filename}: {error.strerror}" if error.filename else error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return FAILED
