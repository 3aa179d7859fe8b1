"""Draw several pictures of each prompt and keep the one that the rewards like best; needs no Ray.

    python -m rewards.best_of --best-of 8 --rewards shapes --model DIR_OR_HUB_ID --prompt "two red stars"

    prompts ─► rollout.drawing ─► N pictures a prompt ─► every reward ─► the best one, its scores in images.jsonl

A group is scored while the next ones are drawn. This is `rollout.generate` with a choice behind it; it stands here,
since drawing knows no rewards.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from configs.command_line import exit_code_of
from configs.errors import RewardError
from configs.schema import RewardConfig
from rewards.calling import Answer
from rewards.combine import combine
from rewards.scoring import add_reward_arguments, check_reward_arguments, choose_rewards
from rewards.worker import RewardWorker
from rollout.drawing_options import DrawingOptions, add_drawing_arguments, whole
from rollout.generate import add_source_arguments, read_prompts
from rollout.pictures import PictureWriter
from rollout.records import GroupRollout, Prompt, UInt8Array
from rollout.vllm.settings import quiet_environment

EXAMPLES = """\
examples:
  python -m rewards.best_of --best-of 8 --rewards shapes --model tiny-janus --prompts shapes:heldout:16
  python -m rewards.best_of --rewards hps --set hps.model=HPS.pt --model tiny-janus --prompt "a red star"

Best is the greatest weighted sum, as in training. Each picture kept has a line in OUTPUT_DIR/images.jsonl, with "score"
(the sum), "scores" (each reward's) and "score_of_each" (the sums of all that were drawn, null for one not scored).
Exit codes: 0 one picture is kept of each prompt, 1 a prompt has none or the engine failed, 2 wrong input, 130
interrupted."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The best picture of a group, and what is written down of it."""

    place: int
    note: Mapping[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse_arguments(argv)
    return exit_code_of(partial(_run, arguments), "the pictures written so far are complete")


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m rewards.best_of",
        description="Draw several pictures of each prompt, and keep the one that the rewards like best.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--best-of", type=whole(1), default=8, help="pictures drawn of each prompt; default: %(default)s"
    )
    add_reward_arguments(parser)
    add_drawing_arguments(parser)
    return parser


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options; exits with 2 for wrong ones."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    check_reward_arguments(parser, arguments)
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    console = Console()
    configs = choose_rewards(arguments.rewards, arguments.config, arguments.set)
    prompts = read_prompts(arguments, console)
    options = DrawingOptions.of(arguments, num_images=arguments.best_of)
    settings = {"model": options.model, "temperature": options.temperature, "seed": options.seed}
    writer = PictureWriter(arguments.output_dir, settings)
    os.environ.update(quiet_environment())  # before torch is imported, which reads its part once
    return asyncio.run(_draw_and_choose(options, prompts, configs, writer, console))


async def _draw_and_choose(
    options: DrawingOptions,
    prompts: Sequence[Prompt],
    configs: Sequence[RewardConfig],
    writer: PictureWriter,
    console: Console,
) -> int:
    from rollout.drawing import draw  # here, since it loads torch and the engine

    workers = {config.name: RewardWorker(config) for config in configs}
    weights = {config.name: config.weight for config in configs}
    choosing: list[asyncio.Task[bool]] = []

    async def choose(rollout: GroupRollout, pictures: UInt8Array) -> bool:
        prompt = rollout.request.prompt
        try:
            best = best_of(await _score(workers, rollout, pictures), weights)
        except RewardError as error:
            console.print(f"{prompt.text}\n  none is kept: {error}", style="red", markup=False, highlight=False)
            return False
        kept = replace(rollout, trajectories=(rollout.trajectories[best.place],))
        (path,) = writer.write(kept, pictures[best.place : best.place + 1], [best.note])
        said = f"{prompt.text}\n    {path}: {best.note['score']:.3f}, the best of {len(pictures)}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
        return True

    try:
        for worker in workers.values():
            await worker.start()
        await draw(options, prompts, lambda *drawn: choosing.append(asyncio.create_task(choose(*drawn))))
        return 0 if all(await asyncio.gather(*choosing)) else 1
    finally:
        for task in choosing:
            task.cancel()
        await asyncio.gather(*choosing, return_exceptions=True)
        for worker in workers.values():
            await worker.close()


async def _score(
    workers: Mapping[str, RewardWorker], rollout: GroupRollout, pictures: UInt8Array
) -> dict[str, list[Answer]]:
    prompts = [rollout.request.prompt] * len(pictures)
    plans = [trajectory.cot_text for trajectory in rollout.trajectories]
    columns = await asyncio.gather(*(worker.score(pictures, prompts, plans) for worker in workers.values()))
    return dict(zip(workers, columns, strict=True))


def best_of(answers: Mapping[str, Sequence[Answer]], weights: Mapping[str, float]) -> Choice:
    """The picture of the greatest weighted sum, the first of equals; see `rewards.combine`.

    answers: name -> one a picture of the group. Raises RewardError when no picture could be scored.
    """
    combined = combine(answers, weights)
    sums = combined.rewards
    if np.isnan(sums).all():
        raise next(iter(combined.errors.values()))
    place = int(np.nanargmax(sums))
    note = {
        "score": float(sums[place]),
        "scores": {name: _plain(column[place]) for name, column in combined.columns.items()},
        "score_of_each": [_plain(value) for value in sums],
    }
    return Choice(place, note)


def _plain(value: np.float32) -> float | None:
    """As JSON has it: null where a reward does not apply or failed."""
    return None if np.isnan(value) else float(value)


if __name__ == "__main__":
    sys.exit(main())
