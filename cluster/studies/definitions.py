"""The questions that `python -m cluster.study` answers. Each arm says only what it changes of the config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cluster.studies.runs import Arm, Study

_NEATNESS: Final = "rewards.shapes.neatness:NeatnessReward"
_BOTH_REWARDS: Final = (
    f"rewards=[{{name: shapes, cpus_per_replica: 0.5}}, {{name: '{_NEATNESS}', cpus_per_replica: 0.5}}]"
)


def _staleness_arms() -> tuple[Arm, ...]:
    denominators = {"exact": "rollout", "naive": "guided"}
    return tuple(
        Arm(f"{name}-{lag}", (f"algorithm.max_staleness={lag}", f"algorithm.old_logprobs={old_logprobs}"))
        for name, old_logprobs in denominators.items()
        for lag in (0, 1, 4)
    )


STUDIES: Final[Mapping[str, Study]] = {
    "phases": Study(
        question="Which tokens to train: the plan's (semantic CoT), the picture's, or both? (T2I-R1's ablation)",
        arms=tuple(Arm(phases, (f"algorithm.optimize={phases}",)) for phases in ("semantic", "image", "both")),
        curves=("kl/cot", "kl/image"),
        columns=("kl/cot", "kl/image", "entropy/cot", "entropy/image"),
    ),
    "staleness": Study(
        question="How stale may trajectories be, with the conditional log-probability in the ratio's denominator "
        "(exact), and with the guided one that the token was sampled with (naive)?",
        arms=_staleness_arms(),
        curves=("kl", "ratio/mean"),
        columns=("staleness/mean", "ratio/mean", "ratio/max", "kl", "images_per_s"),
    ),
    "policy": Study(
        question="Whether to train the policy's own distribution (conditional, the paper) or the guided one that is "
        "sampled from.",
        arms=tuple(Arm(policy, (f"algorithm.policy={policy}",)) for policy in ("conditional", "guided")),
        curves=("kl", "time/learn_s"),
        columns=("kl", "entropy/image", "time/learn_s"),
    ),
    "rewards": Study(
        question="Whether a reward of a small range is heard: weighted sum, or normalised in its group before it.",
        arms=(
            Arm("weighted-sum", ("algorithm.reward_normalization=none",)),
            Arm("normalised", ("algorithm.reward_normalization=group", "algorithm.advantage_normalization=batch")),
        ),
        curves=("reward/shapes", f"reward/{_NEATNESS}"),
        columns=("reward/shapes", f"reward/{_NEATNESS}"),
        overrides=(_BOTH_REWARDS,),
    ),
}
