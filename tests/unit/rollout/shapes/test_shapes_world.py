"""The shapes world: its splits, its closed vocabulary, its plans and its pictures."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from configs.errors import DataError
from rewards.shapes import ShapesReward
from rollout.records import CountInfo, Prompt, SpatialInfo
from rollout.shapes import load_split, render, sample_prompt
from rollout.shapes.world import (
    CELLS,
    COLORS,
    DEFAULT_NUM_PROMPTS,
    IMAGE_SIZE,
    MAX_NUM_PROMPTS,
    PATCH_SIZE,
    RELATIONS,
    SHAPES,
    SPRITE_SIZE,
    TASK_TYPES,
    TEXTURES,
    UNSEEN_PAIRS,
    VOCABULARY,
    ExpectedObject,
    PlannedObject,
    demanded_relation,
    expected_objects,
    parse_plan,
    perturb_plan,
    plan_text,
    sample_plan,
    split_of,
)

SPLITS = tuple(DEFAULT_NUM_PROMPTS)


@pytest.fixture(scope="module")
def prompts() -> dict[str, list[Prompt]]:
    return {split: load_split(split) for split in SPLITS}


EXPECTED_SPLITS = {
    "a star": "heldout",
    "red circle": "heldout",
    "dotted red cross": "train",
    "two green stars": "train",
    "three green stars": "train",
    "yellow circle": "unseen_pairs",
}


def meaning(prompt: Prompt) -> tuple[object, ...]:
    """What a prompt asks for, told apart the slow way: all objects, and where each pair of them has to stand."""
    objects = Counter(map(str, expected_objects(prompt)))
    facts = set()
    if prompt.spatial_info is not None:
        one, other, locality = prompt.spatial_info.obj1, prompt.spatial_info.obj2, prompt.spatial_info.locality
        opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[locality]
        facts = {(one, locality, other), (other, opposite, one)}
    return frozenset(objects.items()), frozenset(facts)


def test_no_meaning_is_in_two_splits(prompts: dict[str, list[Prompt]]) -> None:
    meanings = {split: {meaning(prompt) for prompt in prompts[split]} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not meanings[one] & meanings[other], (one, other)
        assert not {prompt.text for prompt in prompts[one]} & {prompt.text for prompt in prompts[other]}


def test_about_a_sixth_of_the_meanings_is_held_out(prompts: dict[str, list[Prompt]]) -> None:
    rng = random.Random(5)
    drawn = [sample_prompt(rng, split) for split in ("train", "heldout") for _ in range(1000)]
    singles = {meaning(p): split_of(p) for p in drawn if len(expected_objects(p)) == 1}
    share = sum(split == "heldout" for split in singles.values()) / len(singles)
    assert 0.1 < share < 0.25


def test_unseen_pairs_are_asked_for_in_their_split_and_in_no_other(prompts: dict[str, list[Prompt]]) -> None:
    for split in SPLITS:
        for prompt in prompts[split]:
            asked = {(item.color, item.shape) for item in expected_objects(prompt)}
            assert bool(asked & UNSEEN_PAIRS) == (split == "unseen_pairs"), prompt


def test_every_color_and_every_shape_is_seen_in_training() -> None:
    seen = set(itertools.product(COLORS, SHAPES)) - UNSEEN_PAIRS
    assert len(UNSEEN_PAIRS) == 8
    assert len(seen) == 56
    assert {color for color, _ in seen} == set(COLORS)
    assert {shape for _, shape in seen} == set(SHAPES)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_no_plan_for_training_and_no_error_in_it_holds_an_unseen_pair(noise: float) -> None:
    rng = random.Random(11)
    for _ in range(1500):
        plan = sample_plan(sample_prompt(rng, "train"), rng, noise)
        drawn = perturb_plan(plan, rng, noise)
        assert not {(item.color, item.shape) for item in (*plan, *drawn)} & UNSEEN_PAIRS


def test_errors_and_open_colors_tell_no_color_from_another_by_its_shape() -> None:
    """Else a policy learns which pairs never come by themselves, and does not plan them when asked to either."""
    rng = random.Random(12)
    wrong_colors: dict[str, set[str]] = {shape: set() for shape in SHAPES}
    wrong_shapes: dict[str, set[str]] = {color: set() for color in COLORS}
    for _ in range(6000):
        color, shape = rng.choice(sorted(set(itertools.product(COLORS, SHAPES)) - UNSEEN_PAIRS))
        (drawn,) = perturb_plan((PlannedObject("solid", color, shape, 0),), rng, 0.5)
        if drawn.color != color:
            wrong_colors[drawn.shape].add(drawn.color)
        if drawn.shape != shape:
            wrong_shapes[drawn.color].add(drawn.shape)
    free_colors, free_shapes = {"orange", "green", "cyan", "brown"}, {"square", "cross", "diamond", "arrow"}
    assert set(map(frozenset, wrong_colors.values())) == {frozenset(free_colors)}
    assert set(map(frozenset, wrong_shapes.values())) == {frozenset(free_shapes)}
    open_colors = {sample_plan(Prompt("1", "", nouns=("star",)), rng)[0].color for _ in range(200)}
    assert open_colors == free_colors


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_distinct_texts_ids_by_index_and_balanced_task_types(split: str) -> None:
    prompts = load_split(split)
    assert len(prompts) == DEFAULT_NUM_PROMPTS[split]
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    assert [prompt.prompt_id for prompt in prompts] == [f"shapes:{split}:{index}" for index in range(len(prompts))]
    counts = Counter(prompt.task_type for prompt in prompts)
    assert set(counts) == set(TASK_TYPES) - ({"object"} if split == "unseen_pairs" else set())
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_prompts_and_another_seed_others(split: str) -> None:
    assert load_split(split, 96, seed=4) == load_split(split, 96, seed=4)
    assert load_split(split, 96, seed=4) != load_split(split, 96, seed=5)
    assert load_split(split, 96, seed=4) == load_split(split, 192, seed=4)[:96]


def test_the_splits_stay_what_they_are_from_release_to_release() -> None:
    """A change of wording or of the hash would move meanings between the splits of people's saved runs."""
    described = {
        "a star": Prompt("1", "", nouns=("star",)),
        "red circle": Prompt("2", "", attr_nouns=("red circle",)),
        "dotted red cross": Prompt("3", "", attr_nouns=("dotted red cross",)),
        "two green stars": Prompt("4", "", numeracy_info=(CountInfo("green star", 2),)),
        "three green stars": Prompt("5", "", numeracy_info=(CountInfo("green star", 3),)),
        "yellow circle": Prompt("6", "", attr_nouns=("yellow circle",)),
    }
    assert {name: split_of(prompt) for name, prompt in described.items()} == EXPECTED_SPLITS


