"""The algorithm as pure functions of tensors: advantages, log-probabilities, losses, corrections, the parity gate."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from learner.objective.advantages import AdvantageSettings as AdvantageSettings
    from learner.objective.loss import LossSettings as LossSettings
    from learner.objective.loss import bicot_grpo_terms as bicot_grpo_terms
    from learner.objective.parity import ParityGate as ParityGate

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "advantages": ["AdvantageSettings"],
        "loss": ["LossSettings", "bicot_grpo_terms"],
        "parity": ["ParityGate"],
    },
)
