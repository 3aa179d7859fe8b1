"""Answer a question about the algorithm by runs that differ in one thing.

    python -m cluster.study phases --seeds 3 --steps 60

Writes into runs/study_NAME (or --output-dir): each run's own directory, report.md and curves.png. Started
again after an interruption, it makes the missing runs only.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from cluster.reports.progress import format_duration
from cluster.studies.definitions import STUDIES
from cluster.studies.report import EVALUATIONS, draw, markdown
from cluster.studies.runs import Outcome, Plan, Study, run_study
from configs.command_line import exit_code_of
from configs.errors import ConfigError
from configs.load import DEFAULT_CONFIG, load_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    command = shlex.join(["python", "-m", "cluster.study", *(sys.argv[1:] if arguments is None else arguments)])
    return exit_code_of(partial(_study, options, command), "the same command goes on with the runs that are missing")


def _study(options: argparse.Namespace, command: str) -> int:
    study = _of_arms(STUDIES[options.name], options.arms)
    directory = Path(options.output_dir or f"runs/study_{options.name}").absolute()
    plan = Plan(Path(options.config), directory, tuple(range(options.seeds)), options.steps, tuple(options.set))
    for arm in study.arms:  # a wrong override is refused now, and not after an hour
        load_config(plan.config, [*study.overrides, *arm.overrides, *plan.overrides])
    directory.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    num_runs = len(plan.seeds) * len(study.arms)
    print(f"{study.question}\n{num_runs} runs of {plan.num_steps} steps, into {directory}", flush=True)
    for outcome in run_study(study, plan):
        outcomes.append(outcome)
        print(_describe(outcome, outcomes, num_runs), flush=True)
        (directory / "report.md").write_text(markdown(options.name, study, outcomes, command), encoding="utf-8")
        draw(directory / "curves.png", study, outcomes)
    print(f"\n{markdown(options.name, study, outcomes, command)}\ncurves  {directory / 'curves.png'}")
    return 0


def _of_arms(study: Study, names: Sequence[str] | None) -> Study:
    """The study with the arms of these names alone; None: with all. Raises ConfigError."""
    if names is None:
        return study
    known = [arm.name for arm in study.arms]
    for name in names:
        if name not in known:
            raise ConfigError(f"--arms {name}: the study has no such arm; its arms are {', '.join(known)}")
    return replace(study, arms=tuple(arm for arm in study.arms if arm.name in names))


def _describe(latest: Outcome, outcomes: Sequence[Outcome], num_runs: int) -> str:
    changes = ", ".join(f"{name.replace('_', ' ')} {latest.change(name):+.3f}" for name in EVALUATIONS)
    durations = [outcome.duration_s for outcome in outcomes if outcome.duration_s]
    left = ""
    if durations and len(outcomes) < num_runs:
        left_s = (num_runs - len(outcomes)) * sum(durations) / len(durations)
        left = f"; about {format_duration(left_s)} left"
    took = f"in {format_duration(latest.duration_s)}" if latest.duration_s else "was there already"
    return f"[{len(outcomes)}/{num_runs}] {latest.arm}, seed {latest.seed}: {changes}, {took}{left}"


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    studies = "\n".join(f"  {name:<10} {study.question}" for name, study in STUDIES.items())
    parser = argparse.ArgumentParser(
        prog="python -m cluster.study",
        description="Answer a question about the algorithm by runs that differ in one thing.",
        epilog=f"studies:\n{studies}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=STUDIES, metavar="NAME", help=f"one of {', '.join(STUDIES)}")
    parser.add_argument("--config", default=DEFAULT_CONFIG, metavar="FILE", help="default: the shapes world on CPU")
    parser.add_argument("--seeds", type=_positive, default=3, metavar="N", help="runs of each arm (default 3)")
    parser.add_argument("--steps", type=_positive, default=60, metavar="N", help="optimizer steps a run (default 60)")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="some of the study's arms only; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="for all arms; repeatable")
    parser.add_argument("--output-dir", metavar="DIR", help="default runs/study_NAME")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
