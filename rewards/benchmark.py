"""Evaluate a model on the benchmarks of the field, from the command line; needs no Ray.

python -m rewards.benchmark geneval --model DIR_OR_HUB_ID --data GENEVAL_CHECKOUT --scorer detector=FILE.pth

draw ─► encode ─► score ─► aggregate, each resumable by picture (rewards/benchmarks/stages.py)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from configs.command_line import exit_code_of
from configs.errors import BicotError, ConfigError, DataError
from rewards.benchmarks import BENCHMARKS, make_benchmark, scorer_options
from rewards.benchmarks.protocol import Benchmark, ScorerOptions
from rewards.benchmarks.reporting import show_result
from rollout.drawing_options import DrawingOptions, add_drawing_arguments, whole

TABLE, ALL = "table", "all"
LINE_WIDTH = 160
"""Characters of a line where the output goes into a file and not onto a screen."""

EXAMPLES = """\
examples:
  python -m rewards.benchmark shapes --model tiny-janus --limit 24
  python -m rewards.benchmark geneval --model deepseek-ai/Janus-Pro-1B --data geneval --scorer detector=mask2former.pth
  python -m rewards.benchmark geneval --images pictures --data geneval --scorer detector=mask2former.pth
  python -m rewards.benchmark wise --model deepseek-ai/Janus-Pro-1B --data WISE --judge-url https://api.openai.com/v1
  python -m rewards.benchmark all --model tiny-janus --data checkouts --scorer geneval.detector=mask2former.pth
  python -m rewards.benchmark geneval --self-check --data geneval --scorer detector=mask2former.pth
  python -m rewards.benchmark table benchmarks/geneval/results/geneval.json --html geneval.html

A second call with the same output folder goes on where the first one ended; with nothing left to draw or to score, the
official rules run again on what is kept.
`all` runs every benchmark whose files and settings are given, and says what the others lack. Of several benchmarks
--data is the folder of their repositories, and --scorer NAME.SETTING=VALUE is one benchmark's own.
Exit codes: 0 complete results, 1 pictures are missing or could not be judged, or a benchmark of several failed, or a
check differs, 2 wrong input, 130 interrupted."""


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
        help=f"one of {', '.join(BENCHMARKS)}, several with commas between, or `all`; or `table`, which shows results",
    )
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULT", help="of `table`: files of results")
    parser.add_argument("--html", type=Path, metavar="FILE", help="of `table`: a page with the pictures, worst first")
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument("--model", metavar="DIR_OR_HUB_ID", help="a Janus checkpoint that draws")
    pictures.add_argument(
        "--images", type=Path, metavar="DIR", help="pictures that are drawn already, as official files"
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help="your copy of the benchmark's official repository")
    parser.add_argument(
        "--self-check",
        action="store_true",
        help="draw nothing: compare the hashes of what is read, and the scorer's view of a reference picture",
    )
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
    for name in _names(arguments):
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark '{name}'; use one of {', '.join(BENCHMARKS)}, or {ALL}")
    if arguments.results or arguments.html:
        parser.error("RESULT and --html belong to `table`")
    if not arguments.model and not arguments.images and not arguments.self_check:
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


def _names(arguments: argparse.Namespace) -> list[str]:
    return list(BENCHMARKS) if arguments.name == ALL else arguments.name.split(",")


def _run(arguments: argparse.Namespace) -> int:
    console = Console(width=None if sys.stdout.isatty() else LINE_WIDTH)
    names = _names(arguments)
    _check_settings(arguments, names)
    lacking: dict[str, str] = {}
    for name in names:  # before anything is drawn
        benchmark = make_benchmark(name)
        try:
            benchmark.read_data(_data_of(arguments, benchmark, names))
            benchmark.variant(_scorer_options(arguments, benchmark, names))
        except (ConfigError, DataError) as error:
            if arguments.name != ALL:
                raise
            lacking[name] = str(error)
    runnable = [name for name in names if name not in lacking]
    if lacking.keys() == set(names):
        raise ConfigError(f"none of the benchmarks can be run; the first: {lacking[names[0]]}")
    work = partial(_check_one if arguments.self_check else _run_one, arguments, names=names, console=console)
    is_well = {name: _bounded(work, name, console, raises=len(names) == 1) for name in runnable}
    for name, reason in lacking.items():
        console.print(f"left out: {name}: {reason}", style="yellow", markup=False, soft_wrap=True)
    return 0 if all(is_well.values()) else 1


def _bounded(work: Callable[[str], bool], name: str, console: Console, raises: bool) -> bool:
    """Run one of several benchmarks; its failure is told, and the next one comes."""
    try:
        return work(name)
    except BicotError as error:
        if raises:
            raise
        console.print(f"FAILED: {name}: {error}", style="bold red", markup=False, soft_wrap=True)
        return False


def _run_one(arguments: argparse.Namespace, name: str, names: Sequence[str], console: Console) -> bool:
    from rewards.benchmarks.stages import RunOptions, run_benchmark

    benchmark = make_benchmark(name)
    options = RunOptions(
        drawing=None if arguments.images else DrawingOptions.of(arguments, num_images=1, images_per_cot=1),
        scorer=_scorer_options(arguments, benchmark, names),
        data=_data_of(arguments, benchmark, names),
        output_dir=arguments.output_dir,
        images=arguments.images,
        limit=arguments.limit,
    )
    result = run_benchmark(benchmark, options, console)
    show_result(result, arguments.output_dir / name, console)
    return bool(result["is_complete"])


def _check_one(arguments: argparse.Namespace, name: str, names: Sequence[str], console: Console) -> bool:
    from rewards.benchmarks.checking import self_check

    benchmark = make_benchmark(name)
    options = _scorer_options(arguments, benchmark, names)
    return self_check(benchmark, _data_of(arguments, benchmark, names), options, arguments.output_dir, console)


def _data_of(arguments: argparse.Namespace, benchmark: Benchmark, names: Sequence[str]) -> Path | None:
    """--data; of several benchmarks the folder in it that is named as the repository, or as the benchmark."""
    if arguments.data is None or len(names) == 1:
        return arguments.data
    own = (arguments.data / name for name in (benchmark.repository.rpartition("/")[2], benchmark.name) if name)
    return next((path for path in own if path.is_dir()), arguments.data)


def _check_settings(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Raises ConfigError for a setting that is no benchmark's of these."""
    known = {name: make_benchmark(name).settings for name in names}
    for setting in (one.partition("=")[0] for one in arguments.scorer):
        name, _, bare = setting.rpartition(".")
        if name and name not in known:
            raise ConfigError(f"--scorer {setting}: {name} is not among {', '.join(names)}")
        if not any(bare in settings for one, settings in known.items() if name in ("", one)):
            listed = ", ".join(known[name or names[0]]) or "none"
            raise ConfigError(f"--scorer {setting}: there is no such setting; {name or names[0]} has {listed}")


def _scorer_options(arguments: argparse.Namespace, benchmark: Benchmark, names: Sequence[str]) -> ScorerOptions:
    """Settings without a name are those of every benchmark that has them."""
    settings = {}
    for setting, value in (one.split("=", 1) for one in arguments.scorer):
        name, _, bare = setting.rpartition(".")
        if name == benchmark.name or (not name and bare in benchmark.settings):
            settings[bare] = value
    return scorer_options(
        benchmark,
        settings,
        device=arguments.device or "cpu",
        judge_url=arguments.judge_url,
        judge_model=arguments.judge_model,
        judge_key_env=arguments.judge_key_env,
        data=_data_of(arguments, benchmark, names),
    )


if __name__ == "__main__":
    sys.exit(main())
