"""The whole of training, end to end: T2I-R1's way against bicot's, with the same config, model and learner.

T2I-R1's way   for each prompt: transformers' loop writes and draws its group ─► rewards, a picture at a time
               ─► after the last one a step of the learner; one process, nothing overlaps
bicot          cluster.launch: vLLM on all groups at once, a reward pool, the learner beside them
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from cluster.benchmarks.isolation import isolated
from cluster.benchmarks.learner.speed import start_worker, unlimited_parity
from cluster.benchmarks.models import make_model, shapes_config
from cluster.benchmarks.overlap import NUM_WARM_UP_STEPS, run_steps
from cluster.benchmarks.report import Scope, Table, spread
from cluster.benchmarks.rewards import value_of
from cluster.benchmarks.rollout import TransformersLoop
from configs.schema import RunConfig, TinyJanusConfig
from rewards.registry import create_reward
from rollout.records import (
    Float32Array,
    GroupRequest,
    GroupRollout,
    Prompt,
    ScoredGroup,
    Trajectory,
    TrajectoryBatch,
    UInt8Array,
)  # fmt: skip
from rollout.shapes import load_split
from rollout.weights.buckets import unpack_bucket

THREADS = (1, 2)
"""That T2I-R1's way is given in turn: bicot's processes that compute are two, with one each."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Of one step, in seconds."""

    drawing: float
    """Plans and pictures, decoded."""
    scoring: float
    learning: float

    @property
    def total(self) -> float:
        return self.drawing + self.scoring + self.learning


class SequentialTraining:
    """T2I-R1's way, in this process.

    Its loop has no log-probabilities of what it draws: the learner finds them, as its first update is on-policy.
    """

    def __init__(self, folder: str, config: RunConfig) -> None:
        self.config = config
        self.loop = TransformersLoop(folder, config.rollout, config.model.dtype)
        reward = config.rewards[0]
        self.reward = create_reward(reward.name, reward.options, "cpu")
        self.learner = start_worker(folder, config)

    def step(self, number: int, prompts: Sequence[Prompt]) -> StepTimes:
        """A step on one group for each prompt."""
        drawing = scoring = 0.0
        groups = []
        for index, prompt in enumerate(prompts):
            started_s = time.perf_counter()
            trajectories, pictures = self._draw(prompt)
            drawn_s = time.perf_counter()
            rewards = self._score(pictures, prompt)
            drawing += drawn_s - started_s
            scoring += time.perf_counter() - drawn_s
            size = len(trajectories)
            request = GroupRequest(number * len(prompts) + index, 0, prompt, size, images_per_cot=1, seed=0)
            rollout = GroupRollout(request, trajectories, "sequential", started_s, drawn_s)
            groups.append(ScoredGroup(rollout, rewards, {"shapes": rewards}, ("",) * size, scored_s=0.0))
        started_s = time.perf_counter()
        self.learner.train_step(TrajectoryBatch(number, tuple(groups)))
        learning = time.perf_counter() - started_s
        self._share_weights()  # not counted: T2I-R1 draws with the very parameters that it trains
        return StepTimes(drawing, scoring, learning)

    def _draw(self, prompt: Prompt) -> tuple[tuple[Trajectory, ...], UInt8Array]:
        loop, conversation, size = self.loop, self.loop.conversation, self.config.algorithm.group_size
        semantic_prompt = conversation.semantic_prompt(prompt.text)
        cots = loop.write([semantic_prompt] * size)
        texts = [conversation.decode_cot(cot) for cot in cots]
        image_prompts = [conversation.image_prompt(prompt.text, text) for text in texts]
        codes = loop.draw(image_prompts)
        version = self.learner.weight_version
        trajectories = tuple(
            Trajectory(
                semantic_prompt_ids=semantic_prompt,
                cot_ids=cot,
                cot_logprobs=np.zeros(len(cot), np.float32),
                image_prompt_ids=image_prompt,
                image_ids=image_ids,
                image_logprobs=np.zeros(len(image_ids), np.float32),
                cot_text=text,
                guidance_scale=self.config.rollout.guidance_scale,
                seed=0,
                cot_versions=np.full(len(cot), version, np.int32),
                image_versions=np.full(len(image_ids), version, np.int32),
            )
            for cot, text, image_prompt, image_ids in zip(cots, texts, image_prompts, codes, strict=True)
        )
        return trajectories, loop.decoder.decode(codes)

    def _score(self, pictures: UInt8Array, prompt: Prompt) -> Float32Array:
        scores = [value_of(self.reward.score(picture[None], [prompt])[0]) for picture in pictures]
        return np.array(scores, np.float32)

    @torch.no_grad()
    def _share_weights(self) -> None:
        parameters = dict(self.loop.model.named_parameters())
        for bucket in self.learner.export_weights(self.learner.weight_version):
            for name, tensor in unpack_bucket(bucket):
                parameters[name].copy_(tensor)


