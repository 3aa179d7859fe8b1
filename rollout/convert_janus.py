"""Converts Janus checkpoints between their authors' format and the Hugging Face folder that bicot trains.

    python -m rollout.convert_janus deepseek-ai/Janus-Pro-7B janus-pro-7b
    python -m rollout.convert_janus CaraJ/T2I-R1 t2i-r1 --roles User,Assistant
    python -m rollout.convert_janus runs/NAME/checkpoints/step_001600/model for-the-authors-code --like janus-pro-7b

The direction follows from SOURCE's own config.json. Nothing is computed: values and dtypes stay as they are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from configs.command_line import exit_code_of
from configs.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code_of(partial(_convert, build_parser().parse_args(argv)), "nothing was written")


def build_parser() -> argparse.ArgumentParser:
    """Of the command line; exits with 2 for wrong options."""
    command = argparse.ArgumentParser(
        prog="python -m rollout.convert_janus",
        description="Convert a Janus checkpoint between its authors' format and transformers'.",
        epilog=__doc__.split("\n\n", 1)[1] if __doc__ else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("source", metavar="SOURCE", help="a checkpoint folder, or OWNER/NAME on the hub")
    command.add_argument("target", metavar="TARGET", type=Path, help="the folder to write; must not exist")
    command.add_argument("--revision", help="git revision of a hub id")
    command.add_argument(
        "--roles",
        default="<|User|>,<|Assistant|>",
        metavar="USER,ASSISTANT",
        help="how the chat template calls the two sides; T2I-R1 was trained with User,Assistant; default: %(default)s",
    )
    command.add_argument(
        "--like",
        metavar="DIR",
        type=Path,
        help="for the way back: take the small files and unused tensors from this checkpoint",
    )
    command.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="of a file of weights; default: %(default)s"
    )
    return command


def _convert(options: argparse.Namespace) -> int:
    # Here, so that --help is answered at once.
    from rollout.conversion import convert_to_hugging_face, convert_to_original
    from rollout.conversion.folders import read_json
    from rollout.conversion.weights import PATTERNS
    from rollout.janus_checkpoint import Roles, resolve_folder

    user, _, assistant = options.roles.partition(",")
    if not user.strip() or not assistant.strip():
        raise ConfigError(f"--roles '{options.roles}': give two names with a comma between them, as in User,Assistant")
    source = resolve_folder(options.source, options.revision, weight_files=PATTERNS)
    if read_json(source / "config.json").get("model_type") == "janus":
        missing = convert_to_original(source, options.target, options.like, options.max_shard_size)
        if missing:
            print(f"left out, and never used by the authors' code: {', '.join(missing)} (--like DIR takes them over)")
    else:
        roles = Roles(user.strip(), assistant.strip())
        convert_to_hugging_face(source, options.target, roles, options.max_shard_size)
    print(f"written: {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
