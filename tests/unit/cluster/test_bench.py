"""The configs that benchmarks run under on a GPU, which begin from one for CPUs."""

from __future__ import annotations

from pathlib import Path

from cluster.benchmarks import rollout, sync
from cluster.benchmarks.models import make_model, shapes_config
from cluster.benchmarks.report import Scope
from configs.schema import TinyJanusConfig


def test_on_a_gpu_the_cpus_kv_cache_and_optimizer_do_not_count(tmp_path: Path) -> None:
    folder, _ = make_model(tmp_path, "tiny", TinyJanusConfig())
    config = shapes_config(folder, rollout._overrides(Scope(quick=True, num_threads=1, on_gpu=True)))
    assert (config.model.dtype, config.rollout.gpus_per_worker, config.rollout.kv_cache_bytes) == ("bfloat16", 1, None)
    config = shapes_config(folder, rollout._overrides(Scope(quick=True, num_threads=1)))
    assert (config.model.dtype, config.rollout.gpus_per_worker, config.rollout.kv_cache_bytes) == ("float32", 0, 2**30)
    config = shapes_config(folder, ["model.dtype=bfloat16", "learner.zero_stage=1", *sync.ON_GPU])
    assert config.rollout.kv_cache_bytes == 2**30  # of each of two engines that start side by side on one card
