"""DPG-Bench (Hu et al. 2024, ELLA, arXiv 2403.05135; Apache-2.0): 1,065 dense prompts, 4 pictures each in one grid.

    grid ─► 4 cells ─► mPLUG-large: every question of the prompt ─► dependencies ─► mean of cells ─► mean of prompts

The official script has two defects that published numbers contain: it never reads the first row of its questions, so
that the first prompt fails and is left out, as is any whose questions depend on one that is not there; and its
categories count the last of the four cells alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from configs.errors import ConfigError, DataError, RewardError
from rewards.benchmarks.dpg.questions import CATEGORIES, Question, cell_score, has_all_parents, read_questions
from rewards.benchmarks.grading import prompt_mean
from rewards.benchmarks.protocol import Answer, Data, Graded, Item, Scorer, ScorerOptions, Values
from rewards.benchmarks.provenance import sha256_of
from rewards.benchmarks.statistics import Formula, Means, Measure

QUESTIONS: Final = "dpg_bench.csv"
NUM_CELLS: Final = 4
BATCH_SIZE: Final = 16
MODEL: Final = "damo/mplug_visual-question-answering_coco_large_en"
YES: Final = "yes"
PERCENT: Final = 100.0
_DEFECT = "as the official script has it"


class DPGBench:
    """`dpg`: see the top of this file."""

    name = "dpg"
    title = "DPG-Bench"
    repository = "TencentQQGYLab/ELLA"
    needs = "a checkout of TencentQQGYLab/ELLA, or its folder dpg_bench"
    picture_score = "score"
    settings: Mapping[str, str] = {
        "mplug": f"the folder of ModelScope's {MODEL}",
        "batch_size": f"questions at once; default: {BATCH_SIZE}",
    }

    def read_data(self, path: Path | None) -> Data:
        """Prompts and their questions. Raises DataError."""
        if path is None:
            raise DataError(f"{self.name} needs --data: {self.needs}")
        folder = next((one for one in (path / "dpg_bench", path) if (one / QUESTIONS).is_file()), None)
        if folder is None:
            raise DataError(f"--data {path} lacks {QUESTIONS}; {self.name} needs {self.needs}")
        questions = read_questions(folder / QUESTIONS)
        first = next(iter(questions))
        items = [_item(folder, key, own, is_first=key == first) for key, own in questions.items()]
        others = sum(path.stem not in questions for path in (folder / "prompts").glob("*.txt"))
        departures = (f"{others} prompts have no questions and are not drawn",) if others else ()
        return Data(tuple(items), {QUESTIONS: sha256_of(folder / QUESTIONS)}, departures)

    def variant(self, options: ScorerOptions) -> Mapping[str, str]:
        """There is one scorer. Raises ConfigError without its folder."""
        if "mplug" not in options.settings:
            raise ConfigError(f"{self.name} needs --scorer mplug=…: {self.settings['mplug']}")
        return {}

    def open_scorer(self, options: ScorerOptions) -> Scorer:
        """Load mPLUG. Raises ModelError."""
        from rewards.benchmarks.dpg.scorer import DPGScorer

        batch_size = int(options.settings.get("batch_size", BATCH_SIZE))
        return DPGScorer(options.settings["mplug"], options.device, batch_size)

    def grade(self, item: Item, answer: Answer) -> Values:
        """score: the mean of the cells; as_shipped: the same without the questions that the official script loses.

        And for each category how many questions are right: in the last cell, and (`…_all`) on average over the cells.
        """
        questions: Sequence[Question] = item.record["questions"]
        cells = [[reply == YES for reply in replies] for replies in answer.get("cells", ())]
        if len(cells) != NUM_CELLS or any(len(cell) != len(questions) for cell in cells):
            raise RewardError("no answers of mPLUG to these questions")
        lost = item.record["num_lost"]
        values = {"score": float(np.mean([cell_score(questions, cell) for cell in cells]))}
        if item.record["is_in_official"]:
            values["as_shipped"] = float(np.mean([cell_score(questions[lost:], cell[lost:]) for cell in cells]))
        for category in _categories(item):
            of_category = [number for number, question in enumerate(questions) if question.category == category]
            rights = [sum(cell[number] for number in of_category) for cell in cells]
            values[f"{category}_all"] = float(np.mean(rights))
            values[category] = float(sum(cells[-1][number] for number in of_category if number >= lost))
        return values

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """overall and each category as published numbers have them, and corrected; in percent."""
        official = [one for one in graded if one.item.record["is_in_official"]]
        measures = _overall("overall", official, "as_shipped", f"{_DEFECT}: without its first prompt")
        measures += _overall("overall_corrected", graded, "score", "all prompts")
        categories = dict.fromkeys((*CATEGORIES, *(name for one in graded for name in _categories(one.item))))
        for category in categories:
            measures += _category(category, official, category, f"{_DEFECT}: of the last of four cells alone")
        for category in categories:
            measures += _category(f"{category}_corrected", graded, f"{category}_all", "of all four cells")
        return measures


def _item(folder: Path, key: str, questions: tuple[Question, ...], is_first: bool) -> Item:
    path = folder / "prompts" / f"{key}.txt"
    try:
        prompt = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    num_lost = int(is_first)
    rest = questions[num_lost:]
    record: dict[str, Any] = {
        "questions": questions,
        "num_lost": num_lost,
        "is_in_official": bool(rest) and has_all_parents(rest),
    }
    tag = re.sub(r"[\d_-]+$", "", key) or "numbered"
    return Item(key, prompt, tag, (f"{key}.png",), record, cells=NUM_CELLS)


def _categories(item: Item) -> list[str]:
    return list(dict.fromkeys(question.category for question in item.record["questions"]))


def _overall(name: str, graded: Sequence[Graded], value: str, meaning: str) -> list[Measure]:
    if not graded:
        return []
    rows = np.array([[PERCENT * prompt_mean(one, lambda values: values[value])] for one in graded])
    formula: Formula = lambda means: means["prompts"][..., 0]  # noqa: E731
    return [Measure(name, {"prompts": rows}, formula, meaning)]


def _category(name: str, graded: Sequence[Graded], value: str, meaning: str) -> list[Measure]:
    """The share of right answers over all questions of a category; nothing where no prompt has one."""
    category = value.removesuffix("_all")
    rows = []
    for one in graded:
        lost = 0 if value != category else one.item.record["num_lost"]
        num = sum(question.category == category for question in one.item.record["questions"][lost:])
        if num:
            rows.append([prompt_mean(one, lambda values: values[value]), num])
    return [Measure(name, {"questions": np.array(rows, dtype=float)}, _percent_right, meaning)] if rows else []


def _percent_right(means: Means) -> Any:
    return PERCENT * means["questions"][..., 0] / means["questions"][..., 1]
