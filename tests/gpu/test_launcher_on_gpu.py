"""Short runs of the launcher on GPUs: everything on one, beside each other and in turns, and NCCL between two."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from cluster.reports import read_metrics
from cluster.reports.metrics import MetricsRow
from configs.schema import TinyJanusConfig
from learner.warm_start.tiny_janus import collect_words, save_random_tiny_janus
from rollout.shapes import load_split

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
RUN_TIMEOUT_S = 800.0
NUM_STEPS = 4
MAX_BEHAVIOUR_KL = 0.02
"""Nats a token between engine and learner that hold the same bfloat16 weights; rounding alone."""
FIELDS = (
    "run.name=on-gpu",
    f"run.steps={NUM_STEPS}",
    "model.tiny=null",
    "model.dtype=bfloat16",
    "warm_start=null",
    "data.evaluation={}",
    "algorithm.groups_per_step=4",
    "algorithm.max_staleness=0",
    "rollout.enforce_eager=false",
    "rollout.threads_per_worker=null",
    "learner.zero_stage=1",
    "learner.lr=1e-3",
    "learner.warmup_steps=0",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    words = collect_words(prompt.text for prompt in load_split("train", 200))
    save_random_tiny_janus(folder, TinyJanusConfig(hidden_size=256, num_heads=4), words)
    return folder


def launch(folder: Path, directory: Path, *fields: str) -> tuple[list[MetricsRow], str]:
    """Run the shapes config with other fields; returns its metrics and what it printed."""
    overrides = [*FIELDS, f"model.path={folder}", f"run.dir={directory}", *fields]
    sets = [argument for field in overrides for argument in ("--set", field)]
    command = [sys.executable, "-m", "cluster.launch", "--config", "configs/shapes_cpu.yaml", *sets]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed[-3000:]
    summary = json.loads((directory / "on-gpu" / "summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["groups_failed"]) == ("finished", NUM_STEPS, 0)
    return read_metrics(directory / "on-gpu" / "metrics.jsonl"), printed


def assert_engine_follows_learner(rows: list[MetricsRow]) -> None:
    """At staleness 0 engine and learner must hold the same weights at every step, after updates too."""
    assert [row["staleness/max"] for row in rows] == [0] * NUM_STEPS
    assert [row["skipped_steps"] for row in rows] == [0] * NUM_STEPS
    for row in rows:
        assert row["behaviour_kl"] is not None
        assert row["behaviour_kl"] < MAX_BEHAVIOUR_KL, f"step {row['step']}"


@pytest.mark.parametrize("backend", ["object_store", "ipc"])
def test_learner_and_engine_share_one_gpu_and_agree_after_each_update(
    folder: Path, tmp_path: Path, backend: str
) -> None:
    rows, printed = launch(
        folder,
        tmp_path,
        "rollout.gpus_per_worker=0.4",
        "rollout.gpu_memory_utilization=0.1",
        "rollout.kv_cache_gib=1",
        "learner.gpus_per_rank=0.4",
        f"weight_sync.backend={backend}",
    )
    if backend == "ipc":
        assert "goes through the object store" not in printed
    assert_engine_follows_learner(rows)


class FreeMemory:
    """Watches the free memory of the first GPU, from a run's first step on."""

    def __init__(self, metrics: Path) -> None:
        self.seen: list[int] = []
        self._metrics = metrics
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> FreeMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.01):
            if self._metrics.is_file() and (written := self._metrics.read_text().count("\n")):
                if written == NUM_STEPS:  # what follows is the end of the processes
                    return
                self.seen.append(torch.cuda.mem_get_info(0)[0])


def test_an_engine_that_takes_turns_with_the_learner_gives_its_memory_up_and_follows_it(
    folder: Path, tmp_path: Path
) -> None:
    with FreeMemory(tmp_path / "on-gpu" / "metrics.jsonl") as free:
        rows, printed = launch(
            folder,
            tmp_path,
            "rollout.colocate=true",
            "rollout.gpus_per_worker=0.4",
            "rollout.gpu_memory_utilization=0.1",
            "rollout.kv_cache_gib=2",
            "learner.gpus_per_rank=0.4",
            "weight_sync.backend=ipc",
        )
    assert "goes through the object store" not in printed
    assert_engine_follows_learner(rows)
    # The KV cache of 2 GiB is far more than all else that either of the two holds.
    assert max(free.seen) - min(free.seen) > 1.5 * 2**30
    for row in rows:
        print({key: value for key, value in row.items() if key.startswith("turns/")})


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs: NCCL joins no two processes on one")
def test_weights_travel_by_nccl_between_two_gpus(folder: Path, tmp_path: Path) -> None:
    rows, printed = launch(
        folder, tmp_path, "rollout.gpus_per_worker=1", "learner.gpus_per_rank=1", "weight_sync.backend=nccl"
    )
    assert "goes through the object store" not in printed
    assert_engine_follows_learner(rows)
