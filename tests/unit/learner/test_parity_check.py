"""When the parity gate passes trajectories again, which costs a step time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.schema import RunConfig, TinyJanusConfig
from learner.batch import PlanSettings, plan_step
from learner.janus_policy import JanusPolicy
from learner.parity_check import ParityCheck
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.records import TrajectoryBatch
from tests.parity import Learner
from tests.records import make_scored_group

SHAPE = TinyJanusConfig(
    hidden_size=64, num_layers=1, num_heads=2, num_codes=32, image_size=16, patch_size=4, max_positions=64
)
NUM_LOOKS = 3 + 5
"""Passes for the derivatives: of the CoT by temperature, of the picture by guidance scale, too."""


@pytest.mark.parametrize(("version", "expected"), [(1, NUM_LOOKS), (2, 0)])
def test_only_tokens_of_the_learners_own_version_are_passed_again(tmp_path: Path, version: int, expected: int) -> None:
    save_random_tiny_janus(tmp_path, SHAPE, [f"word{index}" for index in range(40)])
    config = RunConfig.model_validate(
        {
            "run": {"steps": 4},
            "model": {"path": str(tmp_path), "dtype": "float32"},
            "data": {"train": "shapes:train:8"},
            "algorithm": {"groups_per_step": 2, "group_size": 2},
            "rollout": {"guidance_scale": 2.0},
            "rewards": [{"name": "shapes"}],
            "learner": {"micro_batch_size": 4},
        }
    )
    policy = JanusPolicy.load(str(tmp_path), torch.float32, logprob_chunk_bytes=2**20)
    passes: list[None] = []
    policy.register_forward_hook(lambda *_: passes.append(None))
    batch = TrajectoryBatch(0, tuple(make_scored_group(sequence, oldest=1, newest=1) for sequence in range(2)))
    plan = plan_step(batch, PlanSettings.of(config, 1), 0)
    ParityCheck(config, Learner(policy, version), None, torch.device("cpu")).begin(plan)
    assert len(passes) == expected
