"""Score a folder of pictures, from the command line; needs no Ray.

    python -m rewards.score --rewards hps,grounding_dino --prompts FILE --images DIR --output scores.jsonl

    DIR + FILE ─► pairs ─► read, WINDOW at a time ─► a RewardWorker each reward, all at once ─► a line a picture

The rewards run as in training, in batches across pictures of one size. A picture that cannot be read, and a reward
that fails on a picture, are named, counted, and stop nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from configs.command_line import exit_code_of
from configs.schema import RewardConfig
from rewards.calling import Answer
from rewards.pictures import match_pictures, read_picture
from rewards.pictures.pairs import Pair, Skipped
from rewards.scoring import ScoreFile, Summary, add_reward_arguments, check_reward_arguments, choose_rewards
from rewards.scoring.output import as_line
from rewards.worker import RewardWorker
from rollout.records import UInt8Array

WINDOW = 64
"""Pictures that are in memory at once; more where a prompt has more and a reward compares them."""
LINE_WIDTH = 200
"""Characters of the summary's lines where it goes into a file and not onto a screen."""

EXAMPLES = """\
prompts: .jsonl, .json, .csv, .parquet or .txt, as for training.

which prompt belongs to which picture:
  Records of the prompts file with a field 'image' (or 'file', as in the images.jsonl of rollout.generate) name their
  picture in DIR. Without it, pictures go to the records in the order of the numbers in their names (2.png before
  10.png; a name of another form is refused); with twice as many pictures as records, the first two belong to the first
  record, and so on. Hidden files are no pictures.

examples:
  python -m rewards.score --rewards hps,aesthetic --prompts prompts.jsonl --images pictures --output scores.jsonl
  python -m rewards.score --config my_run.yaml --prompts generated/images.jsonl --images generated
  python -m rewards.score --rewards my_rewards:brightness --prompts prompts.txt --images pictures
  python -m rewards.score --rewards hps --set hps.model=HPS.pt --set hps.batch_size=8 --prompts p.txt --images pictures

Each line of the output: {"image", "prompt", "prompt_id", "scores": {reward: {"value", "parts"}}}; a reward that does
not apply to a prompt is null there, one that failed has {"error"} instead. What was skipped is in OUTPUT.skipped.jsonl.
Exit codes: 0 all scored, 1 something was skipped or failed, 2 wrong input, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse_arguments(argv)
    return exit_code_of(partial(_score, arguments), "the lines written so far are complete")


def _score(arguments: argparse.Namespace) -> int:
    console = Console(width=None if sys.stdout.isatty() else LINE_WIDTH)
    configs = choose_rewards(arguments.rewards, arguments.config, arguments.set, arguments.device)
    names = [config.name for config in configs]
    pairs, skipped = match_pictures(arguments.prompts, arguments.images)
    summary = Summary(names)
    output = ScoreFile(
        arguments.output, arguments.prompts, names, resume=arguments.resume, overwrite=arguments.overwrite
    )
    with output:
        for line in output.lines:
            summary.add(line)
        missing = [pair for pair in pairs if not output.is_done(pair)]
        if len(missing) < len(pairs):
            console.print(f"{len(pairs) - len(missing)} of {len(pairs)} pictures are scored already")
        asyncio.run(_score_folder(arguments, configs, missing, skipped, output, summary, console))
        output.write_skipped(skipped)
    summary.show(skipped, output.skipped_path, console)
    console.print(f"scores: {arguments.output}", markup=False, highlight=False, soft_wrap=True)
    return 1 if skipped or summary.num_failed else 0


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m rewards.score",
        description="Score a folder of pictures with any of the rewards.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_reward_arguments(parser)
    parser.add_argument(
        "--prompts", required=True, type=Path, metavar="FILE", help=".jsonl, .json, .csv, .parquet, .txt"
    )
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the pictures")
    parser.add_argument(
        "--output", type=Path, default=Path("scores.jsonl"), metavar="FILE", help="default: %(default)s"
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on with an output that an earlier run began")
    existing.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    parser.add_argument(
        "--convert", action="store_true", help="take grey, palette, CMYK and opaque pictures with alpha as RGB, too"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="of all; default: each as in --config, or cpu")
    return parser


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options; exits with 2 for wrong ones."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    check_reward_arguments(parser, arguments)
    return arguments


async def _score_folder(
    arguments: argparse.Namespace,
    configs: Sequence[RewardConfig],
    pairs: Sequence[Pair],
    skipped: list[Skipped],
    output: ScoreFile,
    summary: Summary,
    console: Console,
) -> None:
    """Score all pairs, a line each into the output; pictures that cannot be read join `skipped`."""
    workers = {config.name: RewardWorker(config) for config in configs}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("loading the rewards", total=len(pairs))
            for worker in workers.values():
                await worker.start()
            output.begin()
            progress.update(task, description="scoring")
            compares = any(worker.reward.is_group_wise for worker in workers.values())
            for window in _windows(pairs, compares):
                read = list(_read_pictures(window, skipped, convert=arguments.convert))
                answers = await _score_window(workers, read)
                lines = [as_line(pair, answer) for (pair, _), answer in zip(read, answers, strict=True)]
                output.write(lines)
                for line in lines:
                    summary.add(line)
                for note in filter(None, (worker.take_note() for worker in workers.values())):
                    console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
                progress.update(task, advance=len(window))
    finally:
        for worker in workers.values():
            await worker.close()


def _windows(pairs: Sequence[Pair], compares: bool) -> Iterator[Sequence[Pair]]:
    """WINDOW pairs at a time; compares: pictures of one prompt that follow each other stay together."""
    if not compares:
        yield from (pairs[start : start + WINDOW] for start in range(0, len(pairs), WINDOW))
        return
    window: list[Pair] = []
    for _, group in groupby(pairs, key=lambda pair: pair.prompt.prompt_id):
        members = list(group)
        if window and len(window) + len(members) > WINDOW:
            yield window
            window = []
        window += members
    if window:
        yield window


def _read_pictures(
    pairs: Sequence[Pair], skipped: list[Skipped], *, convert: bool
) -> Iterator[tuple[Pair, UInt8Array]]:
    for pair in pairs:
        try:
            yield pair, read_picture(pair.path, convert=convert)
        except ValueError as error:
            skipped.append(Skipped(pair.name, str(error)))


async def _score_window(
    workers: Mapping[str, RewardWorker], window: Sequence[tuple[Pair, UInt8Array]]
) -> list[dict[str, Answer]]:
    """What each reward says of each picture. Raises RewardError when a reward can score nothing more."""
    columns = await asyncio.gather(*(_score_column(worker, window) for worker in workers.values()))
    return [dict(zip(workers, answers, strict=True)) for answers in zip(*columns, strict=True)]


async def _score_column(worker: RewardWorker, window: Sequence[tuple[Pair, UInt8Array]]) -> list[Answer]:
    """Picture by picture, of which the worker makes batches; all of a prompt and a size for one that compares."""
    groups: dict[object, list[int]] = {}
    for place, (pair, picture) in enumerate(window):
        key = (pair.prompt.prompt_id, picture.shape) if worker.reward.is_group_wise else place
        groups.setdefault(key, []).append(place)
    calls = []
    for places in groups.values():
        pairs, pictures = zip(*(window[place] for place in places), strict=True)
        plans = [pair.plan for pair in pairs if pair.plan is not None]
        prompts = [pair.prompt for pair in pairs]
        calls.append(worker.score(np.stack(pictures), prompts, plans if len(plans) == len(pairs) else None))
    answers: dict[int, Answer] = {}
    for places, answered in zip(groups.values(), await asyncio.gather(*calls), strict=True):
        answers |= dict(zip(places, answered, strict=True))
    return [answers[place] for place in range(len(window))]


if __name__ == "__main__":
    sys.exit(main())
