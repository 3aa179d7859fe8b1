"""Which run a launcher goes on with.

--resume RUN_DIR     the one in that directory
--resume latest      the one begun last under run.dir
--resume URL/KEY     the one whose copies lie there (`cluster.state.run_copies`); its directory is made again
--resume auto        the one called run.name: in run.dir, or else at checkpoint.url; where there is none, a new one
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cluster.state.run_copies import RunCopies, fetch_run
from cluster.state.run_directory import CONFIG_NAME, RunDirectory, read_summary, resolve_root
from configs.errors import ConfigError
from configs.local.environment import with_secrets
from configs.local.masking import mask_text
from configs.schema import RunConfig

LATEST: Final = "latest"
AUTO: Final = "auto"
SUPERVISED_PATIENCE_S: Final = 120.0
"""A launcher that is started in place of a lost one waits so long for its lock: network file systems keep the lock of a
machine that is gone for a minute or two."""


def find_named(name: str) -> RunDirectory:
    """The run of `--resume RUN_DIR` or `--resume URL/KEY`. Raises ConfigError when there is none."""
    if "://" not in name:
        return RunDirectory.open(Path(name))
    return fetch_run(RunCopies.at(name))


def find_latest(run_dir: str) -> RunDirectory:
    """The run that was begun last under `run_dir`. Raises ConfigError when there is none."""
    root, _ = resolve_root(run_dir)
    configs = sorted(root.glob(f"*/{CONFIG_NAME}"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise ConfigError(f"--resume latest: there is no run in run.dir '{run_dir}' ({root}); name a run directory")
    # One that never came as far as a step or a checkpoint has nothing to go on with.
    begun = [path for path in configs if _has_begun(path.parent)]
    return RunDirectory.open((begun or configs)[-1].parent)


def find_or_none(config: RunConfig) -> RunDirectory | None:
    """The run of `--resume auto`; None where it has not been begun. Raises ConfigError when it could be several."""
    path = resolve_root(config.run.dir)[0] / config.run.name
    if (path / CONFIG_NAME).is_file():
        return RunDirectory.open(path)
    if (url := with_secrets(config).checkpoint.url) is None:
        return None
    keys = RunCopies.keys_of(url, config.run.name)
    if len(keys) > 1:
        raise ConfigError(
            f"--resume auto: checkpoint.url {mask_text(url)} holds {len(keys)} runs called '{config.run.name}' "
            f"({', '.join(keys)}); name one by --resume URL/KEY, or choose another run.name"
        )
    return fetch_run(RunCopies(url, keys[0]), config.run.dir) if keys else None


def is_finished(directory: RunDirectory, config: RunConfig) -> bool:
    """Whether the run has made all its steps."""
    summary = read_summary(directory.summary_path)
    return summary is not None and summary["status"] == "finished" and bool(summary["steps"] >= config.run.steps)


def check_is_unfinished(directory: RunDirectory, config: RunConfig) -> None:
    """Raises ConfigError for a run that has made all its steps."""
    if is_finished(directory, config):
        raise ConfigError(
            f"{directory.path}: this run has made all its {config.run.steps} steps; raise run.steps to make more, "
            "say by --set run.steps=1000"
        )


def _has_begun(path: Path) -> bool:
    metrics = path / "metrics.jsonl"
    return any((path / "checkpoints").glob("step_*")) or (metrics.exists() and metrics.stat().st_size > 0)