def measure(scope: Scope) -> list[Table]:
    """Runs of a few steps, one after the other."""
    num_steps = scope.pick(quick=4, full=20)
    with tempfile.TemporaryDirectory(prefix="bicot-bench-", ignore_cleanup_errors=True) as directory:
        folder, size = make_model(Path(directory), "tiny", TinyJanusConfig())
        # In a process of its own each: a learner's process group is the process's.
        sequential = {threads: isolated(threads, run_sequential, folder, threads, num_steps) for threads in THREADS}
        steps = run_steps(Path(directory), "pipeline", folder, [], num_steps)
        num_pictures = shapes_config(folder).algorithm.trajectories_per_step
    ours = [row["time/step_s"] for row in steps]
    rows = []
    for threads, times in sequential.items():
        parts = (spread([getattr(one, part) for one in times]) for part in ("drawing", "scoring", "learning"))
        totals = [one.total for one in times]
        name = f"T2I-R1's way, {threads} thread{'s' if threads > 1 else ''}"
        rows.append((name, *_rate(totals, num_pictures), *parts, f"{median(totals) / median(ours):.3g} ×"))
    learning = spread([row["time/learn_s"] for row in steps])
    rows.append(("bicot", *_rate(ours, num_pictures), "beside it", "beside it", learning, ""))
    return [
        Table(
            "Pipeline: training end to end, T2I-R1's way against bicot's",
            f"`configs/shapes_cpu.yaml` as shipped, {num_pictures} pictures a step, {num_steps} steps, the first "
            f"{NUM_WARM_UP_STEPS} left out; a random policy of {size}. T2I-R1's way: transformers' loop on one group "
            "after the other, the reward on one picture after the other, then the same learner, in one process. "
            "bicot: `cluster.launch`, one thread for drawing and one for learning. Seconds, medians over steps.",
            ("", "pictures a second", "a step", "drawing", "scoring", "learning", "bicot / this"),
            tuple(rows),
        )
    ]


def run_sequential(folder: str, num_threads: int, num_steps: int, overrides: Sequence[str] = ()) -> list[StepTimes]:
    """Times of the steps that count, by T2I-R1's way."""
    torch.manual_seed(0)
    config = shapes_config(
        folder,
        [
            f"run.steps={num_steps}",
            f"learner.threads_per_rank={num_threads}",
            "algorithm.old_logprobs=recompute",
            *unlimited_parity(),  # there is nothing recorded to be compared
            *overrides,
        ],
    )
    training = SequentialTraining(folder, config)
    groups = config.algorithm.groups_per_step
    prompts = load_split("train", groups * num_steps)
    times = [training.step(number, prompts[number * groups : (number + 1) * groups]) for number in range(num_steps)]
    training.learner.close()
    return times[NUM_WARM_UP_STEPS:]


def _rate(step_s: Sequence[float], num_pictures: int) -> tuple[str, str]:
    return spread([num_pictures / one for one in step_s]), spread(step_s)
