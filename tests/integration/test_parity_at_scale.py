"""The parity gate at Janus-Pro-1B's real shape in bfloat16: 24 layers, 2,048 wide, 102,400 words, on a CPU.

vLLM's engine and the learner's policy are never in memory together: the engine has a process of its own, which has
ended when the learner loads the same weights. Each of them needs some 6 GiB.
"""

from __future__ import annotations

import asyncio
import copy
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cluster.benchmarks.isolation import isolated
from cluster.planning.known_models import KNOWN
from configs.schema import RunConfig
from learner.janus_policy import JanusPolicy
from learner.warm_start.random_janus import save_random_janus
from rollout.records import GroupRollout, ScoredGroup, TrajectoryBatch
from rollout.worker import RolloutWorker
from tests.parity import judge
from tests.records import make_request

NUM_LAYERS = 24
NUM_TOKENS = 32
"""Of each CoT and each picture: as many as the gate itself asks for where it probes a worker."""
GROUP_SIZE = 2
GIB = 2**30

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1500)]


def janus_pro_1b() -> dict[str, Any]:
    """Its config.json, but for the vision tower and the VQ model, which the policy's tokens do not pass."""
    config = copy.deepcopy(KNOWN["deepseek-community/Janus-Pro-1B"])
    config["vq_config"]["base_channels"] = 32
    config["vision_config"]["num_hidden_layers"] = 1
    return config


def config_of(folder: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"path": str(folder), "dtype": "bfloat16"},
            "data": {"train": "shapes:train"},
            "rewards": [{"name": "shapes"}],
            "algorithm": {"groups_per_step": 1, "group_size": GROUP_SIZE},
            "rollout": {
                "max_prompt_tokens": 128,
                "max_cot_tokens": NUM_TOKENS,
                "max_num_seqs": 2 * GROUP_SIZE,
                "kv_cache_gib": 0.5,
                "decode_batch_size": 1,
                "enforce_eager": True,
                "threads_per_worker": 2,
                "vllm": {"max_num_batched_tokens": 1024},
            },
            "learner": {"micro_batch_size": GROUP_SIZE, "zero_stage": 1},
        }
    )


def make_folder(folder: Path) -> float:
    """Peak memory in GiB."""
    words = ["red", "blue", "star", "circle"]
    save_random_janus(folder, janus_pro_1b(), layers=NUM_LAYERS, dtype=torch.bfloat16, words=words)
    return peak_gib()


def draw(folder: Path) -> tuple[GroupRollout, float]:
    """What a rollout worker with vLLM's engine samples and records, and peak memory in GiB."""

    async def run() -> GroupRollout:
        worker = await RolloutWorker.start(str(folder), config_of(folder), "rollout-0")
        try:
            return await worker.probe(make_request(0, GROUP_SIZE, "a red star and a blue circle"), NUM_TOKENS)
        finally:
            await worker.close()

    return asyncio.run(run()), peak_gib()


def compare(folder: Path, rollout: GroupRollout) -> tuple[dict[str, float], float]:
    """The gate's metrics, and peak memory in GiB. Raises what the gate raises."""
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    config = config_of(folder)
    policy = JanusPolicy.load(str(folder), torch.bfloat16, logprob_chunk_bytes=2**20).requires_grad_(False)
    rewards = np.arange(GROUP_SIZE, dtype=np.float32)
    batch = TrajectoryBatch(0, (ScoredGroup(rollout, rewards, {"shapes": rewards}, ("",) * GROUP_SIZE, 0.0),))
    metrics = judge(config, policy, batch, 0)
    return metrics, peak_gib()


def peak_gib() -> float:
    """Of this process, or of the largest that it has started and that has ended: vLLM's engine core is one."""
    used = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return max(used) * 1024 / GIB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("scale") / "janus-pro-1b"
    print(f"random weights: {isolated(2, make_folder, folder):.1f} GiB")
    yield folder
    for file in folder.glob("*.safetensors"):  # pytest keeps the folders of the last runs
        file.unlink()


def test_a_correct_engine_passes_in_bfloat16_at_the_real_shape(folder: Path) -> None:
    rollout, drawn_gib = isolated(2, draw, folder)
    assert all(len(one.image_ids) == NUM_TOKENS for one in rollout.trajectories)
    metrics, compared_gib = isolated(2, compare, folder, rollout)
    print(f"engine {drawn_gib:.1f} GiB, learner {compared_gib:.1f} GiB")
    for phase in ("cot", "image"):
        mean, limit = metrics[f"parity/mean_abs/{phase}"], metrics[f"parity/limit/{phase}"]
        bias = metrics[f"parity/bias/{phase}"]
        print(
            f"{phase}: mean |p - q| {mean:.4f}, bias {bias:+.4f}, allowed {limit:.4f} nats ({limit / mean:.1f} times)"
        )
        assert 0 < mean < limit / 1.5
