"""How prompts of the shapes world are worded.

A `Scene` is what a prompt means; `word_scene` says it in one of many ways, in lower-case words and
simple punctuation of a closed vocabulary. The wordings are varied on purpose: "one red star and two more" or "a blue
circle with a red star on its left" are hard to draw directly, and easy to draw from a plan.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rollout.shapes.objects import (
    CELLS,
    COLORS,
    RELATIONS,
    SHAPE_ADJECTIVES,
    SHAPE_PLURALS,
    SHAPES,
    TEXTURE_ADJECTIVES,
    TEXTURE_NOUNS,
    TEXTURES,
    ExpectedObject,
    with_article,
)

TASK_TYPES = ("color", "shape", "texture", "spatial", "numeracy", "object")

_OPENERS = ("", "draw ", "show ", "paint ", "a picture of ")
_CONNECTORS = ("and", "with", "together with")
_RELATION_PHRASES = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
}
_ITS_PHRASES = {
    "left of": ("on its left", "to its left"),
    "right of": ("on its right", "to its right"),
    "above": ("above it", "over it"),
    "below": ("below it", "under it"),
}
_ENDS = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
_CONVERSATION_WORDS = "plan : . is an that"
"""What the instruction "plan : {prompt}", the image prompt "{prompt}. {plan}" and plans put between words."""
_SENTENCE_WORDS = "a , object of shaped like in with at the and them more"
_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
_GROUPS = {2: "a pair of", 3: "a trio of", 4: "two pairs of"}


@dataclass(frozen=True, slots=True)
class Scene:
    """What a prompt means. `relation` holds between the first and the second object."""

    task_type: str
    objects: tuple[ExpectedObject, ...]
    relation: str | None = None


def word_scene(scene: Scene, rng: random.Random) -> str:
    """The scene in words, one wording of many, drawn with `rng`."""
    if scene.task_type == "spatial":
        body = _word_relation(scene, rng)
    elif scene.task_type == "numeracy":
        body = _word_count(scene.objects[0], len(scene.objects), rng)
    else:
        body = _word_list([_word_object(scene.task_type, item, rng) for item in scene.objects], rng)
    # Half of the prompts come without an opener, as most people write them.
    opener = "" if rng.random() < 0.5 else rng.choice(_OPENERS)
    return opener + body


def _word_object(task_type: str, item: ExpectedObject, rng: random.Random) -> str:
    """A noun phrase with its article, in a wording that suits the task."""
    if task_type == "shape":
        adjective = rng.choice(SHAPE_ADJECTIVES[item.shape])
        return rng.choice(
            (
                f"{with_article(adjective)} {item.color} object",
                with_article(f"{item.color} object that is {adjective}"),
                with_article(f"{item.color} object shaped like {with_article(item.shape)}"),
            )
        )
    if item.color is None:
        return with_article(item.shape)
    if item.texture is None:
        plain = f"{with_article(item.color)} {item.shape}"
        return rng.choice((plain, plain, f"{with_article(item.shape)} in {item.color}"))
    adjective = rng.choice(TEXTURE_ADJECTIVES[item.texture])
    wordings = [f"a {adjective} {item.color} {item.shape}", f"a {adjective} {item.shape} in {item.color}"]
    if item.texture in TEXTURE_NOUNS:
        wordings.append(f"{with_article(item.color)} {item.shape} with {rng.choice(TEXTURE_NOUNS[item.texture])}")
    return rng.choice(wordings)


def _word_list(phrases: list[str], rng: random.Random) -> str:
    *others, last = phrases
    return f"{' , '.join(others)} {rng.choice(_CONNECTORS)} {last}" if others else last


def _word_relation(scene: Scene, rng: random.Random) -> str:
    assert scene.relation is not None
    first, second = (_word_object("spatial", item, rng) for item in scene.objects)
    here, there = _ENDS[scene.relation]
    return rng.choice(
        (
            f"{first} {rng.choice(_RELATION_PHRASES[scene.relation])} {second}",
            f"{second} with {first} {rng.choice(_ITS_PHRASES[scene.relation])}",
            f"{first} at the {here} and {second} at the {there}",
        )
    )


def _word_count(item: ExpectedObject, num: int, rng: random.Random) -> str:
    plural = SHAPE_PLURALS[item.shape]
    return rng.choice(
        (
            f"{_NUMBERS[num]} {item.color} {plural}",
            f"{_NUMBERS[num]} {plural} in {item.color}",
            f"{_GROUPS[num]} {item.color} {plural}",
            f"{item.color} {plural} , {_NUMBERS[num]} of them",
            f"one {item.color} {item.shape} and {_NUMBERS[num - 1]} more",
        )
    )


def _collect_vocabulary() -> tuple[str, ...]:
    """Every word and punctuation mark of prompts, plans, and what a conversation puts around them."""
    words = " ".join((_CONVERSATION_WORDS, _SENTENCE_WORDS, " ".join(CELLS))).split()
    for phrases in (_OPENERS, _CONNECTORS, tuple(_NUMBERS.values()), tuple(_GROUPS.values()), COLORS, SHAPES, TEXTURES):
        words.extend(" ".join(phrases).split())
    for table in (_RELATION_PHRASES, _ITS_PHRASES, SHAPE_ADJECTIVES, TEXTURE_ADJECTIVES, TEXTURE_NOUNS):
        for variants in table.values():
            words.extend(" ".join(variants).split())
    words.extend(" ".join((*SHAPE_PLURALS.values(), *RELATIONS)).split())
    return tuple(dict.fromkeys(words))


VOCABULARY = _collect_vocabulary()
"""Closed: a word-level tokenizer made of it knows every token that prompts and plans can hold."""
