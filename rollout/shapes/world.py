"""The shapes world: a seeded, synthetic domain on which a tiny policy can be trained on a CPU.

    rng ─► Scene ─► Prompt (text and T2I-R1 metadata) ─► sample_plan ─► perturb_plan ─► render ─► picture

Three splits, told apart by what a prompt means and never by how it is worded (`split_of`):
  - `unseen_pairs`: the prompt asks for one of eight (color, shape) pairs that no other split, and no plan
    sampled for another split, ever holds;
  - `heldout`: a stable hash of the meaning takes about one in six of the others;
  - `train`: the rest.

This module is the world's front door: the others import from here.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

from configs.errors import DataError
from rollout.records import CountInfo, Prompt, SpatialInfo, derive_seed
from rollout.shapes.grammar import TASK_TYPES, VOCABULARY, Scene, word_scene
from rollout.shapes.objects import (
    CELLS,
    COLORS,
    NEAR,
    RELATIONS,
    SEEN_PAIRS,
    SHAPES,
    TEXTURES,
    UNSEEN_PAIRS,
    ExpectedObject,
    Plan,
    PlannedObject,
    demanded_relation,
    expected_objects,
    parse_plan,
    plan_text,
)
from rollout.shapes.plans import perturb_plan, random_plan, sample_plan
from rollout.shapes.renderer import (
    CELL_SIZE,
    COLOR_RGB,
    IMAGE_SIZE,
    INK,
    PATCH_SIZE,
    SPRITE_SIZE,
    WHITE,
    draw_sprite,
    render,
    texture_mask,
)

__all__ = [
    "CELLS",
    "CELL_SIZE",
    "COLORS",
    "COLOR_RGB",
    "DEFAULT_NUM_PROMPTS",
    "IMAGE_SIZE",
    "INK",
    "MAX_NUM_PROMPTS",
    "NEAR",
    "PATCH_SIZE",
    "RELATIONS",
    "SHAPES",
    "SPRITE_SIZE",
    "TASK_TYPES",
    "TEXTURES",
    "UNSEEN_PAIRS",
    "VOCABULARY",
    "WHITE",
    "ExpectedObject",
    "Plan",
    "PlannedObject",
    "demanded_relation",
    "draw_sprite",
    "expected_objects",
    "load_split",
    "parse_plan",
    "perturb_plan",
    "plan_text",
    "random_plan",
    "render",
    "sample_plan",
    "sample_prompt",
    "split_of",
    "texture_mask",
]

DEFAULT_NUM_PROMPTS = {"train": 4096, "heldout": 512, "unseen_pairs": 512}
"""The splits, and how many prompts `load_split` gives of each unless told."""
MAX_NUM_PROMPTS = {"train": 32768, "heldout": 8192, "unseen_pairs": 8192}
"""How many it gives at most. The two-object prompts of each split have more distinct texts than that."""

_HELDOUT_SHARE = 0.18
_MAX_TRIES = 3000
"""Draws of one task type without a new text, after which the type counts as exhausted."""
_UNSEEN_IN_ORDER = tuple(sorted(UNSEEN_PAIRS))
_MIRRORED = {"right of": "left of", "below": "above"}


def load_split(split: str, num: int | None = None, seed: int = 0) -> list[Prompt]:
    """`num` prompts of a split, all with distinct texts, task types in turn; the same for the same seed.

    Ids are `shapes:SPLIT:INDEX`. A task type whose texts run out leaves its turns to the others.
    Raises DataError for an unknown split, and when `num` exceeds MAX_NUM_PROMPTS.
    """
    _check_split(split)
    wanted = DEFAULT_NUM_PROMPTS[split] if num is None else num
    if wanted > MAX_NUM_PROMPTS[split]:
        raise DataError(f"shapes split '{split}' has {MAX_NUM_PROMPTS[split]} prompts, not {wanted}; ask for fewer")
    rng = random.Random(derive_seed("shapes", split, seed))
    remaining = list(_task_types_of(split))
    prompts: dict[str, Prompt] = {}
    turn = 0
    while len(prompts) < wanted:
        task_type = remaining[turn % len(remaining)]
        prompt = next((p for p in _draw_prompts(rng, split, task_type) if p.text not in prompts), None)
        if prompt is None:
            remaining.remove(task_type)
            continue
        prompts[prompt.text] = dataclasses.replace(prompt, prompt_id=f"shapes:{split}:{len(prompts)}")
        turn += 1
    return list(prompts.values())


def sample_prompt(rng: random.Random, split: str) -> Prompt:
    """One prompt of a split, each of its task types equally likely. Its id is a hash of its text."""
    _check_split(split)
    return next(_draw_prompts(rng, split, rng.choice(_task_types_of(split))))


def split_of(prompt: Prompt) -> str:
    """The split that the meaning of a prompt belongs to, however it is worded.

    Meaning is what the metadata demands: which objects, in any order, and the relation, where
    "a left of b" and "b right of a" are one. Raises DataError if the metadata has no meaning here.
    """
    objects = expected_objects(prompt)
    if any((item.color, item.shape) in UNSEEN_PAIRS for item in objects):
        return "unseen_pairs"
    relation = demanded_relation(prompt)
    if relation in _MIRRORED:
        relation = _MIRRORED[relation]
        objects = (objects[1], objects[0], *objects[2:])
    names = [str(item) for item in objects]
    if relation in (None, NEAR):
        names.sort()
    meaning = [relation, *names[:2], *sorted(names[2:])] if relation else names
    share = derive_seed("shapes meaning", *meaning) / 2**31
    return "heldout" if share < _HELDOUT_SHARE else "train"


def _check_split(split: str) -> None:
    if split not in DEFAULT_NUM_PROMPTS:
        raise DataError(f"the shapes world has no split '{split}'; use one of {', '.join(DEFAULT_NUM_PROMPTS)}")


def _task_types_of(split: str) -> tuple[str, ...]:
    """Prompts of task `object` name no color, so none of them can hold an unseen pair."""
    return tuple(task for task in TASK_TYPES if split != "unseen_pairs" or task != "object")


def _draw_prompts(rng: random.Random, split: str, task_type: str) -> Iterator[Prompt]:
    """Prompts of one split and task type, as many as _MAX_TRIES draws give."""
    for _ in range(_MAX_TRIES):
        scene = _draw_scene(rng, task_type, with_unseen_pair=split == "unseen_pairs")
        text = word_scene(scene, rng)
        prompt = _describe_scene(scene, text, prompt_id=f"shapes:{split}:{derive_seed(text):08x}")
        if split_of(prompt) == split:
            yield prompt


def _draw_scene(rng: random.Random, task_type: str, with_unseen_pair: bool) -> Scene:
    if task_type == "object":
        return Scene(
            task_type, tuple(ExpectedObject(None, None, shape) for shape in rng.sample(SHAPES, rng.randint(1, 3)))
        )
    pairs = _draw_pairs(rng, with_unseen_pair)
    if task_type == "numeracy":
        return Scene(task_type, (ExpectedObject(None, *pairs[0]),) * rng.randint(2, len(CELLS)))
    if task_type == "spatial":
        rng.shuffle(pairs)
        return Scene(task_type, tuple(ExpectedObject(None, *pair) for pair in pairs), rng.choice(RELATIONS))
    # One texture is never solid: plain objects are the other tasks' business.
    textures = [rng.choice(("striped", "dotted")), rng.choice(TEXTURES)] if task_type == "texture" else [None, None]
    objects = [ExpectedObject(texture, *pair) for texture, pair in zip(textures, pairs, strict=True)]
    objects = objects[: rng.randint(1, 2)]
    rng.shuffle(objects)
    return Scene(task_type, tuple(objects))


def _draw_pairs(rng: random.Random, with_unseen_pair: bool) -> list[tuple[str, str]]:
    """Two different (color, shape) pairs; the first is unseen if asked for, the second is not."""
    first = rng.choice(_UNSEEN_IN_ORDER if with_unseen_pair else SEEN_PAIRS)
    second = rng.choice([pair for pair in SEEN_PAIRS if pair != first])
    return [first, second]


def _describe_scene(scene: Scene, text: str, prompt_id: str) -> Prompt:
    """The prompt with the metadata that T2I-R1's data has for its task type."""
    named = scene.objects[:1] if scene.task_type == "numeracy" else scene.objects
    phrases = tuple(str(item) for item in named)
    return Prompt(
        prompt_id=prompt_id,
        text=text,
        task_type=scene.task_type,
        nouns=tuple(item.shape for item in named),
        attr_nouns=() if scene.task_type == "object" else phrases,
        spatial_info=SpatialInfo(phrases[0], phrases[1], scene.relation) if scene.relation else None,
        numeracy_info=(CountInfo(phrases[0], len(scene.objects)),) if scene.task_type == "numeracy" else (),
    )
