"""The shapes reward: exact on what the renderer draws, graded, robust, and not to be fooled."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from configs.errors import RewardError
from rewards.registry import create_reward
from rewards.shapes import ShapesReward
from rewards.shapes.detector import detect_objects
from rollout.records import CountInfo, Prompt, SpatialInfo, UInt8Array
from rollout.shapes import load_split, render
from rollout.shapes.world import (
    COLOR_RGB,
    COLORS,
    IMAGE_SIZE,
    PATCH_SIZE,
    SHAPES,
    SPRITE_SIZE,
    TASK_TYPES,
    TEXTURES,
    Plan,
    PlannedObject,
    draw_sprite,
    sample_plan,
)
from tests.plans import plan_of

REWARD = ShapesReward()
PROMPTS = [*load_split("train", 180, seed=1), *load_split("unseen_pairs", 60, seed=1)]

RED_CIRCLE = Prompt("p", "a red circle", "color", ("circle",), ("red circle",))
STRIPED = Prompt("p", "a striped red circle", "texture", ("circle",), ("striped red circle",))
TWO = Prompt("p", "a red star and a blue circle", "color", ("star", "circle"), ("red star", "blue circle"))
LEFT = Prompt("p", "", "spatial", ("star", "circle"), TWO.attr_nouns, SpatialInfo("red star", "blue circle", "left of"))
THREE = Prompt("p", "three red circles", "numeracy", ("circle",), ("red circle",), None, (CountInfo("red circle", 3),))
A_CIRCLE = Prompt("p", "a circle", "object", ("circle",))


def draw(text: str, seed: int = 0) -> UInt8Array:
    return render(plan_of(text), random.Random(seed))


def value(picture: UInt8Array, prompt: Prompt) -> float:
    return REWARD.score(picture[None], [prompt])[0].value


def values(pictures: Sequence[UInt8Array] | UInt8Array, prompts: Sequence[Prompt] = PROMPTS) -> NDArray[np.float64]:
    return np.array([score.value for score in REWARD.score(np.asarray(pictures), prompts)])


@functools.cache
def true_pictures() -> UInt8Array:
    """One right picture for each of PROMPTS; shared, so copy before writing."""
    rng = random.Random(0)
    return np.stack([render(sample_plan(prompt, rng), rng) for prompt in PROMPTS])


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_what_the_prompt_asks_for_scores_full_marks(task_type: str) -> None:
    chosen = [index for index, prompt in enumerate(PROMPTS) if prompt.task_type == task_type]
    scores = values(true_pictures()[chosen], [PROMPTS[index] for index in chosen])
    assert len(chosen) >= 20
    assert scores.min() >= 0.99


def test_the_picture_of_another_prompt_scores_low() -> None:
    scores = values(np.roll(true_pictures(), 7, axis=0))
    assert scores.mean() < 0.22
    assert np.mean(scores > 0.9) < 0.02


def test_more_errors_score_less() -> None:
    rng = random.Random(4)
    means = [
        np.mean([values([render(sample_plan(p, rng, noise), rng) for p in PROMPTS]) for _ in range(3)])
        for noise in (0.0, 0.25, 0.5, 1.0)
    ]
    assert means == sorted(means, reverse=True)
    assert means[0] - means[-1] > 0.3


def test_every_object_of_every_kind_is_recognised_wherever_it_stands() -> None:
    rng = random.Random(0)
    plans: list[Plan] = [
        (PlannedObject(texture, color, shape, cell),)
        for texture in TEXTURES
        for color in COLORS
        for shape in SHAPES
        for cell in range(4)
    ]
    drawings = detect_objects(np.stack([render(plan, rng) for plan in plans]))
    for (planned,), drawing in zip(plans, drawings, strict=True):
        (found,) = drawing.objects
        assert (found.texture, found.color, found.shape) == (planned.texture, planned.color, planned.shape)
        assert (found.row >= 32, found.column >= 32) == divmod(planned.cell, 2)
        assert found.vividness > 0.6
        assert drawing.speck_area == 0


@pytest.mark.parametrize(
    ("text", "prompt", "low", "high"),
    [
        ("blue circle top left", RED_CIRCLE, 0.4, 0.6),
        ("red star top left", RED_CIRCLE, 0.4, 0.6),
        ("blue star top left", RED_CIRCLE, 0, 0.01),
        ("red circle top left", STRIPED, 0.7, 0.8),
        ("dotted red circle top left", STRIPED, 0.7, 0.8),
        ("striped blue circle top left", STRIPED, 0.7, 0.8),
        ("red star top left", TWO, 0.5, 0.5),
        ("red star top left ; green circle top right", TWO, 0.7, 0.8),
        ("blue star top left ; red circle top right", TWO, 0.45, 0.55),
        ("blue circle top left ; red star top right", LEFT, 0.5, 0.5),
        ("red star top left ; blue circle bottom left", LEFT, 0.5, 0.5),
        ("red star top left ; blue circle bottom right", LEFT, 1, 1),
        ("red star top left", LEFT, 0.2, 0.3),
        ("red circle top left ; red circle top right", THREE, 0.5, 0.6),
        ("red circle top left", THREE, 0.2, 0.25),
        ("red star top left", A_CIRCLE, 0, 0),
        ("dotted cyan circle top left", A_CIRCLE, 1, 1),
    ],
)
def test_one_thing_wrong_costs_some_but_not_all(text: str, prompt: Prompt, low: float, high: float) -> None:
    assert low <= value(draw(text), prompt) <= high


@pytest.mark.parametrize("locality", ["next to", "near", "on side of"])
def test_next_to_wants_neighbours_not_opposite_corners(locality: str) -> None:
    prompt = Prompt("p", "", "spatial", spatial_info=SpatialInfo("star", "circle", locality))
    assert value(draw("red star top left ; blue circle top right"), prompt) == 1
    assert value(draw("red star top left ; blue circle bottom left"), prompt) == 1
    far = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 255, np.uint8)
    far[:SPRITE_SIZE, :SPRITE_SIZE] = draw_sprite("solid", "red", "star")
    far[-SPRITE_SIZE:, -SPRITE_SIZE:] = draw_sprite("solid", "blue", "circle")
    assert value(far, prompt) == 0.5


@pytest.mark.parametrize("sigma", [5, 15, 25])
def test_small_artefacts_of_a_decoder_cost_next_to_nothing(sigma: int) -> None:
    noise = np.random.default_rng(sigma).normal(0, sigma, true_pictures().shape)
    assert values(np.clip(true_pictures() + noise, 0, 255).astype(np.uint8)).mean() > 0.97


def test_a_slight_blur_and_a_few_wrong_pixels_cost_little() -> None:
    blurred = ndimage.uniform_filter1d(true_pictures().astype(float), 3, axis=2).astype(np.uint8)
    assert values(blurred).mean() > 0.9
    rng = np.random.default_rng(0)
    speckled = true_pictures().copy()
    for picture in speckled:
        rows, columns = rng.integers(0, IMAGE_SIZE, (2, 6))
        picture[rows, columns] = rng.integers(0, 256, (6, 3))
    assert values(speckled).mean() > 0.9


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0), (128, 128, 128), *COLOR_RGB.values()])
def test_a_picture_of_one_color_scores_near_zero(color: tuple[int, int, int]) -> None:
    assert values(np.broadcast_to(np.array(color, np.uint8), (len(PROMPTS), IMAGE_SIZE, IMAGE_SIZE, 3))).max() < 0.01


@pytest.mark.parametrize("block", [1, 2, 4, PATCH_SIZE])
@pytest.mark.parametrize("ground_share", [0.0, 0.5, 0.8])
def test_noise_scores_near_zero(block: int, ground_share: float) -> None:
    rng = np.random.default_rng(block)
    side = IMAGE_SIZE // block
    choices = np.array([(0, 0, 0), *COLOR_RGB.values()], np.uint8)
    colored = choices[rng.integers(0, len(choices), (len(PROMPTS), side, side))]
    is_ground = rng.random((len(PROMPTS), side, side, 1)) < ground_share
    noise = np.where(is_ground, np.uint8(255), colored).repeat(block, axis=1).repeat(block, axis=2)
    assert values(noise).mean() < 0.02


def test_random_pixels_score_near_zero() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (len(PROMPTS), IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    assert values(pixels).max() < 0.01


def test_the_right_patches_in_the_wrong_order_score_near_zero() -> None:
    side = IMAGE_SIZE // PATCH_SIZE
    tiles = true_pictures().reshape(-1, side, PATCH_SIZE, side, PATCH_SIZE, 3).swapaxes(2, 3)
    flat = tiles.reshape(len(PROMPTS), side * side, -1)[:, np.random.default_rng(2).permutation(side * side)]
    shuffled = flat.reshape(tiles.shape).swapaxes(2, 3).reshape(true_pictures().shape)
    assert values(shuffled).mean() < 0.05


def test_the_more_a_picture_is_smeared_the_less_it_scores() -> None:
    pictures = true_pictures()
    trails = [values(ndimage.minimum_filter(pictures, (1, 1, length, 1))).mean() for length in (1, 8, 14, 24, 40)]
    assert trails == sorted(trails, reverse=True)
    assert trails[-1] < 0.05
    blurs = [values(ndimage.uniform_filter(pictures, (1, size, size, 1))).mean() for size in (1, 5, 9, 17, 25)]
    assert blurs == sorted(blurs, reverse=True)
    assert blurs[-1] < 0.1


def test_washed_out_colors_do_not_count_as_colors() -> None:
    faint = (255 - 0.35 * (255 - true_pictures().astype(float))).astype(np.uint8)
    assert values(faint).mean() < 0.1


def test_filling_the_picture_with_objects_does_not_pay() -> None:
    """Four cells can hold what is asked and more: what is more costs."""
    full = "red circle top left ; red star top right ; blue circle bottom left ; green square bottom right"
    assert value(draw(full), RED_CIRCLE) <= 0.25
    assert value(draw(full), A_CIRCLE) <= 0.25
    assert value(draw(full), TWO) <= 0.5
    assert value(draw(full), THREE) <= 0.5


def test_a_second_copy_costs_half() -> None:
    assert value(draw("red circle top left ; red circle bottom right"), RED_CIRCLE) == 0.5
    assert value(draw("red circle top left ; red star bottom right"), RED_CIRCLE) == 0.5
    four = " ; ".join(f"red circle {row} {column}" for row in ("top", "bottom") for column in ("left", "right"))
    assert 0.5 < value(draw(four), THREE) < 0.7


@pytest.mark.parametrize("size", [32, 40, 48, 64])
def test_one_giant_blob_scores_near_zero(size: int) -> None:
    picture = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 255, np.uint8)
    picture[:size, :size] = COLOR_RGB["red"]
    square = Prompt("p", "", "color", ("square",), ("red square",))
    for prompt in (square, RED_CIRCLE, THREE, Prompt("p", "", "object", ("square",))):
        assert value(picture, prompt) < 0.02


def test_a_blob_beside_the_right_object_costs_as_many_objects_as_it_has_room_for() -> None:
    picture = draw("red circle top left")
    picture[:, 34:] = COLOR_RGB["green"]
    assert value(picture, RED_CIRCLE) < 0.25


def test_specks_around_the_right_object_cost() -> None:
    picture = draw("red circle top left")
    picture[1::3, 34::3] = COLOR_RGB["green"]
    assert 0.2 < value(picture, RED_CIRCLE) < 0.7


def test_an_object_of_mixed_colors_is_of_no_color() -> None:
    picture = draw("red circle top left")
    drawn_right = (picture < 255).any(-1) & (np.arange(IMAGE_SIZE) >= np.argwhere((picture < 255).any(-1))[:, 1].mean())
    picture[drawn_right] = COLOR_RGB["blue"]
    assert value(picture, RED_CIRCLE) <= 0.25
    assert value(picture, A_CIRCLE) <= 0.5
    both = Prompt("p", "", "color", ("circle", "circle"), ("red circle", "blue circle"))
    assert value(picture, both) <= 0.15


def test_half_an_object_in_ink_has_no_texture() -> None:
    picture = draw("red circle top left")
    drawn = (picture < 255).any(-1)
    middle = np.argwhere(drawn).mean(0)[0]
    picture[drawn & (np.arange(IMAGE_SIZE)[:, None] > middle)] = 0
    for texture in TEXTURES:
        assert value(picture, Prompt("p", "", "texture", ("circle",), (f"{texture} red circle",))) <= 0.75
    (found,) = detect_objects(picture[None])[0].objects
    assert found.texture is None


@pytest.mark.parametrize("thickness", [1, 2, 3])
def test_thin_lines_score_near_zero(thickness: int) -> None:
    picture = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 255, np.uint8)
    for start in range(0, IMAGE_SIZE, 16):
        picture[start : start + thickness] = COLOR_RGB["red"]
    assert values([picture] * len(PROMPTS)).max() < 0.01
    outline = draw("red square top left")
    rows, columns = np.nonzero((outline < 255).any(-1))
    outline[rows.min() + 1 : rows.max(), columns.min() + 1 : columns.max()] = 255
    assert value(outline, Prompt("p", "", "color", ("square",), ("red square",))) < 0.02


def test_objects_that_touch_do_not_count_as_two() -> None:
    picture = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 255, np.uint8)
    picture[8:30, 8:30] = COLOR_RGB["red"]
    picture[8:30, 30:52] = COLOR_RGB["blue"]
    both = Prompt("p", "", "color", ("square", "square"), ("red square", "blue square"))
    assert value(picture, both) < 0.2


def test_a_wall_of_text_scores_near_zero() -> None:
    """Even one that names all that the prompts ask for."""
    letters = " ".join(prompt.text for prompt in PROMPTS[:8])
    for size in (8, 20):
        for ink in ((0, 0, 0), COLOR_RGB["red"]):
            wall = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
            lines = [letters[i : i + IMAGE_SIZE // 4] for i in range(0, 20 * IMAGE_SIZE // 4, IMAGE_SIZE // 4)]
            ImageDraw.Draw(wall).multiline_text((0, 0), "\n".join(lines), ink, ImageFont.load_default(size), spacing=0)
            assert values([np.asarray(wall)] * len(PROMPTS)).mean() < 0.05


def test_one_object_on_the_other_is_not_both_and_stands_nowhere() -> None:
    """Beside each other they are right; the nearer they come, the more is taken for one thing."""
    star, circle = (draw_sprite("solid", color, shape) for color, shape in (("red", "star"), ("blue", "circle")))
    earned = []
    for shift in (0, 4, 8):
        picture = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 255, np.uint8)
        for column, sprite in ((20 + shift, circle), (20, star)):
            cut = picture[20 : 20 + SPRITE_SIZE, column : column + SPRITE_SIZE]
            np.copyto(cut, sprite, where=(sprite != 255).any(axis=-1, keepdims=True))
        earned.append(value(picture, LEFT))
    assert value(draw("red star top left ; blue circle top right"), LEFT) == 1.0
    assert max(earned) <= 0.25


def test_the_score_does_not_depend_on_the_rest_of_the_batch() -> None:
    pictures = np.roll(true_pictures(), 3, axis=0)
    alone = [REWARD.score(picture[None], [prompt])[0] for picture, prompt in zip(pictures, PROMPTS, strict=True)]
    assert REWARD.score(pictures, PROMPTS) == alone


def test_the_parts_explain_the_score() -> None:
    (score,) = REWARD.score(draw("striped blue circle top left ; red star top right")[None], [LEFT])
    assert score.parts["found"] == ["red star top right", "striped blue circle top left"]
    assert score.parts["missing"] == []
    assert score.parts["relation"] == 0
    (score,) = REWARD.score(draw("green star bottom left")[None], [TWO])
    assert score.parts["wrong"] == ["red star: drawn as green star bottom left"]
    assert score.parts["missing"] == ["blue circle"]
    assert score.parts["objects"] == 0.25
    (score,) = REWARD.score(draw("red circle top left")[None], [THREE])
    assert score.parts["missing"] == ["red circle", "red circle"]
    assert score.parts["count"] == pytest.approx(1 / 3)


def test_every_score_is_finite_and_between_zero_and_one() -> None:
    scores = values(np.roll(true_pictures(), 11, axis=0))
    assert np.isfinite(scores).all()
    assert 0 <= scores.min() <= scores.max() <= 1


def test_a_prompt_without_metadata_is_left_out_and_not_scored_zero() -> None:
    (score,) = REWARD.score(draw("red circle top left")[None], [Prompt("p", "a red circle")])
    assert not score.applicable


def test_metadata_of_another_world_is_an_error_that_names_reward_and_prompt() -> None:
    with pytest.raises(RewardError, match=r"'shapes': prompt data\.jsonl:9: 'a cat'"):
        REWARD.score(draw("red circle top left")[None], [Prompt("data.jsonl:9", "", nouns=("a cat",))])


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (1, 64, 64), (64, 64, 3)])
def test_pictures_of_another_size_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(RewardError, match=r"'shapes': pictures are uint8 .*not uint8 \[B, 64, 64, 3\]"):
        REWARD.score(np.zeros(shape, np.uint8), [RED_CIRCLE])


def test_the_registry_makes_the_reward_by_its_name() -> None:
    reward = create_reward("shapes", {}, "cpu")
    assert reward.score(draw("red circle top left")[None], [RED_CIRCLE])[0].value == 1
