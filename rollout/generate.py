"""Generate images with a trained policy, from the command line.

    python -m rollout.generate --model DIR_OR_HUB_ID --prompt "a striped green heart" --num-images 4 --output-dir DIR

The policy is prompted in the format that it was trained with, and sampled by the same engine as in training.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from configs.command_line import exit_code_of
from configs.errors import DataError
from rollout.drawing_options import DrawingOptions, add_drawing_arguments, whole
from rollout.prompts import load_prompts
from rollout.prompts.files import BadRecord, parse_prompt
from rollout.prompts.source import summarize_skipped
from rollout.records import GroupRollout, Prompt, UInt8Array
from rollout.vllm.settings import quiet_environment

MAX_BAD_LINES = 100

EXAMPLES = """\
examples:
  python -m rollout.generate --model runs/shapes_cpu/checkpoints/step_000080/model --prompt "two red stars"
  python -m rollout.generate --model deepseek-community/Janus-Pro-1B --prompts prompts.txt --output-dir pictures

Every picture has a line in OUTPUT_DIR/images.jsonl: file, prompt, plan, seeds and settings.
Exit codes: 0 all drawn, 1 the engine failed, 2 wrong input, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse_arguments(argv)
    return exit_code_of(partial(_generate, arguments), "the pictures written so far are complete")


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m rollout.generate",
        description="Draw pictures with a Janus policy: it writes a plan of the picture first, then draws by it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument("--num-images", type=whole(1), default=4, help="pictures a prompt; default: %(default)s")
    parser.add_argument(
        "--images-per-cot", type=whole(1), default=1, help="pictures drawn by each plan; divides --num-images"
    )
    add_drawing_arguments(parser)
    return parser


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """What is drawn, by what, and where to."""
    parser.add_argument("--model", required=True, metavar="DIR_OR_HUB_ID", help="a checkpoint folder, or OWNER/NAME")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="what to draw; may be given several times")
    source.add_argument(
        "--prompts",
        metavar="FILE",
        help="a .txt, .jsonl, .json, .csv or .parquet file of prompts, or shapes:SPLIT:NUM",
    )
    parser.add_argument("--output-dir", type=Path, default=Path("generated"), help="default: %(default)s")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options, named as the fields of `DrawingOptions`; exits with 2 for wrong ones."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.num_images % arguments.images_per_cot:
        parser.error(
            f"--num-images {arguments.num_images} is no multiple of --images-per-cot {arguments.images_per_cot}"
        )
    return arguments


def read_prompts(arguments: argparse.Namespace, console: Console) -> tuple[Prompt, ...]:
    """Those that `add_source_arguments` asks for; what is skipped is told on the console. Raises DataError."""
    if arguments.prompt:
        return tuple(_prompt_of(text, f"prompt:{index}") for index, text in enumerate(arguments.prompt))
    prompts = load_prompts(arguments.prompts, MAX_BAD_LINES)
    if prompts.skipped:
        console.print(f"{len(prompts.skipped)} bad records are skipped:", style="yellow")
        console.print(summarize_skipped(prompts.skipped), markup=False, highlight=False)
    return prompts.prompts


def _prompt_of(text: str, prompt_id: str) -> Prompt:
    try:
        return parse_prompt({"prompt": text}, prompt_id)
    except BadRecord as error:
        raise DataError(f"--prompt {text!a}: {error}") from error


def _generate(arguments: argparse.Namespace) -> int:
    console = Console()
    prompts = read_prompts(arguments, console)
    os.environ.update(quiet_environment())  # before torch is imported, which reads its part once
    # Here, so that --help and a mistyped option are answered at once.
    from rollout.drawing import draw
    from rollout.pictures import PictureWriter

    options = DrawingOptions.of(arguments)
    settings = {"model": options.model, "temperature": options.temperature, "seed": options.seed}
    writer = PictureWriter(arguments.output_dir, settings)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("loading the model", total=len(prompts) * options.num_images)

        def show(rollout: GroupRollout, pictures: UInt8Array) -> None:
            paths = writer.write(rollout, pictures)
            console.print(describe(rollout, paths), markup=False, highlight=False, soft_wrap=True)
            progress.update(task, description="drawing", advance=len(paths))

        asyncio.run(draw(options, prompts, show))
    return 0


def describe(rollout: GroupRollout, paths: Sequence[Path]) -> str:
    """The prompt, each plan once, and below it the files drawn by it."""
    lines = [rollout.request.prompt.text]
    for index, (trajectory, path) in enumerate(zip(rollout.trajectories, paths, strict=True)):
        if index % rollout.request.images_per_cot == 0 and trajectory.cot_text:
            lines.append(f"  plan: {trajectory.cot_text}")
        lines.append(f"    {path}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
