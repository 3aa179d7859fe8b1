"""How long the stages of a training step take at best, on a given card.

rollout   each decoding step reads the weights once and every running picture's keys and values; a picture takes
          `num_image_tokens` steps, its plan some more. With n pictures at once: n / (steps x seconds a step).
learner   forward and backward pass of every token: 6 FLOP a parameter and token, 2 more for the reference, 2 more with
          gradient checkpointing (recomputed forward pass).
rewards   not computed: their models' sizes are not in the config. `cluster.bench reward_models` measures them.

The stages overlap when `algorithm.max_staleness` is above 0: the slowest bounds the speed; at 0 they add up.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.planning.cards import EFFICIENCY, STEP_OVERHEAD_S, Card
from cluster.planning.memory import (
    bytes_per_value,
    mean_sequence_tokens,
    pictures_at_once,
    rollout_worker,
)
from cluster.planning.model_shape import ModelShape
from configs.schema import RunConfig


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of one training step's stages, at best."""

    rollout_s: float
    learner_s: float
    pictures_per_s: float
    """Of all rollout workers together."""
    overlaps: bool

    @property
    def step_s(self) -> float:
        return max(self.rollout_s, self.learner_s) if self.overlaps else self.rollout_s + self.learner_s

    @property
    def bound_by(self) -> str:
        return "rollout" if self.rollout_s >= self.learner_s else "the learner"


def step_times(config: RunConfig, shape: ModelShape, card: Card) -> StepTimes:
    """At best, with all of the config's workers on cards of this kind."""
    speed = pictures_per_s(config, shape, card) * config.rollout.num_workers.min
    trajectories = config.algorithm.trajectories_per_step
    return StepTimes(
        rollout_s=trajectories / speed if speed else float("inf"),
        learner_s=learner_s(config, shape, card),
        pictures_per_s=speed,
        overlaps=config.algorithm.max_staleness > 0,
    )


def pictures_per_s(config: RunConfig, shape: ModelShape, card: Card) -> float:
    """Of one rollout worker. 0 when not one picture's keys and values fit beside the weights."""
    rollout, size = config.rollout, bytes_per_value(config.model.dtype)
    need = rollout_worker(config, shape, card.memory_bytes)
    at_once = min(rollout.max_num_seqs, pictures_at_once(config, shape, need.parts["KV cache"]))
    if at_once < 1:
        return 0.0
    streams = 2 if rollout.guidance_scale != 1 else 1
    # While a picture is drawn its context is on average its final length less half the picture.
    context = mean_sequence_tokens(config, shape) - shape.num_image_tokens / 2
    cache = at_once * context * shape.text.kv_bytes_per_token(size, streams)
    parallel = rollout.tensor_parallel_size
    read_s = (shape.trainable * size + cache) / (card.bandwidth * parallel)
    compute_s = 2 * shape.trainable * streams * at_once / (card.flops * EFFICIENCY * parallel)
    steps = shape.num_image_tokens + config.rollout.max_cot_tokens / 2
    return at_once / (steps * (max(read_s, compute_s) + STEP_OVERHEAD_S))


def learner_s(config: RunConfig, shape: ModelShape, card: Card) -> float:
    """Forward and backward passes of a step on all ranks, without communication."""
    learner, algorithm = config.learner, config.algorithm
    passes = 6 + (2 if learner.gradient_checkpointing else 0)
    reference = 2 if algorithm.needs_reference else 0
    per_token = (passes * learner.updates_per_batch + reference) * shape.trainable
    streams = 2 if algorithm.policy == "guided" else 1
    tokens = algorithm.trajectories_per_step * streams * (
        mean_sequence_tokens(config, shape) + config.rollout.max_cot_tokens / 2
    )  # fmt: skip
    return tokens * per_token / (card.flops * EFFICIENCY * learner.num_ranks)
