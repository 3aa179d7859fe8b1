"""Score a folder of pictures, from the command line; needs no Ray.

    python -m rewards.score --rewards hps,grounding_dino --prompts FILE --images DIR --output scores.jsonl

    DIR + FILE ─► pairs ─► read, WINDOW at a time ─► a RewardWorker each reward, all at once ─► a line a picture

The rewards run as in training, in batches across pictures of one size. A picture that cannot be read, and a reward
that fails on a picture, are named, counted, and stop nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from configs.command_line import exit_code_of
from configs.errors import DataError, RewardError
from configs.load import load_config
from configs.schema import RewardConfig
from rewards.pictures import match_pictures, read_picture
from rewards.pictures.pairs import Pair, Skipped
from rewards.registry import reward_path
from rewards.worker import RewardWorker
from rollout.records import Score, UInt8Array

WINDOW = 64
"""Pictures that are in memory at once."""
TIMEOUT_S = 3600.0
"""A batch may take this long: a large model on CPU is slow, and nobody waits for the others here."""
NUM_SKIPPED_SHOWN = 20

EXAMPLES = """\
prompts: .jsonl, .json, .csv, .parquet or .txt, as for training.

which prompt belongs to which picture:
  Records of the prompts file with a field 'image' (or 'file', as in the images.jsonl of rollout.generate) name their
  picture in DIR. Without it, pictures go to the records in the order of their file names (2.png before 10.png); with
  twice as many pictures as records, the first two belong to the first record, and so on.

examples:
  python -m rewards.score --rewards hps,aesthetic --prompts prompts.jsonl --images pictures --output scores.jsonl
  python -m rewards.score --config my_run.yaml --prompts generated/images.jsonl --images generated
  python -m rewards.score --rewards my_rewards:brightness --prompts prompts.txt --images pictures

Each line of the output: {"image", "prompt", "prompt_id", "scores": {reward: {"value", "parts"}}}; a reward that does
not apply to a prompt is null there, one that failed has {"error"} instead.
Exit codes: 0 all scored, 1 something was skipped or failed, 2 wrong input, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse_arguments(argv)
    return exit_code_of(partial(_score, arguments), "the lines written so far are complete")


def _score(arguments: argparse.Namespace) -> int:
    console = Console()
    configs = choose_rewards(arguments)
    pairs, skipped = match_pictures(arguments.prompts, arguments.images)
    columns = asyncio.run(_score_folder(arguments, configs, pairs, skipped, console))
    num_failed = show_summary(columns, skipped, console)
    console.print(f"scores: {arguments.output}", markup=False, highlight=False, soft_wrap=True)
    return 1 if skipped or num_failed else 0


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m rewards.score",
        description="Score a folder of pictures with any of the rewards.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rewards", metavar="NAMES", help="with commas between; default: all of --config")
    parser.add_argument(
        "--prompts", required=True, type=Path, metavar="FILE", help=".jsonl, .json, .csv, .parquet, .txt"
    )
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the pictures")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a run's config: options and batch sizes of its rewards"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("scores.jsonl"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="of all; default: each as in --config, or cpu")
    return parser


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options; exits with 2 for wrong ones."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not arguments.rewards and not arguments.config:
        parser.error("give --rewards, --config, or both")
    return arguments


def choose_rewards(arguments: argparse.Namespace) -> list[RewardConfig]:
    """The rewards to run, in order, each once; options come from --config where it has a reward of that name.

    Raises ConfigError for an unknown name or a wrong config.
    """
    configured = load_config(arguments.config).rewards if arguments.config else ()
    by_name = {config.name: config for config in configured}
    names = [name.strip() for name in (arguments.rewards or ",".join(by_name)).split(",")]
    for name in names:
        reward_path(name)
    settings: dict[str, Any] = {"timeout_s": TIMEOUT_S, "retries": 0}
    if arguments.device:
        settings["gpus_per_replica"] = float(arguments.device == "cuda")
    chosen = [by_name.get(name) or RewardConfig(name=name) for name in dict.fromkeys(names)]
    return [config.model_copy(update=settings) for config in chosen]


