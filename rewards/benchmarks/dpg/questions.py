"""DPG-Bench's questions: read from the official table, and scored by their dependencies.

    item_id, proposition_id, dependency (ids with commas between, 0 for none), tuple, question_natural_language

A question counts 0 where one that it depends on does; rows decide the order, so that a 0 is handed on.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from configs.errors import DataError

COLUMNS: Final = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")
CATEGORIES: Final = ("global", "entity", "attribute", "relation", "other")
"""Those of the official table, in the order of published ones."""


@dataclass(frozen=True, slots=True)
class Question:
    """One row of the table."""

    number: int
    parents: tuple[int, ...]
    category: str
    """The first of its two: what stands before the hyphen."""
    text: str


def read_questions(path: Path) -> dict[str, tuple[Question, ...]]:
    """The questions of each item, in the order of the rows. Raises DataError, with the line of a wrong row."""
    found: dict[str, dict[int, Question]] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            lacking = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            if lacking:
                raise DataError(f"{path} lacks the column {lacking[0]}")
            for row in rows:
                question = _question(row, f"{path}:{rows.line_num}")
                found.setdefault(row["item_id"], {})[question.number] = question
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not found:
        raise DataError(f"{path} holds no questions")
    return {key: tuple(questions.values()) for key, questions in found.items()}


def _question(row: Mapping[str, str | None], place: str) -> Question:
    try:
        number = int(row["proposition_id"] or "")
        parents = tuple(int(parent) for parent in (row["dependency"] or "").split(","))
    except ValueError as error:
        raise DataError(f"{place}: proposition_id and dependency have to be numbers: {error}") from error
    category = (row["tuple"] or "").split("(")[0].split("-")[0].strip()
    text = row["question_natural_language"] or ""
    return Question(number, tuple(parent for parent in parents if parent), category, text)


def cell_score(questions: Sequence[Question], is_right: Sequence[bool]) -> float:
    """The share of questions that are right and depend on none that is wrong. A parent that is not there holds."""
    rights = {question.number: right for question, right in zip(questions, is_right, strict=True)}
    for question in questions:
        if not all(rights.get(parent, True) for parent in question.parents):
            rights[question.number] = False
    return sum(rights.values()) / len(rights)


def has_all_parents(questions: Sequence[Question]) -> bool:
    """Whether no question depends on one that is not there."""
    known = {question.number for question in questions}
    return all(known.issuperset(question.parents) for question in questions)