def test_the_mirrored_wording_of_a_relation_is_the_same_meaning() -> None:
    rng = random.Random(2)
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    seen = Counter[str]()
    for _ in range(200):
        first, second = (f"{rng.choice(COLORS)} {rng.choice(SHAPES)}" for _ in range(2))
        relation = rng.choice(RELATIONS)
        one = Prompt("1", "", spatial_info=SpatialInfo(first, second, relation))
        other = Prompt("2", "", spatial_info=SpatialInfo(second, first, mirror[relation]))
        assert split_of(one) == split_of(other)
        seen[split_of(one)] += 1
    assert set(seen) == set(SPLITS)


def test_an_unknown_split_is_refused_with_the_choices() -> None:
    with pytest.raises(DataError, match=r"'test'; use one of train, heldout, unseen_pairs"):
        load_split("test")
    with pytest.raises(DataError, match="'test'"):
        sample_prompt(random.Random(0), "test")


def test_more_prompts_than_a_split_has_are_refused_and_the_number_is_told() -> None:
    with pytest.raises(DataError, match=r"'unseen_pairs' has 8192 prompts, not 1000000; ask for fewer"):
        load_split("unseen_pairs", 1_000_000)


def test_a_split_holds_as_many_prompts_as_it_claims() -> None:
    assert len(load_split("unseen_pairs", MAX_NUM_PROMPTS["unseen_pairs"])) == MAX_NUM_PROMPTS["unseen_pairs"]


