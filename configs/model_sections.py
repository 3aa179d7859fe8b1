"""What every section of the config is made of, and the sections that say which policy a run starts from.

`configs.schema` holds the other sections and the whole; import from there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

TINY_JANUS = "tiny-janus"
TINY_JANUS_FOLDER = Path(__file__).parent / "tiny_janus"
"""The checkpoint that comes with the project; `configs/tiny_janus_shapes.yaml` is how it was made."""
MAX_NAME_LENGTH: Final = 60
"""Characters of a name; four bytes each and what is put around them stay below a file name's 255 bytes."""
MAX_SEED: Final = 2**63 - 1
"""What NumPy, PyTorch and a Parquet column can hold."""
MAX_DURATION_S: Final = 366 * 24 * 3600
"""A year: longer waits overflow what clocks and libraries take, and mean never."""
MAX_COUNT: Final = 10**7
"""Of steps, tokens, bytes in their units, and whatever else a whole number counts: more is a slip of the keyboard."""
MAX_WORKERS: Final = 10**4
_VARIABLE: Final = re.compile(r"\$(\{[A-Za-z_]\w*\}|[A-Za-z_]\w*)")


def with_variables(path: str) -> str:
    """A path with `$NAME` and `${NAME}` replaced from the environment, as a shell would have done.

    Raises ValueError for a variable that is not set: it would become a folder of that name.
    """

    def value_of(match: re.Match[str]) -> str:
        name = match[1].strip("{}")
        value = os.environ.get(name)
        if not value:
            raise ValueError(f"the environment variable {name} is not set; set it, or write the path out")
        return value

    expanded = _VARIABLE.sub(value_of, path)
    if left := _VARIABLE.search(expanded):
        raise ValueError(f"{left[0]} is left after its variables are put in ({expanded}); write the path out")
    if "\0" in expanded:
        raise ValueError("a path cannot hold the character U+0000; remove it")
    return expanded


def checked_file_name(name: str) -> str:
    """A name that is used in names of files and of metrics. Raises ValueError where it cannot be."""
    if not re.fullmatch(r"\w[\w.-]*", name) or len(name) > MAX_NAME_LENGTH:
        raise ValueError(
            f"'{name}' becomes part of file names: use letters, digits, '_', '-' and '.', "
            f"a letter, digit or '_' first, {MAX_NAME_LENGTH} characters at most"
        )
    return name


PathText = Annotated[str, AfterValidator(with_variables)]
FileName = Annotated[str, AfterValidator(checked_file_name)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys, numbers that are none or absurd, and truth values for numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _truth_values_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Python takes True for 1, and pydantic with it."""
        assert info.field_name is not None
        kinds = set(_kinds_in(cls.model_fields[info.field_name].annotation))
        elements = value if isinstance(value, list | tuple) else [value]
        if not kinds & {bool, Any} and any(isinstance(element, bool) for element in elements):
            raise ValueError("a truth value is no number; write the number")
        return value

    @field_validator("*")
    @classmethod
    def _numbers_are_of_this_world(cls, value: Any, info: ValidationInfo) -> Any:
        """Fields with a bound of their own are below these anyway."""
        assert info.field_name is not None
        limit = MAX_DURATION_S if info.field_name.endswith("_s") else MAX_COUNT
        if info.field_name == "seed":
            limit = MAX_SEED
        elif isinstance(value, float) and not info.field_name.endswith("_s"):
            limit = 10**12
        if isinstance(value, int | float) and value > limit:
            raise ValueError(f"more than {limit} makes no sense here; write a smaller number")
        return value


def _kinds_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from _kinds_in(inner)


_LABEL_KEY = r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"
_LABEL = r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$"
NodeLabels = dict[Annotated[str, Field(pattern=_LABEL_KEY)], Annotated[str, Field(pattern=_LABEL)]]
"""Labels that a Ray node must have to be given an actor: `ray start --labels`, or Ray's own such as
`ray.io/accelerator-type`."""


EnvironmentVariables = dict[
    Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Annotated[str, Field(pattern=r"^[^\x00]*$")]
]
"""Environment variables of a process, as every operating system takes them."""


class TinyJanusConfig(Section):
    """Shape of a Janus that is built on the spot for a warm start (transformers' own class, random weights)."""

    hidden_size: int = Field(128, ge=32, le=2**15, multiple_of=32, description="width of the language model")
    num_layers: int = Field(4, ge=1, le=1024, description="transformer layers")
    num_heads: int = Field(4, ge=1, le=1024, description="attention heads; divides hidden_size")
    max_positions: int = Field(
        256, ge=32, le=2**20, description="longest sequence, in tokens: prompt, plan and image tokens"
    )
    num_codes: int = Field(128, ge=2, le=2**20, description="size of the VQ codebook")
    image_size: int = Field(64, ge=8, le=4096, description="pixels a side")
    patch_size: Literal[2, 4, 8, 16] = Field(8, description="pixels a side of the patch one image token draws")
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

    path: PathText = Field(..., description=f"hub id, local folder, or '{TINY_JANUS}', which comes with the project")
    revision: str | None = Field(None, description="git revision of a hub id")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the weights, in engines and learner")
    tiny: TinyJanusConfig | None = Field(
        None, description=f"only for path: {TINY_JANUS}: build one of this shape instead, for a warm start"
    )

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
    lr: float = Field(2e-3, gt=0, le=1, description="learning rate")
    consistency_coef: float = Field(1.0, ge=0, le=1e6, description="pulls latents of pixel-identical patches together")
    num_pictures: int | None = Field(
        None, ge=1, description="pictures to train on; null takes those of all examples ('shapes': 4000 drawn for it)"
    )
    outlines: bool = Field(
        False,
        description="patches that show white ground are told apart by their outline alone: their colours are left "
        "to patches without ground, and the decoder carries them over",
    )

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

    examples: PathText = Field(
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
        le=1,
        description="learning rate after warm-up; the default is for the tiny model, Janus-Pro wants about 1e-5",
    )
    warmup_steps: int = Field(
        40, ge=0, description="steps over which the learning rate rises; then it falls to 0, linearly"
    )
    weight_decay: float = Field(0.01, ge=0, le=100, description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="L2 norm that gradients are clipped to")
    unconditional_dropout: float = Field(0.1, ge=0, le=1, description="share of pictures drawn without their prompt")
    image_loss_weight: float = Field(
        2.0, gt=0, le=1e6, description="weight of the image tokens' loss; that of the plan's is 1"
    )
    plan_noise: float = Field(
        0.0, ge=0, le=1, description="'shapes' only: chance of a wrong color, and of a wrong shape, in the plan"
    )
    drawing_noise: float = Field(
        0.0, ge=0, le=1, description="'shapes' only: chance of a wrong color, and of a wrong shape, in the drawing"
    )

    @model_validator(mode="after")
    def _check(self) -> WarmStartConfig:
        if self.examples == "shapes" and self.num_examples is None:
            raise ValueError("examples is 'shapes', which is endless; set num_examples, say 6000")
        if self.examples != "shapes" and (self.plan_noise or self.drawing_noise):
            raise ValueError("plan_noise and drawing_noise are for examples: shapes; set both to 0")
        return self
