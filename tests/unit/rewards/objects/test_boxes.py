"""rewards/objects/boxes.py, on boxes made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rewards.objects.boxes import RELATIONS, intersection_over_union, relation_score, suppress_overlapping, to_corners


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([x0, y0, x1, y1], dtype=np.float32)


MIDDLE = box(40, 40, 60, 60)
LEFT, RIGHT = box(10, 40, 30, 60), box(70, 40, 90, 60)
ABOVE, BELOW = box(40, 10, 60, 30), box(40, 70, 60, 90)
T2I_R1_LOCALITIES = (
    "on side of",
    "next to",
    "near",
    "on the left of",
    "on the right of",
    "on the bottom of",
    "on the top of",
    "on top of",
    "right of",
    "left of",
    "below",
    "above",
)


def test_every_locality_of_t2i_r1_has_a_rule() -> None:
    assert set(T2I_R1_LOCALITIES) <= set(RELATIONS)


@pytest.mark.parametrize(
    ("locality", "right_place", "wrong_places"),
    [
        ("on the left of", LEFT, (RIGHT, ABOVE, BELOW)),
        ("left of", LEFT, (RIGHT, ABOVE, BELOW)),
        ("on the right of", RIGHT, (LEFT, ABOVE, BELOW)),
        ("right of", RIGHT, (LEFT, ABOVE, BELOW)),
        ("above", ABOVE, (LEFT, RIGHT, BELOW)),
        ("on top of", ABOVE, (LEFT, RIGHT, BELOW)),
        ("on the top of", ABOVE, (LEFT, RIGHT, BELOW)),
        ("below", BELOW, (LEFT, RIGHT, ABOVE)),
        ("on the bottom of", BELOW, (LEFT, RIGHT, ABOVE)),
    ],
)
def test_a_direction_holds_on_its_side_only(
    locality: str, right_place: np.ndarray, wrong_places: tuple[np.ndarray, ...]
) -> None:
    relation = RELATIONS[locality]
    assert relation_score(relation, right_place, MIDDLE) == 1.0
    assert [relation_score(relation, place, MIDDLE) for place in wrong_places] == [0.0, 0.0, 0.0]


def test_a_direction_fades_between_45_and_90_degrees() -> None:
    diagonal, steep = box(20, 20, 40, 40), box(30, 0, 50, 20)
    assert relation_score("left", diagonal, MIDDLE) == pytest.approx(1.0)
    assert 0.0 < relation_score("left", steep, MIDDLE) < 0.5


def test_two_names_for_one_object_earn_little() -> None:
    jitter = MIDDLE + np.float32(0.5) * np.array([-1, -1, -1, -1], dtype=np.float32)
    for relation in ("left", "above", "on top", "near", "beside"):
        assert relation_score(relation, jitter, MIDDLE) < 0.25
        assert relation_score(relation, MIDDLE, MIDDLE) == 0.0


def test_what_lies_on_top_may_overlap_what_it_lies_on() -> None:
    cat, sofa = box(30, 20, 70, 60), box(10, 30, 90, 90)
    assert relation_score("on top", cat, sofa) == 1.0
    assert relation_score("above", cat, sofa) < 1.0


def test_a_step_within_the_least_distance_is_no_direction() -> None:
    bench = box(0, 0, 100, 100)
    for step in (1, 4, 12):
        dog = box(40 + step, 40, 60 + step, 60)
        assert relation_score("right", dog, bench) == 0.0
        assert relation_score("beside", dog, bench) == 0.0
    assert relation_score("right", box(58, 40, 78, 60), bench) == pytest.approx((18 - 12) / 12)
    assert relation_score("right", box(70, 40, 90, 60), bench) == 1.0


def test_what_is_next_to_a_thing_may_overlap_it_but_is_not_it() -> None:
    bench, dog = box(0, 40, 100, 100), box(30, 45, 90, 100)
    assert intersection_over_union(bench, dog) > 0.5
    assert relation_score("near", dog, bench) > 0.8
    assert relation_score("near", bench, bench) == 0.0


def test_near_means_a_gap_no_wider_than_the_objects() -> None:
    assert relation_score("near", LEFT, MIDDLE) == 1.0
    assert relation_score("near", box(0, 0, 20, 20), box(80, 0, 100, 20)) == pytest.approx(20 / 60)
    assert relation_score("near", ABOVE, MIDDLE) == 1.0


def test_near_does_not_depend_on_the_resolution() -> None:
    first, second = box(0, 0, 20, 20), box(80, 0, 100, 20)
    assert relation_score("near", first, second) == pytest.approx(relation_score("near", first * 16, second * 16))


def test_on_side_of_means_beside_and_not_above() -> None:
    assert relation_score("beside", LEFT, MIDDLE) == 1.0
    assert relation_score("beside", RIGHT, MIDDLE) == 1.0
    assert relation_score("beside", ABOVE, MIDDLE) == 0.0


def test_overlap_is_intersection_over_union() -> None:
    assert intersection_over_union(box(0, 0, 10, 10), box(5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert intersection_over_union(LEFT, RIGHT) == 0.0
    assert intersection_over_union(box(1, 1, 1, 1), box(1, 1, 1, 1)) == 0.0


def test_suppression_keeps_the_most_confident_of_each_pile() -> None:
    boxes = np.stack([box(0, 0, 10, 10), box(1, 0, 11, 10), box(50, 50, 60, 60), box(0, 1, 10, 11)])
    assert suppress_overlapping(boxes, np.array([0.5, 0.9, 0.4, 0.8]), max_iou=0.5) == [1, 2]


def test_suppression_wants_corners_and_not_centres_and_sizes() -> None:
    centers = np.array([[0.5, 0.5, 0.6, 0.6], [0.5, 0.5, 0.55, 0.55]], dtype=np.float32)
    confidences = np.array([0.9, 0.8])
    assert suppress_overlapping(to_corners(centers, 100, 100), confidences, max_iou=0.5) == [0]
    assert suppress_overlapping(centers, confidences, max_iou=0.5) == [0, 1]


def test_corners_are_in_pixels_of_each_axis() -> None:
    np.testing.assert_allclose(to_corners(np.array([[0.5, 0.25, 0.2, 0.1]]), 200, 100), [[80, 20, 120, 30]])
