"""The sections of the config that say which policy a run starts from: the model and its warm start.

`configs.schema` holds the other sections and the whole; import from there.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TINY_JANUS = "tiny-janus"


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class TinyJanusConfig(Section):
    """Shape of the Janus that `model.path: tiny-janus` builds (transformers' own class, random weights)."""

    hidden_size: int = Field(128, ge=32, multiple_of=32, description="width of the language model")
    num_layers: int = Field(4, ge=1, description="transformer layers")
    num_heads: int = Field(4, ge=1, description="attention heads; divides hidden_size")
    max_positions: int = Field(256, ge=32, description="longest sequence, in tokens: prompt, plan and image tokens")
    num_codes: int = Field(128, ge=2, description="size of the VQ codebook")
    image_size: int = Field(32, ge=8, description="pixels a side")
    patch_size: Literal[2, 4, 8, 16] = Field(4, description="pixels a side of the patch one image token draws")
    seed: int = Field(0, ge=0, description="of the random weights")

    @model_validator(mode="after")
    def _check(self) -> TinyJanusConfig:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; change either"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide by num_heads {self.num_heads}; change either"
            )
        return self


class ModelConfig(Section):
    """The policy to start from."""

    path: str = Field(..., description=f"hub id, local folder, or '{TINY_JANUS}' (built on the spot; needs warm_start)")
    revision: str | None = Field(None, description="git revision of a hub id")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the weights, in engines and learner")
    tiny: TinyJanusConfig | None = Field(None, description=f"only for path: {TINY_JANUS}")

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.tiny is not None and self.path != TINY_JANUS:
            raise ValueError(f"tiny is set, but path is '{self.path}'; remove tiny, or set path to '{TINY_JANUS}'")
        return self


class VQTrainingConfig(Section):
    """Training of the VQ model on the warm start's pictures, before the language model sees a token."""

    steps: int = Field(900, ge=1, description="optimizer steps")
    autoencoder_steps: int = Field(150, ge=0, description="first so many steps without quantization, then k-means++")
    batch_size: int = Field(12, ge=1, description="pictures a step")
    lr: float = Field(2e-3, gt=0, description="learning rate")
    consistency_coef: float = Field(1.0, ge=0, description="pulls latents of pixel-identical patches together")

    @model_validator(mode="after")
    def _check(self) -> VQTrainingConfig:
        if self.autoencoder_steps >= self.steps:
            raise ValueError(
                f"autoencoder_steps {self.autoencoder_steps} leaves no step for the codebook; "
                f"set it below steps ({self.steps})"
            )
        return self


class WarmStartConfig(Section):
    """Supervised warm start on prompt + plan + picture, before reinforcement learning."""

    examples: str = Field(
        ..., description="'shapes', or a .jsonl file with one object a line: prompt, plan, image (path to a picture)"
    )
    num_examples: int | None = Field(None, ge=1, description="how many 'shapes' examples to draw; files are read whole")
    seed: int = Field(0, ge=0, description="of the examples drawn, their order, and what is dropped")
    vq: VQTrainingConfig | None = Field(
        None, description="train the VQ model first, too; left out, it stays as it is, which is right for Janus-Pro"
    )
    steps: int = Field(750, ge=1, description="optimizer steps")
    batch_size: int = Field(32, ge=1, description="examples an optimizer step, over all ranks")
    lr: float = Field(
        3e-3,
        gt=0,
        description="learning rate after warm-up; the default is for the tiny model, Janus-Pro wants about 1e-5",
    )
    warmup_steps: int = Field(
        40, ge=0, description="steps over which the learning rate rises; then it falls to 0, linearly"
    )
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="L2 norm that gradients are clipped to")
    unconditional_dropout: float = Field(0.1, ge=0, le=1, description="share of pictures drawn without their prompt")
    image_loss_weight: float = Field(2.0, gt=0, description="weight of the image tokens' loss; that of the plan's is 1")
    plan_noise: float = Field(0.0, ge=0, le=1, description="'shapes' only: share of objects planned wrong")
    drawing_noise: float = Field(0.0, ge=0, le=1, description="'shapes' only: share of objects drawn wrong")

    @model_validator(mode="after")
    def _check(self) -> WarmStartConfig:
        if self.examples == "shapes" and self.num_examples is None:
            raise ValueError("examples is 'shapes', which is endless; set num_examples, say 6000")
        if self.examples != "shapes" and (self.plan_noise or self.drawing_noise):
            raise ValueError("plan_noise and drawing_noise are for examples: shapes; set both to 0")
        return self
