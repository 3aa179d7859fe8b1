"""The words and things of the shapes world: objects, relations, plans.

A picture of this world is a 2x2 grid of cells, each with at most one object: a shape in one colour
and one texture. A prompt demands objects (`ExpectedObject`, attributes may be left open) and at most
one relation; a plan says what to draw where (`PlannedObject`, nothing left open).

    Prompt metadata ─► expected_objects, demanded_relation
    plan text "striped red star top left ; ..." ◄─► Plan
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from configs.errors import DataError
from rollout.records import Prompt

COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "brown")
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "heart", "arrow")
TEXTURES = ("solid", "striped", "dotted")
CELLS = ("top left", "top right", "bottom left", "bottom right")
RELATIONS = ("left of", "right of", "above", "below")

UNSEEN_PAIRS = frozenset(
    (
        ("red", "star"),
        ("red", "triangle"),
        ("yellow", "circle"),
        ("yellow", "heart"),
        ("blue", "star"),
        ("blue", "triangle"),
        ("purple", "circle"),
        ("purple", "heart"),
    )
)
"""(color, shape) pairs kept for the split of that name; each color and each shape is seen otherwise."""
FREE_COLORS = tuple(color for color in COLORS if color not in {color for color, _ in UNSEEN_PAIRS})
FREE_SHAPES = tuple(shape for shape in SHAPES if shape not in {shape for _, shape in UNSEEN_PAIRS})
"""Colors, and shapes, of which every pair is seen."""
SEEN_PAIRS = tuple((color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in UNSEEN_PAIRS)

SHAPE_PLURALS = {shape: ("crosses" if shape == "cross" else f"{shape}s") for shape in SHAPES}
SHAPE_ADJECTIVES = {
    "circle": ("circular", "round"),
    "square": ("square", "boxy"),
    "triangle": ("triangular",),
    "star": ("star-shaped", "starry"),
    "cross": ("cross-shaped",),
    "diamond": ("diamond-shaped", "rhombic"),
    "heart": ("heart-shaped",),
    "arrow": ("arrow-shaped",),
}
TEXTURE_ADJECTIVES = {"solid": ("solid", "plain"), "striped": ("striped", "lined"), "dotted": ("dotted", "spotted")}
TEXTURE_NOUNS = {"striped": ("stripes", "lines"), "dotted": ("dots", "spots")}

NEAR = "near"
"""The one relation that prompts of this world never ask for, but T2I-R1's data does."""
_LOCALITIES = {
    "left of": ("left of", "left", "to the left of", "on the left of", "on left of", "at the left of"),
    "right of": ("right of", "right", "to the right of", "on the right of", "on right of", "at the right of"),
    "above": ("above", "over", "on top of", "on the top of"),
    "below": ("below", "under", "beneath", "underneath", "on bottom of", "on the bottom of"),
    NEAR: ("near", "next to", "beside", "on side of", "on the side of"),
}
_RELATION_OF_LOCALITY = {words: relation for relation, variants in _LOCALITIES.items() for words in variants}

_FILLERS = frozenset(("a", "an", "the", "with", "in", "of", "object", "objects", "shape", "shaped", "like", "colored"))
_COLOR_WORDS = {color: color for color in COLORS}
_TEXTURE_WORDS = {
    word: texture for texture in TEXTURES for word in (*TEXTURE_ADJECTIVES[texture], *TEXTURE_NOUNS.get(texture, ()))
}
_SHAPE_WORDS = {word: shape for shape in SHAPES for word in (shape, SHAPE_PLURALS[shape], *SHAPE_ADJECTIVES[shape])}


@dataclass(frozen=True, slots=True)
class ExpectedObject:
    """An object that a prompt demands; None leaves an attribute open."""

    texture: str | None
    color: str | None
    shape: str

    def __str__(self) -> str:
        return " ".join(word for word in (self.texture, self.color, self.shape) if word)

    def refines(self, other: ExpectedObject) -> bool:
        """True if this says all that `other` says, or more."""
        return self.shape == other.shape and other.color in (None, self.color) and other.texture in (None, self.texture)


@dataclass(frozen=True, slots=True)
class PlannedObject:
    """An object to draw. `cell` is an index of CELLS: 2 * row + column."""

    texture: str
    color: str
    shape: str
    cell: int


Plan = tuple[PlannedObject, ...]