def test_a_task_type_that_runs_out_leaves_its_turns_to_the_others() -> None:
    counts = Counter(prompt.task_type for prompt in load_split("heldout", 8000))
    assert counts.total() == 8000
    assert 0 < counts["object"] < counts["spatial"]


def test_every_word_of_prompts_plans_and_conversation_is_in_the_vocabulary(prompts: dict[str, list[Prompt]]) -> None:
    rng = random.Random(3)
    known = set(VOCABULARY)
    used = {"plan", ":"}  # of the instruction "plan : {prompt}" and the image prompt "{prompt}. {plan}"
    for prompt in itertools.chain(*prompts.values()):
        used |= set(prompt.text.split()) | set(plan_text(sample_plan(prompt, rng, noise=0.3)).split())
    assert used == known
    assert len(VOCABULARY) == len(known)
    assert all(word == word.lower() and " " not in word for word in VOCABULARY)


def test_metadata_follows_the_schema_of_its_task_type(prompts: dict[str, list[Prompt]]) -> None:
    for prompt in itertools.chain(*prompts.values()):
        assert prompt.nouns
        assert set(prompt.nouns) <= set(SHAPES)
        assert bool(prompt.attr_nouns) == (prompt.task_type != "object")
        assert all(phrase.split()[-1] == noun for phrase, noun in zip(prompt.attr_nouns, prompt.nouns, strict=False))
        assert (prompt.spatial_info is not None) == (prompt.task_type == "spatial")
        assert bool(prompt.numeracy_info) == (prompt.task_type == "numeracy")
        if prompt.spatial_info is not None:
            assert (prompt.spatial_info.obj1, prompt.spatial_info.obj2) == prompt.attr_nouns
            assert prompt.spatial_info.locality in RELATIONS
        for count in prompt.numeracy_info:
            assert 2 <= count.num <= 4
            assert count.obj_name == prompt.attr_nouns[0]
        assert 1 <= len(expected_objects(prompt)) <= len(CELLS)


def test_a_meaning_comes_in_many_wordings() -> None:
    rng = random.Random(8)
    wordings: dict[tuple[object, ...], set[str]] = {}
    for _ in range(20_000):
        prompt = sample_prompt(rng, "train")
        if prompt.task_type == "numeracy":
            wordings.setdefault(meaning(prompt), set()).add(prompt.text)
    assert np.mean([len(texts) for texts in wordings.values()]) > 6


@pytest.mark.parametrize(
    ("prompt", "objects"),
    [
        (Prompt("1", "", nouns=("star", "circle")), ("star", "circle")),
        (Prompt("2", "", nouns=("stars",), attr_nouns=("a lined red star",)), ("striped red star",)),
        (
            Prompt("3", "", nouns=("star", "circle"), spatial_info=SpatialInfo("circle", "star", "on the top of")),
            ("circle", "star"),
        ),
        (
            Prompt(
                "4",
                "",
                attr_nouns=("red star", "blue circle"),
                spatial_info=SpatialInfo("the circle", "the star", "next to"),
            ),
            ("blue circle", "red star"),
        ),
        (
            Prompt("5", "", nouns=("cross", "circle"), numeracy_info=(CountInfo("crosses", 2), CountInfo("circle", 1))),
            ("cross", "cross", "circle"),
        ),
        (
            Prompt("6", "", nouns=("star",), attr_nouns=("red star",), numeracy_info=(CountInfo("star", 3),)),
            ("red star",) * 3,
        ),
        (
            Prompt("7", "", nouns=("star", "cross"), attr_nouns=("round yellow object",)),
            ("yellow circle", "star", "cross"),
        ),
        (Prompt("8", "a red star"), ()),
    ],
)
def test_expected_objects_are_read_from_metadata_of_that_schema(prompt: Prompt, objects: tuple[str, ...]) -> None:
    assert tuple(map(str, expected_objects(prompt))) == objects


