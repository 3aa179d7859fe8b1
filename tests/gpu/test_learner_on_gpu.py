"""The learner's DeepSpeed step in bfloat16 on one GPU, at ZeRO 1 and 3."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import RunConfig, TinyJanusConfig
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.prompts import Conversation
from rollout.prompts.conversation import ConversationFormat
from rollout.records import ScoredGroup, TrajectoryBatch
from tests.integration.learner_ranks import Job, all_equal, run_jobs
from tests.records import asked_tokens, make_request, make_scored_group

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

SHAPE = TinyJanusConfig(
    hidden_size=256, num_layers=2, num_heads=4, num_codes=64, image_size=16, patch_size=4, max_positions=64
)
NUM_STEPS = 2
PROMPTS = ("word3", "word14 word15", "word9 word26", "word5 word35 word8")
RELATIVE_TOLERANCE = 0.1
"""Of the gradient's norm, between bfloat16 on the GPU and float32 on the CPU."""


def make_config(folder: Path, *, zero_stage: int, on_gpu: bool) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"steps": NUM_STEPS},
            "model": {"path": str(folder), "dtype": "bfloat16" if on_gpu else "float32"},
            "data": {"train": "shapes:train:8"},
            "algorithm": {"groups_per_step": 2, "group_size": 2, "kl_coef": 0.01},
            "rewards": [{"name": "shapes"}],
            "parity": {"max_abs": 1000.0, "max_sampling_error": 1e9},  # the batches are random
            "learner": {
                "zero_stage": zero_stage,
                "micro_batch_size": 2,
                "lr": 1e-3,
                "gpus_per_rank": 1 if on_gpu else 0,
                "gradient_checkpointing": on_gpu,
            },
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_random_tiny_janus(folder, SHAPE, [f"word{index}" for index in range(80)], weight_std=0.04)
    ConversationFormat("plan", "draw {prompt}").save(folder)
    return folder


@pytest.fixture(scope="module")
def batches(folder: Path) -> list[TrajectoryBatch]:
    conversation = Conversation.from_pretrained(folder)
    groups = [_asked(make_scored_group(sequence), conversation, prompt) for sequence, prompt in enumerate(PROMPTS)]
    return [TrajectoryBatch(step, tuple(groups[2 * step : 2 * step + 2])) for step in range(NUM_STEPS)]


def _asked(group: ScoredGroup, conversation: Conversation, prompt: str) -> ScoredGroup:
    """With the prompt's tokens in place of made-up ones."""
    trajectories = tuple(
        replace(trajectory, **asked_tokens(conversation, prompt, trajectory.cot_ids))
        for trajectory in group.rollout.trajectories
    )
    request = make_request(group.rollout.request.sequence, len(trajectories), prompt)
    return replace(group, rollout=replace(group.rollout, request=request, trajectories=trajectories))


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_bfloat16_step_on_the_gpu_learns_what_float32_on_the_cpu_does(
    folder: Path, batches: list[TrajectoryBatch], tmp_path: Path, zero_stage: int
) -> None:
    on_gpu = make_config(folder, zero_stage=zero_stage, on_gpu=True)
    on_cpu = make_config(folder, zero_stage=0, on_gpu=False)
    # In turn: a process keeps the accelerator that DeepSpeed found first.
    (tmp_path / "gpu").mkdir()
    (tmp_path / "cpu").mkdir()
    gpu = run_jobs([Job("gpu", on_gpu, batches)], 1, tmp_path / "gpu")["gpu"]
    cpu = run_jobs([Job("cpu", on_cpu, batches)], 1, tmp_path / "cpu")["cpu"]
    assert (gpu.error, cpu.error) == (None, None)
    assert [report.skipped for report in gpu.reports] == [None, None]
    assert gpu.reports[0].metrics["grad_norm"] == pytest.approx(
        cpu.reports[0].metrics["grad_norm"], rel=RELATIVE_TOLERANCE
    )
    assert all(np.isfinite(report.metrics["loss"]) for report in gpu.reports)
    assert gpu.weights[0].keys() == cpu.weights[0].keys()
    assert {tensor.dtype for tensor in gpu.weights[0].values()} == {torch.bfloat16}
    assert not all_equal(gpu.weights[0], gpu.weights[1])


def test_an_optimizer_that_is_offloaded_between_steps_gives_its_memory_back_and_makes_the_same_steps(
    folder: Path, batches: list[TrajectoryBatch], tmp_path: Path
) -> None:
    config = make_config(folder, zero_stage=1, on_gpu=True)
    jobs = [Job("stays", config, batches), Job("offloaded", config, batches, offloads=True)]
    results = run_jobs(jobs, 1, tmp_path)
    stays, offloaded = results["stays"], results["offloaded"]
    assert (stays.error, offloaded.error, stays.freed_bytes) == (None, None, 0)
    num_trained = sum(tensor.numel() for tensor in offloaded.weights[-1].values())
    assert offloaded.freed_bytes >= 12 * num_trained, "master weights and two moments in float32"
    for mine, other in zip(offloaded.reports, stays.reports, strict=True):
        assert mine.metrics["grad_norm"] == pytest.approx(other.metrics["grad_norm"], rel=0.01)
    # The second step has the moments of the first: AdamW moves each value by about lr, whichever way.
    for name, tensor in offloaded.weights[-1].items():
        assert torch.allclose(tensor.float(), stays.weights[-1][name].float(), atol=3 * config.learner.lr), name