def parse_object(phrase: str) -> ExpectedObject:
    """Read a noun phrase such as "a striped red star", "blue circles" or "round yellow object".

    Raises ValueError for a word this world does not know, and for a phrase without a shape.
    """
    texture = color = shape = None
    for word in phrase.lower().split():
        if word in _COLOR_WORDS:
            color = word
        elif word in _SHAPE_WORDS:
            shape = _SHAPE_WORDS[word]
        elif word in _TEXTURE_WORDS:
            texture = _TEXTURE_WORDS[word]
        elif word not in _FILLERS:
            raise ValueError(f"'{phrase}' is not an object of the shapes world: unknown word '{word}'")
    if shape is None:
        raise ValueError(f"'{phrase}' is not an object of the shapes world: no shape (one of {', '.join(SHAPES)})")
    return ExpectedObject(texture, color, shape)


def expected_objects(prompt: Prompt) -> tuple[ExpectedObject, ...]:
    """What the picture must hold, read from the prompt's metadata alone; () if it has none.

    A relation's two objects come first, in order, then counted objects, one by one, then all that
    only `attr_nouns` or `nouns` name. A bare name ("star") takes its attributes from `attr_nouns`
    ("red star"), as T2I-R1's data has it.

    Raises DataError, which names the prompt, where the metadata speaks of another world.
    """
    try:
        described = [parse_object(phrase) for phrase in prompt.attr_nouns]
        named = [parse_object(phrase) for phrase in prompt.nouns]
        spatial = prompt.spatial_info
        related = [parse_object(phrase) for phrase in (spatial.obj1, spatial.obj2)] if spatial else []
        counted = [(parse_object(count.obj_name), count.num) for count in prompt.numeracy_info]
    except ValueError as error:
        raise DataError(f"prompt {prompt.prompt_id}: {error}") from error
    objects = [_take_refinement(bare, described) for bare in related]
    for bare, num in counted:
        objects.extend([_take_refinement(bare, described)] * num)
    objects.extend(described)
    objects.extend(_only_named(named, objects))
    return tuple(objects)


def _take_refinement(bare: ExpectedObject, described: list[ExpectedObject]) -> ExpectedObject:
    """The first description that refines `bare`, taken out of the list, or `bare` itself."""
    for index, description in enumerate(described):
        if description.refines(bare):
            return described.pop(index)
    return bare


def _only_named(named: Sequence[ExpectedObject], objects: Iterable[ExpectedObject]) -> list[ExpectedObject]:
    """Those of `named` whose shape `objects` holds too seldom."""
    covered = Counter(item.shape for item in objects)
    missing = []
    for item in named:
        if covered[item.shape] > 0:
            covered[item.shape] -= 1
        else:
            missing.append(item)
    return missing


def demanded_relation(prompt: Prompt) -> str | None:
    """One of RELATIONS or NEAR, between the first and the second expected object; None without one.

    Raises DataError for a locality this world does not know.
    """
    if prompt.spatial_info is None:
        return None
    words = prompt.spatial_info.locality.lower().strip()
    if words not in _RELATION_OF_LOCALITY:
        known = ", ".join(sorted(_RELATION_OF_LOCALITY))
        raise DataError(f"prompt {prompt.prompt_id}: unknown locality '{words}'; use one of {known}")
    return _RELATION_OF_LOCALITY[words]


def cells_satisfy(relation: str, first: int, second: int) -> bool:
    """Whether an object in cell `first` stands in `relation` to one in cell `second`."""
    (row1, column1), (row2, column2) = divmod(first, 2), divmod(second, 2)
    if relation == NEAR:
        return abs(row1 - row2) + abs(column1 - column2) == 1
    return {
        "left of": column1 < column2,
        "right of": column1 > column2,
        "above": row1 < row2,
        "below": row1 > row2,
    }[relation]


def plan_text(plan: Plan) -> str:
    """The plan in sentences: "a star at the top left is red and striped ." Solid goes without saying."""
    return " ".join(
        f"{with_article(item.shape)} at the {CELLS[item.cell]} is {item.color}"
        f"{'' if item.texture == 'solid' else ' and ' + item.texture} ."
        for item in plan
    )


def with_article(words: str) -> str:
    """ "a star", "an arrow"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


_SENTENCE = re.compile(
    f"an? ({'|'.join(SHAPES)}) at the ({'|'.join(CELLS)}) is ({'|'.join(COLORS)})(?: and ({'|'.join(TEXTURES)}))?"
)


def parse_plan(text: str) -> Plan | None:
    """The inverse of `plan_text`; None for any text that is not exactly such a plan."""
    plan = []
    *sentences, rest = text.strip().split(".")
    for sentence in sentences:
        match = _SENTENCE.fullmatch(sentence.strip())
        if match is None:
            return None
        shape, cell, color, texture = match.groups()
        plan.append(PlannedObject(texture or "solid", color, shape, CELLS.index(cell)))
    return tuple(plan) if plan and not rest else None