def test_an_expected_object_leaves_open_what_is_not_said() -> None:
    assert expected_objects(Prompt("1", "", attr_nouns=("dotted star",))) == (ExpectedObject("dotted", None, "star"),)


def test_metadata_of_another_world_is_refused_by_prompt_and_word() -> None:
    with pytest.raises(DataError, match=r"data\.jsonl:3.*'red dragon'.*unknown word 'dragon'"):
        expected_objects(Prompt("data.jsonl:3", "", attr_nouns=("red dragon",)))
    with pytest.raises(DataError, match=r"'a red object'.*no shape"):
        expected_objects(Prompt("1", "", nouns=("a red object",)))
    with pytest.raises(DataError, match=r"data\.jsonl:4.*'inside'"):
        demanded_relation(Prompt("data.jsonl:4", "", spatial_info=SpatialInfo("star", "cross", "inside")))
    with pytest.raises(DataError, match="5 objects"):
        sample_plan(Prompt("1", "", numeracy_info=(CountInfo("star", 5),)), random.Random(0))


@pytest.mark.parametrize("split", SPLITS)
def test_a_plan_without_noise_holds_what_the_prompt_demands(split: str) -> None:
    rng = random.Random(6)
    for prompt in load_split(split, 300):
        plan = sample_plan(prompt, rng)
        expected = expected_objects(prompt)
        assert len({item.cell for item in plan}) == len(plan) == len(expected)
        for item, demanded in zip(plan, expected, strict=True):
            assert item.shape == demanded.shape
            assert demanded.color in (None, item.color)
            assert item.texture == (demanded.texture or "solid")
        if prompt.spatial_info is not None:
            (row1, column1), (row2, column2) = (divmod(item.cell, 2) for item in plan)
            step = {"left of": column2 - column1, "right of": column1 - column2, "above": row2 - row1}
            assert step.get(prompt.spatial_info.locality, row1 - row2) == 1


def test_plans_are_read_back_from_their_text() -> None:
    rng = random.Random(7)
    for _ in range(500):
        plan = sample_plan(sample_prompt(rng, rng.choice(SPLITS)), rng, noise=0.4)
        assert parse_plan(plan_text(plan)) == plan
    assert plan_text((PlannedObject("striped", "red", "star", 0), PlannedObject("solid", "blue", "cross", 3))) == (
        "a star at the top left is red and striped . a cross at the bottom right is blue ."
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a red star",
        "a star at the top left is red",
        "a star at the top left is red .  .",
        "a star at the left top is red .",
        "a star at the top left is striped .",
        "a star at the top left is red and red .",
        "a star at the top left is red . and a circle at the top right is blue .",
        "?",
    ],
)
def test_text_that_is_no_plan_is_none(text: str) -> None:
    assert parse_plan(text) is None


def test_plan_noise_is_the_chance_of_a_wrong_color_and_of_a_wrong_shape() -> None:
    rng = random.Random(9)
    prompts = [prompt for prompt in load_split("train", 6000) if prompt.task_type == "texture"]
    wrong = Counter[str]()
    total = 0
    for prompt in prompts:
        wanted, plan = expected_objects(prompt), sample_plan(prompt, rng, noise=0.3)
        if len(wanted) == len(plan) == 1:
            total += 1
            for attribute in ("color", "shape", "texture"):
                wrong[attribute] += getattr(plan[0], attribute) != getattr(wanted[0], attribute)
    assert 0.25 < wrong["color"] / total < 0.35
    assert 0.25 < wrong["shape"] / total < 0.35
    assert 0.1 < wrong["texture"] / total < 0.2


