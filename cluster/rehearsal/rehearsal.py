"""Runs a config end to end before anyone pays for it.

    config ─► cuts ─► random policy and rewards, prompts ─► run: 2 steps, checkpoint ─► resume: 1 step ─► table
                                                    placement, engine, VQ decoder, rewards, learner, weight sync

On a cluster, or where there are the GPUs that the config asks for, its counts and sizes stay as they are. The first
failure ends it, with the run's own error and remedy.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from cluster.planning.memory import GIB
from cluster.rehearsal.cuts import (
    ONE_MACHINE,
    RESUMED_STEPS,
    Cut,
    Cutter,
    cut_everywhere,
    cut_to_memory,
    cut_to_one_machine,
    needs_gpus,
)
from cluster.rehearsal.materials import cut_data, cut_rewards, shape_with_layers, with_materials
from cluster.rehearsal.observing import Life
from cluster.rehearsal.report import describe_cuts, describe_lives
from cluster.session import StopSignals
from cluster.session.placement import plan_placement
from cluster.session.ray_address import AUTO, find_ray_address
from cluster.state import RunDirectory
from cluster.state.run_directory import resolve_root
from configs.errors import ConfigError
from configs.resume import load_resumed_config
from configs.schema import RunConfig

MEMORY_SHARE: Final = 0.85
"""Of the free memory that a rehearsal takes at most."""
Launch = Callable[..., int]
"""`cluster.launch.launch`."""


@dataclass(slots=True)
class Rehearsal:
    """What was rehearsed, for the report."""

    cuts: list[Cut] = field(default_factory=list)
    materials_s: float | None = None
    """Seconds for policy and rewards with random weights."""
    lives: list[Life] = field(default_factory=list)


def rehearse(config: RunConfig, layers: int, signals: StopSignals, launch: Launch) -> int:
    """Rehearse and print what was cut and how it went; returns the exit code. layers: of each model.

    Raises what the run itself would raise, at its first failure.
    """
    if layers < 1:
        raise ConfigError(f"--layers {layers}: a model has one layer at least")
    on_cpu = needs_gpus(config) and not _has_gpus(config)
    rehearsed = Rehearsal()
    with _workspace(config, is_temporary=on_cpu or find_ray_address(config.cluster.address)[0] is None) as folder:
        cut = _cut(config, layers, folder, on_cpu, rehearsed)
        print(f"rehearsal of {config.run.name} in {folder}")
        print(describe_cuts(config, cut.layers, rehearsed.cuts, cut.memory), flush=True)
        try:
            exit_code = _run(cut, folder, signals, launch, rehearsed)
        except BaseException:
            print(describe_lives(config, rehearsed.materials_s, rehearsed.lives, failed=True), flush=True)
            raise
        print(describe_lives(config, rehearsed.materials_s, rehearsed.lives, failed=exit_code != 0), flush=True)
        return exit_code


@dataclass(frozen=True, slots=True)
class _CutConfig:
    config: RunConfig
    texts: list[str]
    layers: int
    """As many as fit, at most those that were asked for."""
    memory: str | None
    """What it will need, for people; None where GPUs hold it."""


def _cut(config: RunConfig, layers: int, folder: Path, on_cpu: bool, rehearsed: Rehearsal) -> _CutConfig:
    cutter = Cutter(config)
    rehearsed.cuts = cutter.cuts
    cut_rewards(cutter, config)
    config = cutter.config("--rehearse")
    cut_everywhere(cutter, config)
    texts, memory = cut_data(cutter, config), None
    cutter.set("run.dir", str(folder), "removed when it is over")
    cutter.set("run.cache_dir", str(folder / "cache"), "removed when it is over")
    if on_cpu:
        cut_to_one_machine(cutter, config, shape_with_layers(config, layers))
        available_bytes = int(MEMORY_SHARE * psutil.virtual_memory().available)
        layers, needed = cut_to_memory(
            cutter, partial(shape_with_layers, config), layers, available_bytes, "--rehearse"
        )
        memory = f"about {needed} of {available_bytes / GIB:.1f} that may be taken"
    elif config.cluster.address == AUTO and not _is_ray_here(config):
        cutter.set("cluster.address", None, ONE_MACHINE)
    return _CutConfig(cutter.config("--rehearse"), texts, layers, memory)


def _run(cut: _CutConfig, folder: Path, signals: StopSignals, launch: Launch, rehearsed: Rehearsal) -> int:
    from cluster.training.launched_run import Observer

    def one_life(config: RunConfig, resumed: RunDirectory | None) -> int:
        life = Life()
        rehearsed.lives.append(life)
        return launch(config, signals, resumed, observer=Observer(life.make_progress, life.take_usages))

    began_s = time.monotonic()
    print("making policy and rewards with random weights …", flush=True)
    config = with_materials(cut.config, folder, cut.layers, cut.texts)
    rehearsed.materials_s = time.monotonic() - began_s
    signals.check()
    exit_code = one_life(config, None)
    if exit_code:
        return exit_code
    directory = RunDirectory.open(folder / config.run.name)
    return one_life(load_resumed_config(directory.config_path, [f"run.steps={RESUMED_STEPS}"]), directory)


@contextmanager
def _workspace(config: RunConfig, is_temporary: bool) -> Iterator[Path]:
    """A folder for everything, on a cluster one that all nodes see; removed unless the rehearsal fails."""
    root = None
    if not is_temporary:
        root, _ = resolve_root(config.run.dir)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run.dir '{config.run.dir}' cannot be made: {error.strerror or error}") from error
    folder = Path(tempfile.mkdtemp(prefix=f"rehearsal-{config.run.name}-", dir=root))
    try:
        yield folder
    except BaseException:
        print(f"what it has written stays for a look, its logs above all: {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _has_gpus(config: RunConfig) -> bool:
    """Whether the config's own GPUs may be there: those of a cluster, which Ray is asked for, or of this machine."""
    if _is_ray_here(config):
        return True
    import torch

    return torch.cuda.device_count() >= plan_placement(config).num_gpus


def _is_ray_here(config: RunConfig) -> bool:
    address, _ = find_ray_address(config.cluster.address)
    if address is None:
        return False
    is_named = address != AUTO or find_ray_address(None)[0] is not None
    return is_named or (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster").exists()
