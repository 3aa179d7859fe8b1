"""AdamW and its learning rate, over the steps of a run: plain values, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from configs.schema import LearnerConfig


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW and its learning rate."""

    lr: float
    total_steps: int
    """Steps after which the schedules `linear` and `cosine` reach 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: float = 1.0

    @classmethod
    def of(cls, config: LearnerConfig, total_steps: int) -> OptimizerSettings:
        """The settings for reinforcement learning; a warm start has its own."""
        return cls(
            lr=config.lr,
            total_steps=total_steps,
            betas=config.betas,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_steps,
            schedule=config.lr_schedule,
            max_grad_norm=config.max_grad_norm,
        )

    def learning_rate(self, step: int) -> float:
        """The learning rate of step number `step`, from 0: linear warm-up to `lr`, then the schedule."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        match self.schedule:
            case "constant":
                return self.lr
            case "linear":
                return self.lr * (1.0 - progress)
            case "cosine":
                return self.lr * 0.5 * (1.0 + math.cos(math.pi * progress))
