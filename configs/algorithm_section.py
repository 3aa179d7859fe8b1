"""The section of the config that says what is optimised: BiCoT-GRPO and its variants.

The defaults are the paper. Each variant is one named choice; its formula and source stand where it is
computed: rewards and advantages in `learner.objective.advantages`, the rest in `learner.objective.policy_losses`,
`learner.objective.mismatch` and `learner.objective.loss`.

`configs.schema` holds the whole; import from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field, model_validator

from configs.model_sections import Section

Phase = Literal["cot", "image"]
AdvantageNormalization = Literal["group", "group_mean_only", "batch"]
RewardNormalization = Literal["none", "group"]
LossNormalization = Literal["token", "group", "sequence", "dr_grpo"]
PolicyLoss = Literal["ppo", "gspo", "cispo"]
MismatchCorrection = Literal["none", "tis", "icepop", "sequence_mask"]

PHASES_OF: Final[Mapping[str, tuple[Phase, ...]]] = {
    "both": ("cot", "image"),
    "semantic": ("cot",),
    "image": ("image",),
}


class AlgorithmConfig(Section):
    """BiCoT-GRPO (T2I-R1, section 3) and what may be changed of it."""

    groups_per_step: int = Field(16, ge=1, description="prompts an optimizer step")
    group_size: int = Field(8, le=4096, description="G: trajectories a prompt")
    images_per_cot: int = Field(1, ge=1, description="pictures drawn from each semantic CoT; divides group_size")
    policy: Literal["conditional", "guided"] = Field(
        "conditional",
        description="whose log-probabilities are trained: the policy's own, or those of the distribution that was "
        "sampled from, under guidance and at rollout.temperature",
    )
    optimize: Literal["both", "semantic", "image"] = Field("both", description="tokens that are trained")
    reward_normalization: RewardNormalization = Field(
        "none",
        description="of each reward that has no rewards[].normalization of its own: none takes it as it is, group "
        "normalises it within its group before the weighted sum",
    )
    advantage_normalization: AdvantageNormalization = Field("group", description="what advantages are divided by")
    advantage_epsilon: float = Field(
        1e-4, gt=0, le=1, description="is added to the spread that advantages are divided by"
    )
    loss_normalization: LossNormalization = Field("token", description="what a trajectory's tokens are divided by")
    policy_loss: PolicyLoss = Field(
        "ppo",
        description="what the ratio does to the gradient; gspo's is one for a whole CoT and one for a whole picture",
    )
    clip_ratio_low: float | None = Field(
        None, gt=0, lt=1, description="clip of the ratio below 1; null: no clipping (the paper)"
    )
    clip_ratio_high: float | None = Field(
        None, gt=0, description="clip of the ratio above 1; null: no clipping (the paper)"
    )
    old_logprobs: Literal["rollout", "recompute", "guided"] = Field(
        "rollout",
        description="the ratio's denominator: as the engine recorded it, or as the learner finds it before its first "
        "update with the batch. guided: the engine's guided one in a conditional ratio, which is wrong; for studies",
    )
    mismatch_correction: MismatchCorrection = Field(
        "none",
        description="of what the learner recomputes and the engine recorded; needs old_logprobs: recompute. "
        "sequence_mask judges the CoT and the picture of a trajectory apart",
    )
    mismatch_low: float = Field(0.5, ge=0, lt=1, description="icepop, sequence_mask: below this ratio, left out")
    mismatch_high: float = Field(2.0, gt=1, description="above this ratio, cut off (tis) or left out")
    cot_weight: float = Field(1.0, ge=0, le=1e6, description="factor of the policy term of CoT tokens")
    image_weight: float = Field(1.0, ge=0, le=1e6, description="factor of the policy term of image tokens")
    kl_coef: float = Field(0.01, ge=0, le=1000, description="beta, weight of the k3 KL to the reference policy")
    kl_coef_cot: float | None = Field(None, ge=0, le=1000, description="beta of CoT tokens; null: kl_coef")
    kl_coef_image: float | None = Field(None, ge=0, le=1000, description="beta of image tokens; null: kl_coef")
    kl_clip: float | None = Field(
        10.0, gt=0, le=1e6, description="nats at which the k3 KL of a token is cut and pulls no more; null: nowhere"
    )
    entropy_coef: float = Field(0.0, ge=0, le=1000, description="weight of the entropy bonus")
    max_resamples: int = Field(
        0, ge=0, le=1000, description="times a group whose rewards are all equal is replaced by another prompt's (DAPO)"
    )
    max_staleness: int = Field(1, ge=0, le=1000, description="optimizer steps a trajectory may lag; 0 is synchronous")

    @model_validator(mode="after")
    def _check(self) -> AlgorithmConfig:
        if self.group_size < 2:
            raise ValueError(
                f"group_size {self.group_size}: an advantage needs at least two trajectories to compare; set 2 or more"
            )
        if self.group_size % self.images_per_cot:
            raise ValueError(
                f"group_size {self.group_size} is not a multiple of images_per_cot {self.images_per_cot}; change either"
            )
        if self.mismatch_correction != "none" and self.old_logprobs != "recompute":
            raise ValueError(
                f"mismatch_correction {self.mismatch_correction} weighs what the learner recomputes against what the "
                f"engine recorded, but old_logprobs is {self.old_logprobs}; set old_logprobs to recompute, "
                "or mismatch_correction to none"
            )
        if self.old_logprobs == "guided" and self.policy == "guided":
            raise ValueError(
                "old_logprobs guided is the wrong denominator of a conditional ratio; with policy guided the engine "
                "records guided log-probabilities as it is: set old_logprobs to rollout"
            )
        return self

    @property
    def trajectories_per_step(self) -> int:
        return self.groups_per_step * self.group_size

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases that are trained."""
        return PHASES_OF[self.optimize]

    @property
    def records_sampled_logprobs(self) -> bool:
        """Whether engines record the log-probability of the distribution that was sampled, in place of the policy's."""
        return self.policy == "guided" or self.old_logprobs == "guided"

    def kl_coef_of(self, phase: Phase) -> float:
        """beta of a phase's tokens."""
        own = self.kl_coef_cot if phase == "cot" else self.kl_coef_image
        return self.kl_coef if own is None else own

    @property
    def needs_reference(self) -> bool:
        """Whether any token that is trained has a KL to the reference."""
        return any(self.kl_coef_of(phase) > 0 for phase in self.phases)
