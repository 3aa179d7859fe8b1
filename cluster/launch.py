"""Start a run.

    python -m cluster.launch --config configs/shapes_cpu.yaml
    python -m cluster.launch --config configs/janus_pro_7b_8gpu.yaml --set learner.lr=2e-6 --dry-run
    ray job submit --working-dir . -- python -m cluster.launch --config configs/janus_pro_7b_cluster.yaml
    python -m cluster.launch --config configs/janus_pro_7b_8gpu.yaml --rehearse    # random weights, nothing downloaded
    python -m cluster.launch --resume runs/shapes_cpu            # or: latest, URL/KEY
    python -m cluster.launch --config configs/janus_pro_7b_cluster.yaml --resume auto      # begin it, or go on with it

Alone it starts a Ray of its own on this machine; inside a Ray job it uses the job's cluster. Ctrl-C
(or `ray job stop`) ends the run after the step that is being made, with a checkpoint; a second
Ctrl-C ends it at once. `--resume` goes on with a run from its last whole checkpoint, in its directory
(`cluster.state.going_on`); `--resume auto` is for supervisors, which start the same command again and again.

Exit codes: 0 finished; 1 the run failed; 2 the config, the data or the model is wrong, or the cluster
too small, and nothing was started; 129 its terminal was closed; 130 stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.planning.cards import CARDS
from cluster.session import StopSignals
from cluster.session.bounded_loop import hanging_threads
from cluster.session.stop_signals import LastToExit, end_at_once
from cluster.state import RunDirectory
from cluster.state.going_on import (
    AUTO,
    LATEST,
    SUPERVISED_PATIENCE_S,
    check_is_unfinished,
    find_latest,
    find_named,
    find_or_none,
    is_finished,
)
from cluster.state.run_copies import catch_up
from cluster.state.run_directory import LOCK_PATIENCE_S, is_in_job_copy
from configs.command_line import print_what_can_be_shown
from configs.errors import BicotError, ConfigError, DataError, ModelError, PlacementError
from configs.load import DEFAULT_CONFIG, load_config
from configs.local.environment import REDIS_URL_VARIABLE, with_environment, with_secrets
from configs.local.masking import mask_message, mask_override
from configs.local.paths import with_paths
from configs.resume import check_may_go_on, load_resumed_config
from configs.schema import RunConfig
from rollout.prompts import load_prompts

if TYPE_CHECKING:
    from cluster.training.launched_run import Observer


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    print_what_can_be_shown()
    _warn_of_secrets(options.set)
    exit_code = _exit_code(options)
    if hanging_threads():  # the interpreter would wait for them
        end_at_once(exit_code, "the run has ended, but a thread of the launcher hangs")
    return exit_code


def _exit_code(options: argparse.Namespace) -> int:
    try:
        return _main(options)
    except (ConfigError, DataError, ModelError, PlacementError) as error:
        print(f"error: {mask_message(str(error), options.set)}", file=sys.stderr)
        return 2
    except BicotError as error:
        print(f"error: {type(error).__name__}: {mask_message(str(error), options.set)}", file=sys.stderr)
        return 1
    except OSError as error:  # of the run directory: a full disk, a mount that is gone
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}; mend that, and go on", file=sys.stderr)
        return 1


def _warn_of_secrets(overrides: Sequence[str]) -> None:
    for override in overrides:
        if (shown := mask_override(override)) != override:
            field = override.partition("=")[0]
            print(
                f"--set {shown}: every user of this machine can read a command line (ps), and a Ray job keeps it; "
                f"give the secret by the environment: --set '{field}=${{NAME}}'"
                + (f", or {REDIS_URL_VARIABLE}" if field == "registry.redis_url" else ""),
                file=sys.stderr,
            )


def _main(options: argparse.Namespace) -> int:
    with StopSignals() as signals:
        try:
            return _start(options, signals)
        except SystemExit:
            if signals.has_come:
                return signals.exit_code
            raise


def _start(options: argparse.Namespace, signals: StopSignals) -> int:
    base = None if is_in_job_copy() else Path.cwd()
    directory = None
    if options.resume in (None, AUTO):
        config = with_paths(with_environment(load_config(options.config or DEFAULT_CONFIG, options.set)), base)
    else:
        directory = _find_run(options)
        config = with_paths(load_resumed_config(directory.config_path, options.set), base)
    if options.dry_run:
        return _describe(config, options.gpu)
    if options.rehearse:
        from cluster.rehearsal.rehearsal import rehearse

        return rehearse(config, options.layers, signals, launch)
    if options.resume != AUTO:
        return launch(config, signals, directory)
    if (directory := find_or_none(config)) is not None:
        check_may_go_on(directory.config_path, config)
        if is_finished(directory, config):
            print(f"{directory.path}: this run has made all its {config.run.steps} steps")
            return 0
    return launch(config, signals, directory, begun_again=True)


def _describe(config: RunConfig, card: str | None) -> int:
    from cluster.session.dry_run import describe_run
    from cluster.training.first_checks import check_first

    check_first(config)
    planned = describe_run(config, card)
    print(planned.text)
    for fault in planned.faults:
        print(f"error: {fault}", file=sys.stderr)
    return 2 if planned.faults else 0


def _find_run(options: argparse.Namespace) -> RunDirectory:
    if options.resume == LATEST:
        return find_latest(load_config(options.config or DEFAULT_CONFIG, options.set).run.dir)
    if options.config is not None:
        raise ConfigError(
            f"--config {options.config}: a run goes on with the config in its own directory, {options.resume}; leave "
            "--config out, and change what may change by --set"
        )
    return find_named(options.resume)


def launch(
    config: RunConfig,
    signals: StopSignals,
    resumed: RunDirectory | None = None,
    *,
    begun_again: bool = False,
    observer: Observer | None = None,
) -> int:
    """Run to the end, or until a signal comes; returns the exit code. Raises BicotError when the run fails.

    resumed: the run to go on with; None begins one. begun_again: by a supervisor, perhaps before its last launcher has
    let go of it; so it must lie where the same command finds it again. observer: who looks on.
    """
    _quieten()
    from cluster.training.first_checks import check_first
    from cluster.training.launched_run import LaunchedRun, Observer

    check_first(config)
    train = load_prompts(config.data.train, config.data.max_bad_lines)
    evaluation = {
        name: load_prompts(source, config.data.max_bad_lines) for name, source in config.data.evaluation.items()
    }
    signals.check()
    directory = resumed or RunDirectory.create(config, exactly=begun_again)
    with directory.locked(SUPERVISED_PATIENCE_S if begun_again else LOCK_PATIENCE_S, signals.check):
        if resumed is not None:
            check_is_unfinished(directory, config)
            directory.write_config(config)
            if (told := catch_up(directory, with_secrets(config))) is not None:
                print(told, file=sys.stderr)
        with _summary_set_aside(directory):
            is_new, observer = resumed is None, observer or Observer()
            run = LaunchedRun(with_secrets(config), train, evaluation, directory, signals, is_new, observer)
            return run.to_the_end()


@contextmanager
def _summary_set_aside(directory: RunDirectory) -> Iterator[None]:
    """A run that goes on has no summary until it ends; where going on is refused, the one before holds."""
    before = directory.summary_path.read_bytes() if directory.summary_path.exists() else None
    directory.summary_path.unlink(missing_ok=True)
    try:
        yield
    except (ConfigError, DataError, ModelError, PlacementError):
        if before is not None:
            directory.summary_path.write_bytes(before)
        raise


def _quieten() -> None:
    """Keep libraries of the launcher's own process from filling the screen, and from spinning on its cores."""
    from cluster.actors.spawning import quiet_environment, thread_environment

    for name, value in {**quiet_environment(), **thread_environment(1, 0)}.items():
        os.environ.setdefault(name, value)


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.launch",
        description="Train a text-to-image policy by BiCoT-GRPO: rollout workers, rewards and learner on Ray.",
        epilog="Everything the run writes is in DIR/NAME (run.dir, run.name of the config).",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file; default: the shapes world on CPU")
    parser.add_argument(
        "--resume",
        metavar="RUN_DIR",
        help="go on with a run from its last whole checkpoint, with the config in its directory and what --set may "
        f"change; '{LATEST}' is the one begun last under run.dir of --config, URL/KEY the one with copies there, and "
        f"'{AUTO}' the one called run.name, which is begun where there is none (for supervisors)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change one field of the config, for example learner.lr=2e-6 or rewards.shapes.weight=0.5; repeatable",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, the prompts and the plan, and start nothing",
    )
    parser.add_argument(
        "--gpu",
        choices=tuple(CARDS),
        help="with --dry-run: the card to plan for; what does not fit its memory is refused; default: shown for h100",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run the config end to end for a few steps: every component of its real class and width, with random "
        "weights and few layers, nothing downloaded; without the GPUs that it needs, with counts cut down, on this CPU",
    )
    parser.add_argument(
        "--layers", type=int, default=2, metavar="N", help="with --rehearse: layers of each model; default: %(default)s"
    )
    return parser


if __name__ == "__main__":
    last = LastToExit()
    sys.exit(last.returned(main()))
