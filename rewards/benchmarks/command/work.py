"""Several benchmarks one after the other: all are drawn first, and then scored.

So an engine and a scorer, or a judge, never need the same GPU, and workers that draw serve all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from rich.console import Console

from configs.errors import BicotError
from rewards.benchmarks.command.choice import Choice
from rewards.benchmarks.command.judge_server import ServedJudge
from rewards.benchmarks.judged.base import ServedBenchmark
from rewards.benchmarks.protocol import Benchmark, Scorer, ScorerOptions
from rewards.benchmarks.reporting import show_result
from rewards.benchmarks.stages import HERE, Machinery, draw_benchmark, score_benchmark
from rollout.drawing_options import DrawingOptions

LINE_WIDTH = 160
"""Characters of a line where the output goes into a file and not onto a screen."""


def console_of() -> Console:
    """Of a command's output."""
    return Console(width=None if sys.stdout.isatty() else LINE_WIDTH)


def draw_and_score(
    arguments: argparse.Namespace,
    chosen: Sequence[Choice],
    drawing: DrawingOptions | None,
    console: Console,
    machinery: Machinery = HERE,
    between: Callable[[], None] = lambda: None,
    judge: ServedJudge | None = None,
) -> bool:
    """Whether every result is complete. One of several that fails is told, and the next one comes.

    drawing: None where all pictures are there. between: called when all are drawn. judge: one that is to be started
    for what asks a judge, when there is something to ask.
    """
    raises = len(chosen) == 1
    machinery = machinery if judge is None else _starting(judge, machinery)

    def draw(choice: Choice) -> bool:
        draw_benchmark(choice.benchmark, choice.run_options(arguments, drawing), console, machinery)
        return True

    def score(choice: Choice) -> bool:
        result = score_benchmark(choice.benchmark, choice.run_options(arguments, drawing), console, machinery)
        show_result(result, arguments.output_dir / choice.name, console)
        return bool(result["is_complete"])

    drawn = [choice for choice in chosen if bounded(draw, choice, console, raises=raises)]
    between()
    is_well = [bounded(score, choice, console, raises=raises) for choice in drawn]
    return len(drawn) == len(chosen) and all(is_well)


def _starting(judge: ServedJudge, machinery: Machinery) -> Machinery:
    def open_scorer(benchmark: Benchmark, options: ScorerOptions) -> Scorer:
        if isinstance(benchmark, ServedBenchmark):
            judge.start()
        return machinery.open_scorer(benchmark, options)

    return Machinery(machinery.draw, open_scorer)


def bounded(work: Callable[[Choice], bool], choice: Choice, console: Console, *, raises: bool) -> bool:
    """Work on one of several benchmarks; its failure is told, and the next one comes."""
    try:
        return work(choice)
    except BicotError as error:
        if raises:
            raise
        console.print(f"FAILED: {choice.name}: {error}", style="bold red", markup=False, soft_wrap=True)
        return False