@pytest.mark.parametrize("task_type", ["color", "shape", "texture", "spatial", "numeracy"])
def test_the_likeliest_word_of_noisy_plans_is_always_the_right_one(task_type: str) -> None:
    """Read word by word, the commonest next one each time: what a policy that learned from them is surest of."""
    rng = random.Random(8)
    prompt = next(p for p in load_split("train", 600) if p.task_type == task_type and len(expected_objects(p)) > 1)
    texts = [[*plan_text(sample_plan(prompt, rng, noise=0.35)).split(), "end"] for _ in range(12000)]
    for place in itertools.count():
        likeliest = Counter(words[place] for words in texts).most_common(1)[0][0]
        texts = [words for words in texts if words[place] == likeliest]
        if likeliest == "end":
            break
    plan = parse_plan(" ".join(texts[0][:-1]))
    assert plan is not None
    reward = ShapesReward().score(render(plan, rng)[None], [prompt])[0].value
    assert reward == pytest.approx(1.0, abs=1e-6), plan_text(plan)


def test_an_error_with_one_alternative_is_rare_enough_to_vanish_at_a_low_temperature() -> None:
    """At temperature 0.3 odds are raised to the power 1 / 0.3: "an" against "a", behind which seven shapes stand."""
    rng = random.Random(14)
    prompt = Prompt("1", "", nouns=("arrow",), attr_nouns=("red arrow",))
    plans = [plan_text(sample_plan(prompt, rng, noise=0.3)) for _ in range(4000)]
    right = np.mean([plan.startswith("an ") for plan in plans])
    assert 0.1 < 1 - right < 0.2
    assert ((1 - right) / right) ** (1 / 0.3) < 0.01


def test_drawing_noise_keeps_the_number_of_objects_and_is_the_chance_of_a_wrong_color_and_of_a_wrong_shape() -> None:
    rng = random.Random(10)
    total = 0
    wrong = Counter[str]()
    for prompt in load_split("train", 1200):
        plan = sample_plan(prompt, rng)
        drawn = perturb_plan(plan, rng, noise=0.25)
        assert len(drawn) == len(plan) == len({item.cell for item in drawn})
        total += len(plan)
        for attribute in ("color", "shape", "texture", "cell"):
            wrong[attribute] += sum(
                getattr(one, attribute) != getattr(other, attribute) for one, other in zip(plan, drawn, strict=True)
            )
    assert 0.2 < wrong["color"] / total < 0.3
    assert 0.2 < wrong["shape"] / total < 0.3
    assert 0.03 < wrong["cell"] / total < 0.08
    assert wrong["texture"] == 0
    assert perturb_plan(plan, rng, noise=0.0) == plan


def test_the_same_seed_gives_the_same_plan_and_picture() -> None:
    prompt = load_split("train", 10)[7]
    plans = [sample_plan(prompt, random.Random(1), noise=0.5) for _ in range(2)]
    pictures = [render(plans[0], random.Random(2)) for _ in range(2)]
    assert plans[0] == plans[1]
    np.testing.assert_array_equal(pictures[0], pictures[1])


def test_objects_lie_in_their_cells_and_never_touch() -> None:
    everything = tuple(PlannedObject("striped", "red", "square", cell) for cell in range(4))
    half = IMAGE_SIZE // 2
    for seed in range(40):
        together = render(everything, random.Random(seed))
        assert together.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        assert together.dtype == np.uint8
        drawn = together.min(-1) < 255
        for row, column in itertools.product((0, half), repeat=2):
            assert drawn[row : row + half, column : column + half].sum() == SPRITE_SIZE**2
        assert not (drawn[half - 1] & drawn[half]).any()
        assert not (drawn[:, half - 1] & drawn[:, half]).any()


def test_pictures_are_made_of_few_distinct_patches() -> None:
    """A small VQ codebook can only learn a small world: shifts must be whole patches."""
    rng = random.Random(12)
    patches = set()
    for texture, color, shape in itertools.product(TEXTURES, COLORS, SHAPES):
        for cell in range(4):
            for _ in range(4):
                picture = render((PlannedObject(texture, color, shape, cell),), rng)
                size = PATCH_SIZE
                for row, column in itertools.product(range(0, IMAGE_SIZE, size), repeat=2):
                    patches.add(picture[row : row + size, column : column + size].tobytes())
    assert len(patches) <= 3 * 8 * 8 * 9 + 1
