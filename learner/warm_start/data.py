"""Examples of a warm start: a prompt, the plan to write for it, and the picture to draw.

    'shapes' ─► rendered on the spot ──┐
                                       ├─► ExampleSet ─► prompts, plans, pictures (opened when asked for)
    file.jsonl, pictures beside it ────┘

A line of a file is `{"prompt": str, "plan": str, "image": str}`; `image` is the path of a picture, relative to the
file, which `rollout.pictures.reader` reads. Pictures are cropped to a square around their middle and resized.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from configs.errors import ConfigError, DataError
from configs.schema import WarmStartConfig
from rollout.pictures.reader import is_file, read_picture
from rollout.prompts.files import BadRecord, read_records, text_of
from rollout.prompts.formats import show
from rollout.prompts.source import SkippedPrompt, summarize_skipped
from rollout.records import UInt8Array, derive_seed
from rollout.shapes import render, sample_prompt
from rollout.shapes.world import IMAGE_SIZE, Plan, perturb_plan, plan_text, random_plan, sample_plan

SHAPES = "shapes"
DEFAULT_VQ_SHAPES = 4000


@dataclass(frozen=True, slots=True)
class ShapesDrawing:
    """A picture of the shapes world that is rendered when it is asked for: a hundred thousand take gigabytes."""

    plan: Plan
    seed: int

    def render(self) -> UInt8Array:
        """uint8 [64, 64, 3]."""
        return render(self.plan, random.Random(self.seed))


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with its plan and picture."""

    place: str
    """For messages: `file.jsonl:17`, or `shapes:17`."""
    prompt: str
    plan: str
    picture: ShapesDrawing | Path
    """What to draw, or where to read it."""


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """Examples in order, and the records of the file that were left out."""

    examples: tuple[Example, ...]
    image_size: int
    """Pixels a side of the pictures that `load_pictures` gives."""
    skipped: tuple[SkippedPrompt, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def load_pictures(self, indices: Sequence[int] | range) -> UInt8Array:
        """Pictures of the examples with these indices, uint8 [B, image_size, image_size, 3].

        Raises DataError, naming the record, for a picture that cannot be read.
        """
        return np.stack([_load_picture(self.examples[index], self.image_size) for index in indices])

    def bad_pictures(self, indices: Sequence[int] | range) -> dict[int, str]:
        """Of the examples with these indices, those whose picture cannot be read, and why. Reads every file."""
        faults: dict[int, str] = {}
        for index in indices:
            picture = self.examples[index].picture
            if isinstance(picture, Path):
                try:
                    read_picture(picture)
                except ValueError as error:
                    faults[index] = f"picture {picture.name} {error}"
        return faults

    def take(self, indices: Sequence[int], skipped: Sequence[SkippedPrompt]) -> ExampleSet:
        """The examples with these indices; `skipped` says what was left out now."""
        return replace(
            self,
            examples=tuple(self.examples[index] for index in indices),
            skipped=(*self.skipped, *skipped),
        )


def load_examples(config: WarmStartConfig, image_size: int) -> ExampleSet:
    """The examples that the config names, with every record of a file checked; its bad ones are in `skipped`.

    Raises ConfigError when 'shapes' is wanted in a size it is not drawn in, DataError when the file
    cannot be read or holds no good record.
    """
    if config.examples == SHAPES:
        return _draw_shapes(config, image_size)
    path = Path(config.examples).expanduser()
    examples: list[Example] = []
    skipped: list[SkippedPrompt] = []
    for unit, number, record in read_records(path):
        try:
            examples.append(_parse_example(record, path, number))
        except BadRecord as error:
            skipped.append(SkippedPrompt(f"{unit} {number}", str(error)))
    if not examples:
        bad = f"\n{summarize_skipped(skipped)}" if skipped else ""
        raise DataError(f"{path}: there is no example in this file{bad}")
    return ExampleSet(tuple(examples), image_size, tuple(skipped))


def load_vq_pictures(config: WarmStartConfig, examples: ExampleSet) -> UInt8Array:
    """What the VQ model is trained on, uint8 [M, image_size, image_size, 3].

    The examples' pictures, or `vq.num_pictures` of them. For 'shapes', pictures of one to four objects of all
    colour-shape pairs, also of those that no example holds. The VQ model stands for one trained on all kinds
    of pictures, as Janus-Pro's was: that it can show such a pair tells the policy, which never sees one,
    nothing about drawing it.
    """
    assert config.vq is not None
    num = config.vq.num_pictures
    rng = random.Random(derive_seed(config.seed, "VQ pictures"))
    if config.examples == SHAPES:
        return np.stack([render(random_plan(rng), rng) for _ in range(num or DEFAULT_VQ_SHAPES)])
    if num is None or num >= len(examples):
        return examples.load_pictures(range(len(examples)))
    return examples.load_pictures(sorted(rng.sample(range(len(examples)), num)))


def check_skipped(examples: ExampleSet, source: str, max_bad_lines: int) -> None:
    """Raises DataError, which names the records, when more than `max_bad_lines` were left out, or all were."""
    if len(examples.skipped) > max_bad_lines or not len(examples):
        raise DataError(
            f"{source}: {len(examples.skipped)} examples are bad, data.max_bad_lines allows {max_bad_lines}; "
            f"mend the file or raise the limit\n{summarize_skipped(examples.skipped)}"
        )


def _draw_shapes(config: WarmStartConfig, image_size: int) -> ExampleSet:
    if image_size != IMAGE_SIZE:
        raise ConfigError(
            f"warm_start.examples: 'shapes' are pictures of {IMAGE_SIZE} pixels a side, the model draws {image_size}; "
            f"set model.tiny.image_size to {IMAGE_SIZE}"
        )
    assert config.num_examples is not None
    rng = random.Random(config.seed)
    examples = []
    for index in range(config.num_examples):
        prompt = sample_prompt(rng, "train")
        plan = sample_plan(prompt, rng, config.plan_noise)
        drawn = perturb_plan(plan, rng, config.drawing_noise)
        picture = ShapesDrawing(drawn, derive_seed(config.seed, "drawing", index))
        examples.append(Example(f"shapes:{index}", prompt.text, plan_text(plan), picture))
    return ExampleSet(tuple(examples), image_size)


def _parse_example(record: Any, path: Path, number: int) -> Example:
    """Raises BadRecord."""
    if isinstance(record, BadRecord):
        raise record
    if not isinstance(record, Mapping):
        raise BadRecord("expected an object with prompt, plan and image")
    if missing := [field for field in ("prompt", "plan", "image") if field not in record]:
        raise BadRecord(f"{missing[0]} is missing")
    prompt, plan, image = (text_of(record, field) for field in ("prompt", "plan", "image"))
    picture = path.parent / image
    if not is_file(picture):
        raise BadRecord(f"image: there is no file {show(image)} in {path.parent}")
    return Example(f"{path.name}:{number}", prompt, plan, picture)


def _load_picture(example: Example, image_size: int) -> UInt8Array:
    if isinstance(example.picture, ShapesDrawing):
        return example.picture.render()
    try:
        picture = read_picture(example.picture)
    except ValueError as error:
        raise DataError(f"{example.place}: picture {example.picture.name} {error}") from error
    square = ImageOps.fit(Image.fromarray(picture), (image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(square, np.uint8)
