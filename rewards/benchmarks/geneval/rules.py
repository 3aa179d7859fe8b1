"""GenEval's grade of an answer, and its scores; the rules themselves are rewards/objects/geneval.py.

An answer is {"objects": {class: [[x0, y0, x1, y1, score, colour], …]}}; the colour is null where none was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from configs.errors import RewardError
from rewards.benchmarks.geneval.records import TAGS
from rewards.benchmarks.grading import by_tag
from rewards.benchmarks.protocol import Answer, Graded, Item, Values
from rewards.benchmarks.statistics import Measure, each_tag, mean_of_tags
from rewards.objects.geneval import FoundObject, judge, read_record


def as_answer(found: Mapping[str, Sequence[tuple[FoundObject, str | None]]]) -> Answer:
    """Objects with their colours as an answer."""
    return {
        "objects": {
            name: [[*item.box, round(item.score, 6), color] for item, color in objects]
            for name, objects in found.items()
        }
    }


def grade_objects(item: Item, answer: Answer) -> Values:
    """correct: 1 or 0, GenEval's own verdict; partial: the graded one of the reward."""
    record = read_record(item.record)
    assert record is not None
    colors: dict[tuple[str, tuple[float, ...]], str | None] = {}
    found: dict[str, list[FoundObject]] = {}
    try:
        for name, rows in answer["objects"].items():
            for *box, score, color in rows:
                x0, y0, x1, y1 = map(float, box)
                found.setdefault(name, []).append(FoundObject((x0, y0, x1, y1), float(score)))
                colors[name, (x0, y0, x1, y1)] = color
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RewardError(f"no answer of a GenEval detector: {error}") from error

    def color_of(name: str, objects: Sequence[FoundObject]) -> list[str]:
        return [colors[name, one.box] or "" for one in objects]

    verdict = judge(record, found, color_of)
    return {"correct": float(verdict.correct), "partial": verdict.partial}


def geneval_measures(graded: Sequence[Graded]) -> list[Measure]:
    """overall: the unweighted mean of the six tags; each tag; shares of pictures and prompts that are right."""
    strata = {tag: values for tag, values in by_tag(graded, "correct", TAGS).items() if values}
    pictures = [value for values in by_tag(graded, "correct", TAGS).values() for value in values]
    any_correct = [float(any(value and value["correct"] for value in one.values)) for one in graded]
    return [
        mean_of_tags("overall", strata),
        *each_tag(strata),
        *each_tag({"pictures_correct": pictures, "prompts_with_any_correct": any_correct}),
    ]
