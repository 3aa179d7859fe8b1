"""T2I-R1's way of training, in one process, with bicot's learner."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cluster.benchmarks.learner.speed import start_worker
from cluster.benchmarks.rewards import value_of
from cluster.benchmarks.rollout import TransformersLoop
from configs.schema import RunConfig
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
from rollout.weights.buckets import unpack_bucket


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
