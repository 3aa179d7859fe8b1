"""rewards/t2i_r1/rules.py: each defect of T2I-R1's rewards on hand-made boxes and logits, beside the right default."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rewards.objects import Candidates
from rewards.objects.boxes import RELATIONS, relation_score, to_corners
from rewards.objects.detections import drop_duplicates, score_detections, wanted_nouns
from rewards.t2i_r1 import rules as t2i_r1
from rollout.records import CountInfo, Prompt, SpatialInfo

MAX_IOU = 0.5
SIDE = 384
# Centre x, centre y, width, height in 0..1.
LEFT, RIGHT = [0.2, 0.5, 0.2, 0.2], [0.8, 0.5, 0.2, 0.2]
TOP, BOTTOM = [0.5, 0.2, 0.2, 0.2], [0.5, 0.8, 0.2, 0.2]
LEFT_AGAIN = [0.21, 0.5, 0.2, 0.2]


def candidates(*boxes: list[float]) -> Candidates:
    return Candidates(np.array(boxes, dtype=np.float32).reshape(-1, 4), np.linspace(0.9, 0.5, len(boxes)))


def compat(prompt: Prompt, **found: Candidates) -> float:
    return t2i_r1.score_candidates(prompt, {noun.replace("_", " "): c for noun, c in found.items()}, MAX_IOU).value


def right(prompt: Prompt, **found: Candidates) -> float:
    objects = {noun.replace("_", " "): drop_duplicates(c, SIDE, SIDE, MAX_IOU) for noun, c in found.items()}
    return score_detections(prompt, objects).value


def relation(locality: str, first: str = "cat", second: str = "dog") -> Prompt:
    return Prompt("p", "t", "spatial", nouns=(first, second), spatial_info=SpatialInfo(first, second, locality))


@pytest.mark.parametrize("locality", ["above", "on top of", "over"])
def test_above_has_no_branch_and_earns_only_the_objects(locality: str) -> None:
    found = {"cat": candidates(TOP), "dog": candidates(BOTTOM)}
    assert compat(relation(locality), **found) == pytest.approx(0.4)
    assert right(relation(locality), **found) == pytest.approx(1.0)


@pytest.mark.parametrize("locality", ["next to", "near", "on side of"])
def test_everything_is_near_when_150_pixels_meet_boxes_in_0_to_1(locality: str) -> None:
    corners = [[0.01, 0.5, 0.02, 0.02], [0.99, 0.5, 0.02, 0.02]]
    far = {"cat": candidates(corners[0]), "dog": candidates(corners[1])}
    assert compat(relation(locality), **far) == pytest.approx(0.9)
    assert right(relation(locality), **far) < 0.45


def test_the_near_threshold_would_tell_near_from_far_if_boxes_were_in_pixels() -> None:
    first, second = (np.array([x, x, x + 20, x + 20], dtype=np.float32) for x in (0, 300))
    assert t2i_r1.position_score("near", first, second) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("locality", "first", "second"),
    [
        ("on the left of", LEFT, RIGHT),
        ("right of", RIGHT, LEFT),
        ("on the top of", TOP, BOTTOM),
        ("on the bottom of", BOTTOM, TOP),
        ("below", BOTTOM, TOP),
    ],
)
def test_the_other_localities_agree_and_a_perfect_relation_earns_nine_tenths(
    locality: str, first: list[float], second: list[float]
) -> None:
    assert compat(relation(locality), cat=candidates(first), dog=candidates(second)) == pytest.approx(0.9)
    assert compat(relation(locality), cat=candidates(second), dog=candidates(first)) == pytest.approx(0.4)
    assert right(relation(locality), cat=candidates(first), dog=candidates(second)) == pytest.approx(1.0)
    assert right(relation(locality), cat=candidates(second), dog=candidates(first)) == pytest.approx(0.4)


def test_a_slanted_relation_is_all_or_nothing() -> None:
    first, second = ([0.2, 0.2, 0.1, 0.1], [0.5, 0.55, 0.1, 0.1])
    assert compat(relation("left of"), cat=candidates(first), dog=candidates(second)) == pytest.approx(0.4)
    assert 0.8 < right(relation("left of"), cat=candidates(first), dog=candidates(second)) < 1.0


def test_boxes_that_overlap_earn_the_threshold_over_their_iou() -> None:
    first, second = [0.4, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.4]
    iou = (0.3 * 0.4) / (0.5 * 0.4)
    value = compat(relation("left of"), cat=candidates(first), dog=candidates(second))
    assert value == pytest.approx(0.4 + 0.5 * 0.1 / iou, abs=1e-5)


def test_the_surest_box_stands_for_its_object_whatever_its_place_in_the_list() -> None:
    cat = Candidates(np.array([RIGHT, LEFT], dtype=np.float32), np.array([0.4, 0.8]))
    assert compat(relation("left of"), cat=cat, dog=candidates(TOP)) == pytest.approx(0.4)
    dog = candidates([0.6, 0.5, 0.1, 0.1])
    assert compat(relation("left of"), cat=cat, dog=dog) == pytest.approx(0.9)


def test_two_objects_of_one_name_earn_nothing() -> None:
    pair = candidates(LEFT, RIGHT)
    assert compat(relation("left of", "cat", "cat"), cat=pair) == 0.0
    assert right(relation("left of", "cat", "cat"), cat=pair) == pytest.approx(1.0)


def test_counting_keeps_duplicates_because_suppression_reads_centres_as_corners() -> None:
    prompt = Prompt("p", "t", "numeracy", nouns=("cat",), numeracy_info=(CountInfo("cat", 2),))
    found = candidates(LEFT, LEFT_AGAIN, RIGHT)
    assert compat(prompt, cat=found) == pytest.approx(0.2)
    assert right(prompt, cat=found) == pytest.approx(1.0)
    three = Prompt("p", "t", "numeracy", nouns=("cat",), numeracy_info=(CountInfo("cat", 3),))
    assert compat(three, cat=found) == pytest.approx(1.0)


def test_a_wrong_count_earns_a_fifth_however_wrong() -> None:
    wanted = (CountInfo("cat", 3), CountInfo("dog", 1))
    prompt = Prompt("p", "t", "numeracy", nouns=("cat", "dog"), numeracy_info=wanted)
    found = {"cat": candidates(LEFT, RIGHT), "dog": candidates(TOP)}
    assert compat(prompt, **found) == pytest.approx((0.2 + 1) / 2)
    assert right(prompt, **found) == pytest.approx((2 / 3 + 1) / 2)
    assert compat(prompt, cat=candidates(), dog=candidates(TOP)) == pytest.approx(0.5)


def test_nouns_of_three_words_never_match() -> None:
    prompt = Prompt("p", "t", "color", nouns=("big red truck", "fire truck", "cat"))
    found = {"big_red_truck": candidates(LEFT), "fire_truck": candidates(RIGHT), "cat": candidates(TOP)}
    assert compat(prompt, **found) == pytest.approx(2 / 3)
    assert right(prompt, **found) == pytest.approx(1.0)


def test_a_prompt_without_nouns_earns_one() -> None:
    prompt = Prompt("p", "joy")
    assert t2i_r1.detector_nouns(prompt) == []
    assert compat(prompt) == 1.0
    assert wanted_nouns(prompt) == []


def test_only_the_prompts_own_nouns_are_looked_for() -> None:
    prompt = Prompt("p", "t", "spatial", nouns=("Cat",), spatial_info=SpatialInfo("cat", "dog", "left of"))
    assert t2i_r1.detector_nouns(prompt) == ["cat"]
    assert compat(prompt, cat=candidates(LEFT)) == pytest.approx(0.2)
    assert wanted_nouns(prompt) == ["cat", "dog"]


def test_the_missing_branch_is_the_only_difference_between_above_and_on_the_top_of() -> None:
    boxes = [to_corners(np.array([box]), 1, 1)[0] for box in (TOP, BOTTOM)]
    assert t2i_r1.position_score("on the top of", *boxes) == 1.0
    assert t2i_r1.position_score("above", *boxes) == 0.0
    assert relation_score(RELATIONS["above"], *boxes) == 1.0


def test_git_gives_relations_and_counts_a_constant_nought() -> None:
    assert t2i_r1.git_adds_nothing(relation("above"))
    assert t2i_r1.git_adds_nothing(Prompt("p", "t", numeracy_info=(CountInfo("cat", 2),)))
    assert not t2i_r1.git_adds_nothing(Prompt("p", "t", nouns=("cat",), attr_nouns=("red cat",)))


def sample(logits: list[float], num_rows: int) -> list[tuple[float, str]]:
    words = ["yes", "no", " Yes", "maybe"]
    rows = torch.tensor([logits] * num_rows)
    generator = torch.Generator().manual_seed(0)
    scores = t2i_r1.sample_orm(rows, 0, 0.3, words.__getitem__, generator)
    return [(score.value, score.parts["answer"]) for score in scores]


def test_the_orm_earns_the_share_of_yes_at_a_temperature_of_three_tenths() -> None:
    logits = [0.3, 0.0, -9.0, -9.0]
    p_yes = np.exp(0.3 / 0.3) / (np.exp(0.3 / 0.3) + 1)
    answers = sample(logits, 50)
    assert {answer for _, answer in answers} == {"yes", "no"}
    assert [value for value, _ in answers] == pytest.approx([p_yes] * 50, abs=1e-6)


def test_the_orm_earns_nothing_for_another_reply_though_yes_was_likelier_than_no() -> None:
    answers = sample([1.0, 0.5, -9.0, 1.1], 60)
    by_answer = {answer: value for value, answer in answers}
    assert set(by_answer) == {"yes", "no", "maybe"}
    assert by_answer["maybe"] == 0.0
    assert by_answer["yes"] == by_answer["no"] > 0.3


def test_a_capital_yes_counts_as_a_reply_but_its_probability_does_not() -> None:
    ((value, answer),) = sample([-9.0, -9.0, 9.0, -9.0], 1)
    assert answer == "Yes"
    assert value == pytest.approx(0.0, abs=1e-6)


def test_hps_moves_in_steps_of_float16() -> None:
    cosines = torch.tensor([0.28001, 0.28005, 0.2803])
    rounded = t2i_r1.round_hps(cosines)
    assert rounded[0] == rounded[1] != rounded[2]
    assert torch.allclose(rounded, cosines, atol=2.5e-4)
