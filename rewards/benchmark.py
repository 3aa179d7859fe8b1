"""Evaluate a model on the benchmarks of the field, from the command line; needs no Ray.

python -m rewards.benchmark geneval --model DIR_OR_HUB_ID --data GENEVAL_CHECKOUT --scorer detector=FILE.pth

draw ─► encode ─► score ─► aggregate, each resumable by picture (rewards/benchmarks/stages.py)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from configs.command_line import exit_code_of
from configs.errors import ConfigError, DataError
from rewards.benchmarks import BENCHMARKS, make_benchmark
from rewards.benchmarks.protocol import Benchmark, ScorerOptions
from rewards.benchmarks.reporting import show_result
from rollout.drawing_options import DrawingOptions, add_drawing_arguments, whole

TABLE = "table"
LINE_WIDTH = 160
"""Characters of a line where the output goes into a file and not onto a screen."""

EXAMPLES = """\
examples:
  python -m rewards.benchmark shapes --model tiny-janus --limit 24
  python -m rewards.benchmark geneval --model deepseek-ai/Janus-Pro-1B --data geneval --scorer detector=mask2former.pth
  python -m rewards.benchmark geneval --images pictures --data geneval --scorer detector=mask2former.pth
  python -m rewards.benchmark wise --model deepseek-ai/Janus-Pro-1B --data WISE --judge-url https://api.openai.com/v1
  python -m rewards.benchmark table benchmarks/geneval/results/geneval.json --html geneval.html

A second call with the same output folder goes on where the first one ended; with nothing left to draw or to score, the
official rules run again on what is kept.
Exit codes: 0 a complete result, 1 pictures are missing or could not be judged, 2 wrong input, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    arguments = parse_arguments(argv)
    command = _show_table if arguments.name == TABLE else _run
    return exit_code_of(partial(command, arguments), "what is drawn and scored so far is kept")


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m rewards.benchmark",
        description="Draw a benchmark's prompts with a model, and score them as the benchmark's authors do.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"one of {', '.join(BENCHMARKS)}, or several with commas between; or `table`, which shows results",
    )
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT", help="of `table`: files of results")
    parser.add_argument("--html", type=Path, metavar="FILE", help="of `table`: a page with the pictures, worst first")
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument("--model", metavar="DIR_OR_HUB_ID", help="a Janus checkpoint that draws")
    pictures.add_argument(
        "--images", type=Path, metavar="DIR", help="pictures that are drawn already, as official files"
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help="your copy of the benchmark's official repository")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="prompts, of each category in turn; default: all")
    parser.add_argument("--output-dir", type=Path, default=Path("benchmarks"), help="default: %(default)s")
    parser.add_argument("--judge-url", metavar="URL", help="an OpenAI-compatible server, up to and with /v1")
    parser.add_argument("--judge-model", metavar="MODEL", help="the judge's name there; default: the official judge's")
    parser.add_argument(
        "--judge-key-env", metavar="VARIABLE", help="environment variable that holds the server's API key"
    )
    parser.add_argument(
        "--scorer",
        action="append",
        default=[],
        metavar="SETTING=VALUE",
        help="weights and settings of the scorer, as the benchmark's page lists them; repeatable",
    )
    add_drawing_arguments(parser)
    return parser


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options; exits with 2 for wrong ones."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.name == TABLE:
        if not arguments.results:
            parser.error("table: name files of results")
        return arguments
    for name in arguments.name.split(","):
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark '{name}'; use one of {', '.join(BENCHMARKS)}")
    if arguments.results or arguments.html:
        parser.error("RESULT and --html belong to `table`")
    if not arguments.model and not arguments.images:
        parser.error("give --model, or --images with pictures that are drawn already")
    for setting in arguments.scorer:
        if "=" not in setting:
            parser.error(f"--scorer {setting}: give it as SETTING=VALUE")
    return arguments


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
    from rewards.benchmarks.stages import RunOptions, run_benchmark

    console = Console(width=None if sys.stdout.isatty() else LINE_WIDTH)
    is_complete = True
    for name in arguments.name.split(","):
        benchmark = make_benchmark(name)
        options = RunOptions(
            drawing=None if arguments.images else DrawingOptions.of(arguments, num_images=1, images_per_cot=1),
            scorer=_scorer_options(arguments, benchmark),
            data=arguments.data,
            output_dir=arguments.output_dir,
            images=arguments.images,
            limit=arguments.limit,
        )
        result = run_benchmark(benchmark, options, console)
        show_result(result, arguments.output_dir / name, console)
        is_complete &= result["is_complete"]
    return 0 if is_complete else 1


def _scorer_options(arguments: argparse.Namespace, benchmark: Benchmark) -> ScorerOptions:
    settings = dict(setting.split("=", 1) for setting in arguments.scorer)
    unknown = sorted(set(settings) - set(benchmark.settings))
    if unknown:
        known = ", ".join(benchmark.settings) or "none"
        raise ConfigError(f"--scorer {unknown[0]}: the scorer of {benchmark.name} has no such setting; it has {known}")
    return ScorerOptions(
        device=arguments.device or "cpu",
        settings=settings,
        judge_url=arguments.judge_url,
        judge_model=arguments.judge_model,
        judge_key_env=arguments.judge_key_env,
        data=arguments.data,
    )


if __name__ == "__main__":
    sys.exit(main())
