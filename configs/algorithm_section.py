"""The section of the config that says what is optimised: BiCoT-GRPO and its variants.

`configs.schema` holds the whole; import from there.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from configs.model_sections import Section


class AlgorithmConfig(Section):
    """BiCoT-GRPO (T2I-R1, section 3); DESIGN of each field in ARCHITECTURE.md."""

    groups_per_step: int = Field(16, ge=1, description="prompts an optimizer step")
    group_size: int = Field(8, description="G: trajectories a prompt")
    images_per_cot: int = Field(1, ge=1, description="pictures drawn from each semantic CoT; divides group_size")
    kl_coef: float = Field(0.01, ge=0, description="beta, weight of the k3 KL to the reference policy")
    advantage_epsilon: float = Field(1e-4, gt=0)
    clip_ratio_low: float | None = Field(
        None, gt=0, lt=1, description="PPO clip below 1; null: no clipping (the paper)"
    )
    clip_ratio_high: float | None = Field(None, gt=0, description="PPO clip above 1; null: no clipping (the paper)")
    max_staleness: int = Field(1, ge=0, description="optimizer steps a trajectory may lag; 0 is synchronous")

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
        return self

    @property
    def trajectories_per_step(self) -> int:
        return self.groups_per_step * self.group_size
