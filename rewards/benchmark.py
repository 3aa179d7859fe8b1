"""Evaluate a model on the benchmarks of the field, from the command line; needs no Ray.

python -m rewards.benchmark geneval --model DIR_OR_HUB_ID --data GENEVAL_CHECKOUT --scorer detector=FILE.pth

draw ─► encode ─► score ─► aggregate, each resumable by picture (rewards/benchmarks/stages.py)

With --config a run's rollout workers draw, on Ray: this command then hands over to `cluster.evaluate`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from functools import partial

from configs.command_line import exit_code_of
from configs.errors import DataError
from rewards.benchmarks.command import (
    TABLE,
    Choice,
    ServedJudge,
    bounded,
    choose,
    console_of,
    draw_and_score,
    make_parser,
    parse,
    served_judge,
)
from rollout.drawing_options import DrawingOptions

ON_RAY = "cluster.evaluate"
"""The command for --config. By its name, as for `python -m`: rewards know no Ray, and import nothing of cluster."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse(build_parser(), argv)
    if arguments.name == TABLE:
        return exit_code_of(partial(_show_table, arguments), "nothing is written")
    if arguments.config:
        return int(importlib.import_module(ON_RAY).main(argv))
    return exit_code_of(partial(_run, arguments), "what is drawn and scored so far is kept")


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    return make_parser(prog="python -m rewards.benchmark")


def _show_table(arguments: argparse.Namespace) -> int:
    from rewards.benchmarks.reporting import as_html, as_markdown
    from rewards.benchmarks.results import read_result

    results = [read_result(path) for path in arguments.results]
    print(as_markdown(results), end="")
    if arguments.html:
        try:
            arguments.html.write_text(as_html(results, arguments.html.parent), encoding="utf-8")
        except OSError as error:
            raise DataError(f"--html {arguments.html} cannot be written: {error}") from error
    return 0


def _run(arguments: argparse.Namespace) -> int:
    console = console_of()
    with served_judge(arguments, console.print) as judge:
        chosen, lacking = choose(arguments)
        if arguments.self_check:
            raises = len(chosen) == 1 and not lacking
            check = partial(_check_one, arguments, judge)
            outcomes = [bounded(check, choice, console, raises=raises) for choice in chosen]
            is_well = all(outcomes)
        else:
            drawing = None if arguments.images else DrawingOptions.of(arguments, num_images=1, images_per_cot=1)
            is_well = draw_and_score(arguments, chosen, drawing, console, judge=judge)
    for name, reason in lacking.items():
        console.print(f"left out: {name}: {reason}", style="yellow", markup=False, soft_wrap=True)
    return 0 if is_well else 1


def _check_one(arguments: argparse.Namespace, judge: ServedJudge | None, choice: Choice) -> bool:
    from rewards.benchmarks.checking import self_check

    if judge is not None and choice.asks_judge:
        judge.start()
    return self_check(choice.benchmark, choice.path, choice.scorer, arguments.output_dir, console_of())


if __name__ == "__main__":
    sys.exit(main())
