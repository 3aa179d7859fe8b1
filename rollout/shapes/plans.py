"""Plans of the shapes world: correct ones, and noisy ones, so that a warm start does not learn the task perfectly.

    prompt ─► sample_plan(noise) ─► what the policy is taught to write
                    └─► perturb_plan(noise) ─► what it is taught to draw

No plan for a training prompt holds one of the pairs kept for evaluation (`UNSEEN_PAIRS`), and none tells that
they are kept: open colors, and errors, are drawn from the colors and shapes of which every pair is seen. Were they
drawn from all seen pairs, a star would come in every color but red and blue where none was asked for, and a policy
that learned so would not plan a red star either when one is.
"""

from __future__ import annotations

import dataclasses
import random

from configs.errors import DataError
from rollout.records import Prompt
from rollout.shapes.objects import (
    CELLS,
    COLORS,
    FREE_COLORS,
    FREE_SHAPES,
    SHAPES,
    TEXTURES,
    Plan,
    PlannedObject,
    cells_satisfy,
    demanded_relation,
    expected_objects,
    with_article,
)


def sample_plan(prompt: Prompt, rng: random.Random, noise: float = 0.0) -> Plan:
    """A plan that fulfils the prompt, or, with `noise`, one that errs as a learner's plans do.

    noise: chance that an object's color is wrong, and that its shape is; half of it that its texture is, and that a
    relation is turned round; a quarter that an object is left out, and that it is planned twice. All of them are
    independent: below a half, whatever was written so far, the right word remains the likeliest next one. An error
    that is spread over many words leaves the right one far ahead of each; one that is the only other word does not,
    and errs less often, so that little of it is left at a low temperature. Open textures are solid.
    Raises DataError if the prompt does not fit the grid.
    """
    objects = expected_objects(prompt)
    if not 1 <= len(objects) <= len(CELLS):
        raise DataError(f"prompt {prompt.prompt_id}: {len(objects)} objects, the shapes world draws 1 to {len(CELLS)}")
    relation = demanded_relation(prompt)
    cells = _choose_cells(len(objects), relation, rng)
    if prompt.numeracy_info and relation is None:
        cells.sort()  # reading order: which of equal objects comes first says nothing
    if relation is not None and rng.random() < noise / 2:
        cells[:2] = cells[1], cells[0]
    plan: list[PlannedObject] = []
    for item, cell in zip(objects, cells, strict=True):
        color = item.color or rng.choice(FREE_COLORS)
        plan.append(PlannedObject(item.texture or "solid", color, item.shape, cell))
    return _add_plan_errors(tuple(plan), rng, noise) if noise > 0 else tuple(plan)


def random_plan(rng: random.Random) -> Plan:
    """One to four objects, of any texture, color and shape, each in a cell of its own: what a picture can show.

    In one of four pictures they are all alike, as where a prompt counts them.
    """
    (num,) = rng.choices(range(1, len(CELLS) + 1), (15, 25, 25, 35))
    looks = [(rng.choice(TEXTURES), rng.choice(COLORS), rng.choice(SHAPES)) for _ in range(num)]
    if rng.random() < 0.25:
        looks = looks[:1] * num
    cells = rng.sample(range(len(CELLS)), num)
    return tuple(PlannedObject(*look, cell) for look, cell in zip(looks, cells, strict=True))


def perturb_plan(plan: Plan, rng: random.Random, noise: float) -> Plan:
    """A plan with drawing errors: each object gets a wrong color with probability `noise`, a wrong shape with the same,
    and another, free cell with a quarter of it, each whatever else is wrong. The number of objects stays.

    A picture is drawn row by row, and an object may begin at four places of its cell: at the last of them, three
    quarters of the chance to be drawn there are gone, and all of the chance to be elsewhere is left.
    """
    drawn = list(plan)
    for index, item in enumerate(plan):
        for attribute in ("shape", "color"):
            if rng.random() < noise:
                item = _spoil(item, attribute, rng)
        free = _free_cells(drawn)
        if free and rng.random() < noise / 4:
            item = dataclasses.replace(item, cell=rng.choice(free))
        drawn[index] = item
    return tuple(drawn)


def _add_plan_errors(plan: Plan, rng: random.Random, noise: float) -> Plan:
    planned: list[PlannedObject] = []
    for index, item in enumerate(plan):
        rest = plan[index + 1 :]
        if (planned or rest) and rng.random() < noise / 4:
            continue
        free = _free_cells([*planned, item, *rest])
        cells = [item.cell]
        if free and rng.random() < noise / 4:
            cells.append(rng.choice(free))
        # "an" is decided against "a", behind which all other shapes stand together: an error with one alternative.
        shape_noise = noise / 2 if with_article(item.shape).startswith("an ") else noise
        for attribute, chance in (("shape", shape_noise), ("color", noise), ("texture", noise / 2)):
            if rng.random() < chance:
                item = _spoil(item, attribute, rng)
        planned += [dataclasses.replace(item, cell=cell) for cell in cells]
    return tuple(planned)


def _spoil(item: PlannedObject, attribute: str, rng: random.Random) -> PlannedObject:
    """The object with another color, shape or texture, for an error that no unseen pair could be."""
    if attribute == "texture":
        return dataclasses.replace(item, texture=rng.choice([name for name in TEXTURES if name != item.texture]))
    if attribute == "color":
        return dataclasses.replace(item, color=rng.choice([name for name in FREE_COLORS if name != item.color]))
    return dataclasses.replace(item, shape=rng.choice([name for name in FREE_SHAPES if name != item.shape]))


def _free_cells(objects: list[PlannedObject]) -> list[int]:
    return sorted(set(range(len(CELLS))) - {item.cell for item in objects})


def _choose_cells(num: int, relation: str | None, rng: random.Random) -> list[int]:
    """`num` distinct cells; the first two satisfy the relation."""
    while True:
        cells = rng.sample(range(len(CELLS)), num)
        if relation is None or cells_satisfy(relation, cells[0], cells[1]):
            return cells
