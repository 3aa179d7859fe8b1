"""Start a run.

    python -m cluster.launch --config configs/shapes_cpu.yaml
    python -m cluster.launch --config configs/janus_pro_7b_8gpu.yaml --set learner.lr=2e-6 --dry-run
    ray job submit --working-dir . -- python -m cluster.launch --config configs/janus_pro_7b_cluster.yaml
    python -m cluster.launch --resume runs/shapes_cpu            # or: --resume latest

Alone it starts a Ray of its own on this machine; inside a Ray job it uses the job's cluster. Ctrl-C
(or `ray job stop`) ends the run after the step that is being made, with a checkpoint; a second
Ctrl-C ends it at once. `--resume` goes on with a run from its last whole checkpoint, in its directory.

Exit codes: 0 finished; 1 the run failed; 2 the config, the data or the model is wrong, or the cluster
too small, and nothing was started; 130 stopped by Ctrl-C; 143 stopped by SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from cluster.session import StopSignals
from cluster.state import RunDirectory
from cluster.state.run_directory import check_is_unfinished
from configs.errors import BicotError, ConfigError, DataError, ModelError, PlacementError
from configs.load import DEFAULT_CONFIG, load_config
from configs.resume import load_resumed_config, with_environment
from configs.schema import RunConfig
from rollout.prompts import PromptSet, load_prompts

LATEST = "latest"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return _main(options)
    except (ConfigError, DataError, ModelError, PlacementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BicotError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _main(options: argparse.Namespace) -> int:
    with StopSignals() as signals:
        if options.resume is not None:
            directory = _find_run(options)
            config = load_resumed_config(directory.config_path, options.set)
        else:
            directory = None
            config = with_environment(load_config(options.config, options.set))
        if options.dry_run:
            from cluster.first_checks import check_first
            from cluster.session.dry_run import describe_run

            check_first(config)
            print(describe_run(config))
            return 0
        return launch(config, signals, directory)


def _find_run(options: argparse.Namespace) -> RunDirectory:
    if options.resume != LATEST:
        return RunDirectory.open(Path(options.resume))
    return RunDirectory.latest(load_config(options.config, options.set).run.dir)


def launch(config: RunConfig, signals: StopSignals, resumed: RunDirectory | None = None) -> int:
    """Run to the end, or until a signal comes; returns the exit code. Raises BicotError when the run fails.

    resumed: the run to go on with; None begins one.
    """
    _quieten()
    from cluster.first_checks import check_first

    check_first(config)
    train = load_prompts(config.data.train, config.data.max_bad_lines)
    evaluation = {
        name: load_prompts(source, config.data.max_bad_lines) for name, source in config.data.evaluation.items()
    }
    directory = resumed or RunDirectory.create(config)
    with directory.locked():
        if resumed is not None:
            check_is_unfinished(directory, config)
            directory.write_config(config)
            directory.summary_path.unlink(missing_ok=True)
        return _run(config, train, evaluation, directory, signals, is_new=resumed is None)


def _run(
    config: RunConfig,
    train: PromptSet,
    evaluation: Mapping[str, PromptSet],
    directory: RunDirectory,
    signals: StopSignals,
    *,
    is_new: bool,
) -> int:
    from cluster.reports import Progress, RunLog
    from cluster.reports.metrics_file import MetricsWriter
    from cluster.run import Run
    from cluster.session import PrivateRedis, plan_placement, ray_session
    from cluster.state import Checkpoints, Registry, RunState

    async def run_to_the_end(redis_url: str) -> int:
        async with Registry(redis_url, directory.name) as registry:
            if is_new:
                await registry.clear()
            await registry.clear_workers()
            checkpoint, state = await checkpoints.newest() or (None, RunState())
            if checkpoint is not None:
                progress.note(f"going on from step {state.step} ({checkpoint})")
            with ray_session(config.cluster, plan_placement(config), directory.logs_dir):
                log = RunLog(config, directory, registry, progress, metrics, checkpoints)
                run = Run(config, train, evaluation, log, state, checkpoint)
                with signals.calling(run.stop):
                    try:
                        summary = await run.execute()
                    except asyncio.CancelledError:  # told twice to stop: without its last checkpoint
                        progress.note(f"go on with it: {directory.resume_command}")
                        return signals.exit_code
                    except BicotError:
                        progress.note(f"what the processes printed: {directory.logs_dir}, on a cluster Ray's dashboard")
                        progress.note(f"go on with it, when that is mended: {directory.resume_command}")
                        raise
        progress.finish(summary, directory.path)
        if summary.status == "stopped":
            progress.note(f"go on with it: {directory.resume_command}")
        return signals.exit_code if summary.status == "stopped" else 0

    with ExitStack() as stack:
        progress = stack.enter_context(Progress(config.run.steps))
        checkpoints = Checkpoints(directory.checkpoints_dir, config.checkpoint, progress.note)
        metrics = stack.enter_context(MetricsWriter(directory.metrics_path))
        progress.note(directory.note or f"run directory: {directory.path}")
        progress.note(f"if it is interrupted: {directory.resume_command}")
        progress.stage("starting Redis and Ray")
        redis_url = config.registry.redis_url
        if redis_url is None:
            redis_url = stack.enter_context(PrivateRedis(directory.redis_dir, config.registry.redis_port)).url
        return asyncio.run(run_to_the_end(redis_url))


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
    parser.add_argument(
        "--config",
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help="YAML file; default: the shapes world on CPU",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN_DIR",
        help="go on with a run from its last whole checkpoint, with the config in its directory and what --set may "
        f"change; '{LATEST}' is the one begun last under run.dir of --config",
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
        help="print the resolved config, the prompts and the placement plan, and start nothing",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
