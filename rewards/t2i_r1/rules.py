"""T2I-R1's own reward rules, defects and all, for runs that must be comparable with its published numbers.

`options: {t2i_r1_compat: true}` of hps, grounding_dino, git_vqa and orm chooses them. What is right instead, and the
default, is in those rewards' own modules. Each defect has one line or function here:

    defect                                                       where
    nouns of three words and more never match                    `_phrase`
    a prompt without nouns earns 1 from the detector             `NO_NOUNS`
    no branch for "above", "on top of", "over", "under"          `_DIRECTIONS`
    near, next to, on side of: boxes in 0..1 against 150 pixels  `NEAR_DISTANCE`
    two objects of one name: the code fails, and gives 0         `_score_relation`
    counting: suppression reads centre and size as corners       `_count`
    a wrong count earns 0.2, however wrong                       `WRONG_COUNT`
    a perfect relation earns 0.9                                 `RELATION_SHARE`
    GIT adds a constant 0 to relations and counts                `git_adds_nothing`
    the ORM samples its answer, and gives 0 for any but yes, no  `sample_orm`
    HPS ends in float16, in steps of 2.4e-4                      `round_hps`

Summed as they are, as T2I-R1 does, HPS is nearly silent beside the others: its range is about 0.15.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rewards.objects import Candidates
from rewards.objects.boxes import FloatArray, intersection_over_union, suppress_overlapping, to_corners
from rewards.objects.detections import normalize
from rollout.records import CountInfo, Prompt, Score, SpatialInfo

NO_NOUNS = 1.0
OBJECT_SHARE = 0.2
RELATION_SHARE = 0.5
WRONG_COUNT = 0.2
NEAR_DISTANCE = 150
"""Meant as pixels; the boxes it is compared with are in 0..1, so everything is near."""
OVERLAP_OF_TWO = 0.1
_NEAR = ("next to", "on side of", "near")
_DIRECTIONS: Mapping[str, tuple[int, int]] = {
    "on the right of": (0, -1),
    "right of": (0, -1),
    "on the left of": (0, 1),
    "left of": (0, 1),
    "on the bottom of": (1, -1),
    "below": (1, -1),
    "on the top of": (1, 1),
    "top of": (1, 1),
}
"""Locality -> axis (0 horizontal) and sign of the step from the first object to the second. Others earn 0."""


def detector_nouns(prompt: Prompt) -> list[str]:
    """The nouns to look for: always the prompt's own list, even where a relation or a count names others."""
    return [noun for noun in dict.fromkeys(map(normalize, prompt.nouns)) if noun]


def score_candidates(prompt: Prompt, found: Mapping[str, Candidates], max_iou: float) -> Score:
    """The detector's score; `found` holds the candidates of every noun of `detector_nouns`."""
    if not found:
        return Score(NO_NOUNS)
    phrases = {_phrase(noun): candidates for noun, candidates in found.items() if len(candidates)}
    parts: dict[str, Any] = {
        "found": [noun for noun in found if noun in phrases],
        "missing": [noun for noun in found if noun not in phrases],
    }
    if prompt.spatial_info is not None:
        value, more = _score_relation(prompt.spatial_info, phrases)
    elif prompt.numeracy_info:
        value, more = _score_counts(prompt.numeracy_info, phrases, max_iou)
    else:
        value, more = sum(noun in phrases for noun in found) / len(found), {}
    return Score(value, parts=parts | more)


def _phrase(noun: str) -> str:
    """What a noun's boxes are filed under: its first and last word, which is not the noun when it has three."""
    words = noun.split()
    return words[0] if len(words) == 1 else f"{words[0]} {words[-1]}"


def _score_relation(wanted: SpatialInfo, phrases: Mapping[str, Candidates]) -> tuple[float, dict[str, Any]]:
    first, second, locality = map(normalize, (wanted.obj1, wanted.obj2, wanted.locality))
    present = [phrases[noun] for noun in (first, second) if noun in phrases]
    if len(present) < 2:
        return OBJECT_SHARE * len(present), {}
    if first == second:
        return 0.0, {}
    surest = [candidates.boxes[[int(np.argmax(candidates.confidences))]] for candidates in present]
    relation = position_score(locality, *(to_corners(box, 1, 1)[0] for box in surest))
    return 2 * OBJECT_SHARE + RELATION_SHARE * relation, {locality: relation}


def position_score(locality: str, first: FloatArray, second: FloatArray) -> float:
    """How well box `first` stands to box `second`, 0 to 1; both float [4], corners in 0..1."""
    step = (second[:2] + second[2:] - first[:2] - first[2:]) / 2
    if locality in _NEAR:
        return 1.0 if np.abs(step).min() < NEAR_DISTANCE else NEAR_DISTANCE / float(np.abs(step).max())
    if locality not in _DIRECTIONS:
        return 0.0
    axis, sign = _DIRECTIONS[locality]
    if sign * step[axis] <= 0 or abs(step[axis]) <= abs(step[1 - axis]):
        return 0.0
    iou = intersection_over_union(first, second)
    return 1.0 if iou < OVERLAP_OF_TWO else OVERLAP_OF_TWO / iou


def _score_counts(
    wanted: Sequence[CountInfo], phrases: Mapping[str, Candidates], max_iou: float
) -> tuple[float, dict[str, Any]]:
    value, counts = 0.0, {}
    for item in wanted:
        noun = normalize(item.obj_name)
        num_found = _count(phrases[noun], max_iou) if noun in phrases else 0
        if num_found:
            value += (1.0 if num_found == item.num else WRONG_COUNT) / len(wanted)
        counts[noun] = f"{num_found} of {item.num}"
    return value, counts


def _count(candidates: Candidates, max_iou: float) -> int:
    """Boxes left after a suppression that takes centre and size for corners: duplicates mostly stay."""
    return len(suppress_overlapping(candidates.boxes, candidates.confidences, max_iou))


def git_adds_nothing(prompt: Prompt) -> bool:
    """Whether GIT scores the prompt a constant 0 without a look at the picture."""
    return prompt.spatial_info is not None or bool(prompt.numeracy_info)


def round_hps(cosine: Tensor) -> Tensor:
    """The cosine as the end of a float16 pass gives it."""
    return cosine.half().float()


def sample_orm(
    logits: Tensor, yes_id: int, temperature: float, reply_of: Callable[[int], str], generator: torch.Generator
) -> list[Score]:
    """One reply a row of logits, float32 [B, vocabulary], sampled; its score is P("yes") if it is yes or no, else 0."""
    probabilities = torch.softmax(logits / temperature, dim=-1).cpu()
    drawn = torch.multinomial(probabilities, num_samples=1, generator=generator)[:, 0]
    replies = [reply_of(int(token_id)).strip() for token_id in drawn]
    return [
        Score(p_yes if reply.lower() in ("yes", "no") else 0.0, parts={"answer": reply})
        for reply, p_yes in zip(replies, probabilities[:, yes_id].tolist(), strict=True)
    ]
