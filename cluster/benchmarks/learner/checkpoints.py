"""What a step waits for a checkpoint: written beside the steps, against written before the next one."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cluster.benchmarks.learner.speed import make_batch, start_worker, unlimited_parity
from cluster.benchmarks.models import HUNDRED_MB, make_model, shapes_config
from cluster.benchmarks.report import Scope, Table, spread
from configs.schema import TinyJanusConfig
from learner.worker import LearnerWorker
from rollout.records import TrajectoryBatch

MODELS = {"tiny": TinyJanusConfig(), "hundred-mb": HUNDRED_MB}


def measure_checkpoints(scope: Scope) -> Table:
    """One row a model."""
    rows = [_row(name, shape, scope) for name, shape in MODELS.items()]
    return Table(
        "Learner: what a step waits for a checkpoint, milliseconds",
        "One rank (DeepSpeed, ZeRO 0, float32), steps of one group of 8. State (float32 weights and two moments) and "
        "model are copied in memory, which is all that a step waits for; then a thread writes both and fsyncs them "
        "while steps are made. `in the foreground`: copy and writing, one after the other, before the next step.",
        ("model", "files, MB", "a step", "copy", "a step while writing", "in the foreground", "foreground / copy"),
        tuple(rows),
    )


def _row(name: str, shape: TinyJanusConfig, scope: Scope) -> tuple[str, ...]:
    num_rounds = scope.pick(quick=3, full=7)
    with tempfile.TemporaryDirectory(prefix="bicot-bench-") as directory, ThreadPoolExecutor(1) as writing:
        folder, size = make_model(Path(directory), name, shape)
        overrides = [
            "algorithm.groups_per_step=1",
            "learner.micro_batch_size=8",
            f"learner.threads_per_rank={scope.num_threads}",
            "run.steps=100000",
        ]
        config = shapes_config(folder, [*overrides, *unlimited_parity()])
        batch, worker = make_batch(folder, config), start_worker(folder, config)
        for version in range(2):  # until the parity gate has compared two versions, it looks at more in each step
            worker.train_step(make_batch(folder, config, version))
        times: dict[str, list[float]] = {"alone": [], "copy": [], "beside": [], "foreground": []}
        for number in range(num_rounds + 1):
            alone_s = _step_s(worker, batch)
            copy_s = _copy_s(worker)
            written = writing.submit(_write, worker, Path(directory) / "background")
            beside_s = [_step_s(worker, batch) for _ in _until(written)]
            foreground_s = _copy_s(worker) + _write(worker, Path(directory) / "foreground")
            if number:  # the first round gets the memory from the system, and the optimizer's state
                times["alone"].append(alone_s)
                times["copy"].append(copy_s)
                times["beside"] += beside_s
                times["foreground"].append(foreground_s)
        num_bytes = sum(file.stat().st_size for file in (Path(directory) / "foreground").rglob("*") if file.is_file())
        worker.close()
    cells = (spread([1000 * value for value in values]) for values in times.values())
    ratios = [whole / copy for whole, copy in zip(times["foreground"], times["copy"], strict=True)]
    return (size, f"{num_bytes / 1e6:,.0f}", *cells, spread(ratios) + " ×")


def _until(written: Future[float]) -> Iterator[None]:
    """Once at least, and until it is written."""
    yield
    while not written.done():
        yield
    written.result()


def _step_s(worker: LearnerWorker, batch: TrajectoryBatch) -> float:
    started_s = time.perf_counter()
    worker.train_step(batch)
    return time.perf_counter() - started_s


def _copy_s(worker: LearnerWorker) -> float:
    started_s = time.perf_counter()
    worker.take_snapshot(worker.weight_version)
    return time.perf_counter() - started_s


def _write(worker: LearnerWorker, directory: Path) -> float:
    """Seconds until all of it is on the disk."""
    started_s = time.perf_counter()
    worker.write_snapshot(directory / "state", directory / "model")
    for file in directory.rglob("*"):
        if file.is_file():
            with file.open("rb") as written:
                os.fsync(written.fileno())
    return time.perf_counter() - started_s
