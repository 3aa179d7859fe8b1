"""Evaluate a model on the benchmarks of the field with the rollout workers of a run's config, on Ray.

    python -m rewards.benchmark geneval --config configs/janus_pro_7b_cluster.yaml --data geneval --scorer detector=FILE
    ray job submit --working-dir . -- python -m rewards.benchmark shapes --config configs/shapes_cpu.yaml --model CKPT

`rewards.benchmark --config` hands over to this command; options, files and results are the same. Alone it starts a Ray
of its own on this machine; with cluster.address, or inside a Ray job, it uses that cluster. Workers that die are
replaced, and what was in flight is drawn or scored again; after Ctrl-C or the launcher's death the same command goes
on, picture by picture.

Exit codes: as `rewards.benchmark`; 129, 130, 143 after a signal.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cluster.evaluation import Evaluation, drawing_of
from cluster.evaluation.settings import DRAWING, plan_of_scorers, plan_of_workers
from cluster.session import StopSignals, ray_session
from cluster.session.bounded_loop import hanging_threads, run_bounded
from cluster.session.local_ray import User
from cluster.session.nodes import check_cluster
from cluster.session.stop_signals import LastToExit, end_at_once
from cluster.state.run_directory import is_in_job_copy, resolve_root
from configs.command_line import exit_code_of
from configs.errors import ConfigError
from configs.load import load_config
from configs.local.paths import with_paths
from rewards.benchmarks.command import TABLE, choose, console_of, make_parser, parse, served_judge

KEPT = "what is drawn and scored so far is kept; the same command goes on"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = build_parser()
    arguments = parse(parser, argv, argparse.Namespace(**dict.fromkeys(DRAWING)))
    if arguments.name == TABLE or not arguments.config:
        parser.error("--config is missing; without one, and for `table`: python -m rewards.benchmark")
    exit_code = exit_code_of(partial(_main, arguments), KEPT)
    if hanging_threads():  # the interpreter would wait for them
        end_at_once(exit_code, "the evaluation has ended, but a thread of it hangs")
    return exit_code


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    return make_parser(prog="python -m cluster.evaluate")


def _main(arguments: argparse.Namespace) -> int:
    with StopSignals() as signals:
        try:
            exit_code = _start(arguments, signals)
        except SystemExit:
            if not signals.has_come:
                raise
            exit_code = signals.exit_code
        if signals.has_come:
            print(f"interrupted; {KEPT}", file=sys.stderr)
        return exit_code


def _start(arguments: argparse.Namespace, signals: StopSignals) -> int:
    console = console_of()
    config = with_paths(load_config(arguments.config, arguments.set), None if is_in_job_copy() else Path.cwd())
    drawing = None if arguments.images else drawing_of(arguments, config)
    arguments.output_dir, surprise = resolve_root(str(arguments.output_dir), "--output-dir")
    if surprise is not None:
        console.print(surprise, markup=False, soft_wrap=True)
    try:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output-dir {arguments.output_dir} cannot be made: {error.strerror or error}") from error
    with served_judge(arguments, console.print) as judge:
        chosen, lacking = choose(arguments, config.data.benchmarks)
        evaluation = Evaluation(arguments, chosen, config, drawing, console, judge)
        signals.check()
        is_well = run_bounded(_stoppable(evaluation, signals))
    for name, reason in lacking.items():
        console.print(f"left out: {name}: {reason}", style="yellow", markup=False, soft_wrap=True)
    return signals.exit_code if signals.has_come else 0 if is_well else 1


async def _stoppable(evaluation: Evaluation, signals: StopSignals) -> bool:
    this = asyncio.current_task()
    assert this is not None
    with signals.calling(this.cancel):
        try:
            return await _on_ray(evaluation, signals)
        except asyncio.CancelledError:
            if not signals.has_come:
                raise
            return False


async def _on_ray(evaluation: Evaluation, signals: StopSignals) -> bool:
    config = evaluation.config
    names = [choice.name for choice in evaluation.chosen]
    workers, scorers = plan_of_workers(config), plan_of_scorers(config.data.benchmarks, names)
    first = scorers if evaluation.drawing is None else workers
    user = User(evaluation.note, signals.check, signals.held)
    with ray_session(config.cluster, first, evaluation.arguments.output_dir / "logs", user):
        if not config.cluster.autoscaling:
            check_cluster(scorers)
        return await evaluation.execute()


if __name__ == "__main__":
    last = LastToExit()
    sys.exit(last.returned(main()))
