"""rewards/t2i_r1: each defect of T2I-R1's rewards on hand-made boxes and logits, beside the right default."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from rewards.alignment.git_vqa import Questions
from rewards.objects import Candidates
from rewards.objects.boxes import RELATIONS, relation_score, to_corners
from rewards.objects.detections import DetectionRules, drop_duplicates, score_detections, wanted_nouns
from rewards.t2i_r1.git_vqa import T2IR1Questions
from rewards.t2i_r1.grounding_dino import T2IR1DetectionRules, position_score
from rewards.t2i_r1.hps import half_cosines
from rewards.t2i_r1.orm import SampledReply, reply_probabilities, sampling_steps, score_reply
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
    phrases = {noun.replace("_", " "): c for noun, c in found.items()}
    return T2IR1DetectionRules(MAX_IOU).score(prompt, phrases, SIDE, SIDE).value


def phrases(prompt: Prompt) -> list[str]:
    caption = T2IR1DetectionRules(MAX_IOU).caption(prompt)
    return [phrase.name for phrase in caption.phrases] if caption else []


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
    assert position_score("near", first, second) == pytest.approx(0.5)


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
    assert phrases(prompt) == ["big truck", "fire truck", "cat"]
    boxes = [candidates(LEFT), candidates(RIGHT), candidates(TOP)]
    assert compat(prompt, **dict(zip(phrases(prompt), boxes, strict=True))) == pytest.approx(2 / 3)
    assert right(prompt, **dict(zip(prompt.nouns, boxes, strict=True))) == pytest.approx(1.0)


def test_a_prompt_without_nouns_earns_one() -> None:
    prompt = Prompt("p", "joy")
    assert phrases(prompt) == []
    assert compat(prompt) == 1.0
    assert wanted_nouns(prompt) == []
    assert not DetectionRules(MAX_IOU).score(prompt, {}, SIDE, SIDE).applicable


def test_only_the_prompts_own_nouns_are_looked_for_letter_for_letter() -> None:
    prompt = Prompt("p", "t", "spatial", nouns=("Cat",), spatial_info=SpatialInfo("cat", "dog", "left of"))
    assert phrases(prompt) == ["Cat"]
    assert compat(prompt, Cat=candidates(LEFT)) == 0.0
    assert wanted_nouns(prompt) == ["cat", "dog"]


def test_the_task_type_alone_chooses_the_rule() -> None:
    where = SpatialInfo("cat", "dog", "left of")
    found = {"cat": candidates(RIGHT), "dog": candidates(LEFT)}
    complex_prompt = Prompt("p", "t", "complex", nouns=("cat", "dog"), spatial_info=where)
    assert compat(complex_prompt, **found) == 1.0
    assert right(complex_prompt, **found) == pytest.approx(0.4)
    unlabelled = Prompt("p", "t", "spatial", nouns=("cat", "dog"))
    assert compat(unlabelled, **found) == 0.0
    assert right(unlabelled, **found) == 1.0


def test_a_count_without_counts_ends_t2i_r1s_code_and_does_not_apply() -> None:
    prompt = Prompt("p", "t", "numeracy", nouns=("cat",))
    assert not T2IR1DetectionRules(MAX_IOU).score(prompt, {"cat": candidates(LEFT)}, SIDE, SIDE).applicable


def test_a_noun_that_stands_twice_counts_twice() -> None:
    prompt = Prompt("p", "t", "complex", nouns=("cat", "cat", "dog"))
    assert compat(prompt, cat=candidates(LEFT), dog=candidates()) == pytest.approx(2 / 3)
    assert wanted_nouns(prompt) == ["cat", "dog"]
    assert right(prompt, cat=candidates(LEFT), dog=candidates()) == pytest.approx(1 / 2)


def test_one_box_for_both_objects_stands_in_no_direction_whatever_the_rounding() -> None:
    rng = np.random.default_rng(0)
    for box in rng.uniform(0.05, 0.9, (500, 4)).astype(np.float32).tolist():
        for locality in ("left of", "right of", "below", "on the top of"):
            assert compat(relation(locality), cat=candidates(box), dog=candidates(box)) == pytest.approx(0.4)


def test_a_step_from_the_centre_is_a_relation_for_t2i_r1_only() -> None:
    big, small = [0.5, 0.5, 0.8, 0.8], [0.49, 0.5, 0.1, 0.1]
    assert compat(relation("left of"), cat=candidates(small), dog=candidates(big)) == pytest.approx(0.9)
    assert right(relation("left of"), cat=candidates(small), dog=candidates(big)) == pytest.approx(0.4)


def test_a_locality_that_boxes_cannot_tell_falls_back_to_presence() -> None:
    prompt = relation("behind")
    found = {"cat": candidates(LEFT), "dog": candidates(RIGHT)}
    assert compat(prompt, **found) == pytest.approx(0.4)
    assert right(prompt, **found) == 1.0
    assert right(prompt, cat=candidates(LEFT), dog=candidates()) == 0.5


def test_the_missing_branch_is_the_only_difference_between_above_and_on_the_top_of() -> None:
    boxes = [to_corners(np.array([box]), 1, 1)[0] for box in (TOP, BOTTOM)]
    assert position_score("on the top of", *boxes) == 1.0
    assert position_score("above", *boxes) == 0.0
    assert relation_score(RELATIONS["above"], *boxes) == 1.0


def test_git_gives_relations_and_counts_a_constant_nought() -> None:
    for task in ("spatial", "numeracy"):
        prompt = Prompt("p", "t", task, nouns=("cat",))
        assert T2IR1Questions().nouns(prompt) == Questions().nouns(prompt) == ()
        assert T2IR1Questions().fixed_score(prompt).value == 0.0
        assert not Questions().fixed_score(prompt).applicable


def test_git_asks_for_nouns_where_there_are_no_attributes() -> None:
    where = SpatialInfo("cat", "mat", "on top of")
    for prompt in (
        Prompt("p", "t", "complex", nouns=("cat", "mat"), spatial_info=where),
        Prompt("p", "t", "non", nouns=("cat", "mat")),
        Prompt("p", "t", "object", nouns=("cat", "mat")),
    ):
        assert T2IR1Questions().nouns(prompt) == Questions().nouns(prompt) == ("cat", "mat")
    attributes = Prompt("p", "t", "color", nouns=("cat",), attr_nouns=("red cat",))
    assert T2IR1Questions().nouns(attributes) == Questions().nouns(attributes) == ("red cat",)


def test_git_reads_the_fields_of_a_relation_that_names_no_task_type() -> None:
    where = SpatialInfo("cat", "mat", "on top of")
    assert Questions().nouns(Prompt("p", "t", nouns=("cat", "mat"), spatial_info=where)) == ()
    assert Questions().nouns(Prompt("p", "t", nouns=("cat",), numeracy_info=(CountInfo("cat", 2),))) == ()
    assert Questions().nouns(Prompt("p", "t", nouns=("cat",))) == ("cat",)


def test_a_prompt_with_nothing_to_ask_earns_one_of_git() -> None:
    prompt = Prompt("p", "joy", "non")
    assert T2IR1Questions().nouns(prompt) == ()
    assert T2IR1Questions().fixed_score(prompt).value == 1.0
    assert not Questions().fixed_score(prompt).applicable


WORDS = ["yes", "no", "Yes", "maybe", "Ġyes"]


def sample(logits: list[float], num_rows: int, settings: GenerationConfig | None = None) -> list[tuple[float, str]]:
    rows = torch.tensor([logits] * num_rows)
    scores = SampledReply(0.3, settings, 0, 1, WORDS.__getitem__).scores(rows)
    return [(score.value, score.parts["answer"]) for score in scores]


def test_the_orm_earns_the_share_of_yes_at_a_temperature_of_three_tenths() -> None:
    p_yes = 1 / (1 + np.exp(-0.3 / 0.3))
    answers = sample([0.3, 0.0, -9.0, -9.0, -9.0], 50)
    assert {answer for _, answer in answers} == {"yes", "no"}
    assert [value for value, _ in answers] == pytest.approx([p_yes] * 50, abs=1e-6)


def test_the_orm_earns_nothing_for_another_reply_and_its_share_ignores_third_words() -> None:
    answers = sample([1.0, 0.5, -9.0, 1.1, -9.0], 60)
    by_answer = {answer: value for value, answer in answers}
    assert set(by_answer) == {"yes", "no", "maybe"}
    assert by_answer["maybe"] == 0.0
    assert by_answer["yes"] == by_answer["no"] == pytest.approx(1 / (1 + np.exp(-0.5 / 0.3)), abs=1e-6)


def test_a_reply_is_a_token_and_not_what_it_decodes_to() -> None:
    assert score_reply("Yes", 0.1, 0.3).value == pytest.approx(0.25)
    assert score_reply("Ġyes", 0.1, 0.3).value == 0.0
    assert score_reply("Yes", 0.0, 0.0).value == 0.0


def test_the_checkpoints_own_sampling_is_applied() -> None:
    logits = [0.6, 0.0, -9.0, -9.0, -9.0]  # at 0.3: P(yes) = 0.88, beyond a top_p of 0.8
    assert sample(logits, 1, GenerationConfig(top_p=0.8, top_k=20))[0] == (1.0, "yes")
    assert sample(logits, 1, GenerationConfig())[0][0] == pytest.approx(0.8808, abs=1e-4)
    (row,) = reply_probabilities(torch.tensor([[0.6, 0.0, 0.5]]), sampling_steps(0.3, top_k=2, top_p=1.0))
    assert row[1] == 0.0


def test_hps_moves_in_steps_of_float16() -> None:
    angles = torch.acos(torch.tensor([0.28001, 0.28005, 0.2803]))
    pictures = torch.stack([angles.cos(), angles.sin()], dim=1)
    rounded = half_cosines(pictures, torch.tensor([[1.0, 0.0]]).expand(3, 2))
    assert rounded[0] == rounded[1] != rounded[2]
    assert torch.allclose(rounded, angles.cos(), atol=2.5e-4)
