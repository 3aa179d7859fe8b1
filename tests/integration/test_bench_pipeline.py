"""The benchmark's T2I-R1's way trains for real: what it draws with is what it has learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from cluster.benchmarks.isolation import isolated
from cluster.benchmarks.models import make_model, shapes_config
from cluster.benchmarks.pipeline.sequential import SequentialTraining
from cluster.benchmarks.pipeline.tables import run_sequential
from configs.schema import TinyJanusConfig
from rollout.records import Prompt, Score, UInt8Array
from rollout.shapes import load_split

SHAPE = TinyJanusConfig(hidden_size=32, num_layers=1, num_heads=2)
OVERRIDES = ["algorithm.groups_per_step=2", "algorithm.group_size=2", "learner.micro_batch_size=4"]


def train(folder: str) -> tuple[list[int], list[float], bool, bool]:
    """Of two steps, in a process of its own: how many pictures each call of the reward got, seconds of the parts,
    whether the drawing model's weights have changed, and whether the learner finds them equal to its own."""
    more = ["algorithm.old_logprobs=recompute", "parity.max_abs=1000", "parity.max_sampling_error=1e9"]
    training = SequentialTraining(folder, shapes_config(folder, [*OVERRIDES, "run.steps=2", "learner.lr=0.01", *more]))
    calls: list[int] = []

    def score(pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        calls.append(len(pictures))
        return [Score(float(len(calls) % 2))]  # a random model's pictures are all worth 0, and teach nothing

    training.reward.score = score
    before = training.loop.model.lm_head.weight.detach().clone()
    prompts = load_split("train", 4)
    seconds = []
    for number in range(2):
        times = training.step(number, prompts[2 * number : 2 * number + 2])
        seconds += [times.drawing, times.scoring, times.learning]
    weight = training.loop.model.lm_head.weight
    learned = dict(training.learner._policy.named_changing_parameters())["lm_head.weight"]
    return calls, seconds, not weight.equal(before), torch.equal(weight, learned)


def test_a_step_scores_one_picture_at_a_time_learns_and_draws_with_what_it_learned(tmp_path: Path) -> None:
    folder, _ = make_model(tmp_path, "tiny", SHAPE)
    calls, seconds, changed, is_the_learners = isolated(1, train, folder)
    assert calls == [1] * 8
    assert min(seconds) > 0
    assert (changed, is_the_learners) == (True, True)
    assert len(isolated(1, run_sequential, folder, 1, 3, OVERRIDES)) == 1, "two warm it up"