async def _score_folder(
    arguments: argparse.Namespace,
    configs: Sequence[RewardConfig],
    pairs: Sequence[Pair],
    skipped: list[Skipped],
    console: Console,
) -> dict[str, list[Score | RewardError]]:
    """Score all pairs, a line each into the output; pictures that cannot be read join `skipped`."""
    workers = {config.name: RewardWorker(config) for config in configs}
    scored: dict[str, list[Score | RewardError]] = defaultdict(list)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with (
            _open_output(arguments.output) as output,
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        ):
            task = progress.add_task("loading the rewards", total=len(pairs))
            for worker in workers.values():
                await worker.start()
            output.truncate(0)
            progress.update(task, description="scoring")
            for start in range(0, len(pairs), WINDOW):
                window = list(_read_pictures(pairs[start : start + WINDOW], skipped))
                for (pair, _), scores in zip(window, await _score_window(workers, window), strict=True):
                    output.write(json.dumps(as_line(pair, scores), ensure_ascii=False, default=_as_plain) + "\n")
                    for name, score in scores.items():
                        scored[name].append(score)
                output.flush()
                progress.update(task, completed=min(start + WINDOW, len(pairs)))
    finally:
        for worker in workers.values():
            await worker.close()
    return scored


def _open_output(path: Path) -> TextIO:
    """Open, but not yet emptied: scores of an earlier run outlive a model that cannot be loaded."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot write the scores: {error.strerror or error}") from error


def _read_pictures(pairs: Sequence[Pair], skipped: list[Skipped]) -> Iterator[tuple[Pair, UInt8Array]]:
    for pair in pairs:
        try:
            yield pair, read_picture(pair.path)
        except ValueError as error:
            skipped.append(Skipped(pair.name, str(error)))


async def _score_window(
    workers: Mapping[str, RewardWorker], window: Sequence[tuple[Pair, UInt8Array]]
) -> list[dict[str, Score | RewardError]]:
    """What each reward says of each picture. Picture by picture, so that one failure is one picture's; the worker
    makes batches of them."""
    calls = [worker.score(picture[None], [pair.prompt]) for pair, picture in window for worker in workers.values()]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    outcomes: list[Score | RewardError] = []
    for answer in answers:
        if isinstance(answer, list):
            outcomes.append(answer[0])
        elif isinstance(answer, RewardError):
            outcomes.append(answer)
        else:
            raise answer
    width = len(workers)
    return [dict(zip(workers, outcomes[i * width : (i + 1) * width], strict=True)) for i in range(len(window))]


def as_line(pair: Pair, scores: Mapping[str, Score | RewardError]) -> dict[str, Any]:
    """The output line of a picture."""
    said: dict[str, dict[str, Any] | None] = {}
    for name, score in scores.items():
        if isinstance(score, RewardError):
            said[name] = {"error": str(score)}
        else:
            said[name] = None if score.value is None else {"value": score.value, "parts": dict(score.parts)}
    return {"image": pair.name, "prompt": pair.prompt.text, "prompt_id": pair.prompt.prompt_id, "scores": said}


def _as_plain(value: Any) -> Any:
    """NumPy in the parts of a user's own reward."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value)


def show_summary(
    columns: Mapping[str, Sequence[Score | RewardError]], skipped: Sequence[Skipped], console: Console
) -> int:
    """Print a row a reward, what failed and what was skipped; returns how many scores failed."""
    table = Table("reward", *(("mean", "std", "min", "max", "pictures", "not applicable", "failed")))
    failures = []
    for name, column in columns.items():
        values = [score.value for score in column if isinstance(score, Score) and score.value is not None]
        failed = [score for score in column if isinstance(score, RewardError)]
        failures += failed
        numbers = [np.mean(values), np.std(values), min(values), max(values)] if values else []
        cells = [f"{number:.4f}" for number in numbers] or ["-"] * 4
        others = (len(values), len(column) - len(values) - len(failed), len(failed))
        table.add_row(name, *cells, *map(str, others))
    console.print(table)
    for title, entries in (("skipped", skipped), ("failed", failures)):
        if entries:
            console.print(f"{len(entries)} {title}:", style="yellow")
            for entry in entries[:NUM_SKIPPED_SHOWN]:
                console.print(f"  {entry}", markup=False, highlight=False, soft_wrap=True)
            if len(entries) > NUM_SKIPPED_SHOWN:
                console.print(f"  and {len(entries) - NUM_SKIPPED_SHOWN} more")
    return len(failures)


if __name__ == "__main__":
    sys.exit(main())
