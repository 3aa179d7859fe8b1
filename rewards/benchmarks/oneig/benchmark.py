"""OneIG-Bench, English (Chang et al. 2025, arXiv 2506.07977): alignment and text, by Qwen2.5-VL-7B on a server.

    grid ─► 4 cells ─► each question of its prompt: Yes or No ─► dependencies ─► mean of cells ─► alignment
                   └─► its text, transcribed ─► edits, complete texts, words, over all cells ─► text

The official script leaves black cells out, which are pictures that could not be drawn: `…_corrected` counts them.

Style and diversity are benchmarks of their own: `oneig_style`, `oneig_diversity`. Not scored: reasoning (LLM2CLIP).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from configs.errors import RewardError
from rewards.benchmarks.judged.base import ServedBenchmark
from rewards.benchmarks.oneig.records import (
    ALIGNED,
    NUM_CELLS,
    PROMPTS,
    PROMPTS_SHA256,
    TEXTS,
    WRITTEN,
    questions_of,
    read_items,
)
from rewards.benchmarks.oneig.rules import MAX_EDITS, NOTHING, Written, cell_score, compare_text
from rewards.benchmarks.protocol import Answer, Data, Graded, Item, ScorerOptions, Values
from rewards.benchmarks.statistics import Means, Measure, mean_of_tags

NOT_SCORED: Final = "reasoning is not scored (LLM2CLIP); style is oneig_style, diversity oneig_diversity"
_PARTS: Final = ("edits", "complete", "matched_words", "words", "cells")


class OneIGBench(ServedBenchmark):
    """`oneig`: see the top of this file."""

    name = "oneig"
    title = "OneIG-Bench (English): alignment and text"
    repository = "OneIG-Bench/OneIG-Benchmark"
    needs = "a checkout of OneIG-Bench/OneIG-Benchmark"
    picture_score = "score"
    judges = ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2.5-VL-7B-Instruct")
    script = "scripts/utils/inference.py"
    files: ClassVar = {
        PROMPTS: PROMPTS_SHA256,
        questions_of("anime"): "21ea3d0360e69d72bc5f4cbb93b203d293d16f5c2f626634a52b990119e0a6e3",
        questions_of("human"): "0e92b25c6bc4091cac05fa0f4269b3b37465a7cd43ca2768f55f56149cdbf13b",
        questions_of("object"): "350dfdf72c2da143c78a7544d4c554faf6698c1ba4fcd27c7a9cc9199d487e0e",
        TEXTS: "ffbf0b588c617b77caf1e9a733496ff5b4704b6534df5fba13201a83f21e0512",
        script: "cbb8f67e09f40b48e950890cb228adbc757823078b3c6bf86966620bb06097cf",
    }

    def items(self, files: Mapping[str, Path]) -> tuple[Item, ...]:
        """The prompts of four of the five folders."""
        return read_items(files)

    def read_data(self, path: Path | None) -> Data:
        """See `ServedBenchmark`; and what is not scored."""
        data = super().read_data(path)
        return Data(data.items, data.files, (*data.departures, NOT_SCORED))

    def open_scorer(self, options: ScorerOptions) -> Any:
        """Connect to the server. Raises ConfigError and DataError."""
        from rewards.benchmarks.oneig.scorer import OneIGScorer

        script = self._find(options.data)[self.script]
        return OneIGScorer(self.connect(options), self.judge(options), script, self.num_parallel(options))

    def grade(self, item: Item, answer: Answer) -> Values:
        """score: of the picture, black cells left out; and the sums that measures are made of, black cells apart."""
        cells, num_black = answer.get("cells"), answer.get("num_black")
        if not isinstance(cells, list) or not isinstance(num_black, int) or len(cells) + num_black != NUM_CELLS:
            raise RewardError("no replies to the cells of a picture")
        if item.tag == WRITTEN:
            written = sum((compare_text(item.record["text"], cell["text"]) for cell in cells), NOTHING)
            score = float(_text_score(np.array(written.parts))) if cells else 0.0
            return {"score": score, **dict(zip(_PARTS, written.parts, strict=True))}
        scores = [
            cell_score({number: cell[str(number)] for number in item.record["questions"]}, item.record["parents"])
            for cell in cells
        ]
        return {"score": sum(scores) / len(scores) if scores else 0.0, "sum": sum(scores), "cells": float(len(cells))}

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """alignment and text, as the official script has them and corrected, and the parts of text."""
        aligned = [one for one in graded if one.item.tag in ALIGNED]
        drawn = [one for one in aligned if one.values[0] is None or one.values[0]["cells"]]
        measures = []
        if drawn:
            measures.append(_alignment("alignment", drawn, lambda values: values["score"], "black cells are left out"))
        if aligned:
            corrected: Callable[[Values], float] = lambda values: values["sum"] / NUM_CELLS  # noqa: E731
            measures.append(_alignment("alignment_corrected", aligned, corrected, "black cells count 0"))
        texts = [one for one in graded if one.item.tag == WRITTEN]
        rows = np.array([_written(one, with_black=False).parts for one in texts]).reshape(-1, len(_PARTS))
        rows, all_rows = rows[rows[:, -1] > 0], np.array([_written(one, with_black=True).parts for one in texts])
        if len(rows):
            measures.append(Measure("text", {"prompts": rows}, _of_prompts(_text_score), "black cells are left out"))
        if len(all_rows):
            formula = _of_prompts(_text_score)
            measures.append(Measure("text_corrected", {"prompts": all_rows}, formula, "black cells are empty texts"))
        if len(rows):
            measures += [
                Measure("text_edit_distance", {"prompts": rows}, _of_prompts(lambda row: row[..., 0] / row[..., 4])),
                Measure("text_complete", {"prompts": rows}, _of_prompts(lambda row: row[..., 1] / row[..., 4])),
                Measure("text_word_accuracy", {"prompts": rows}, _of_prompts(lambda row: row[..., 2] / row[..., 3])),
            ]
        return measures


def _alignment(name: str, graded: Sequence[Graded], of: Callable[[Values], float], meaning: str) -> Measure:
    values = [0.0 if one.values[0] is None else of(one.values[0]) for one in graded]
    return mean_of_tags(name, {"prompts": values}, meaning)


def _written(graded: Graded, with_black: bool) -> Written:
    """What stands in a prompt's cells; a picture that is missing or could not be judged is four empty texts."""
    values, text = graded.values[0], graded.item.record["text"]
    seen = NOTHING if values is None else Written(*(values[name] for name in _PARTS))
    num_empty = NUM_CELLS - int(seen.cells) if with_black or values is None else 0
    return sum((compare_text(text, "") for _ in range(num_empty)), seen)


def _text_score(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 − min(100, ED) (1 − CR) (1 − WAC) / 100; parts: float [..., 5] as in `Written`."""
    edits, complete = parts[..., 0] / parts[..., 4], parts[..., 1] / parts[..., 4]
    accuracy = parts[..., 2] / parts[..., 3]
    return np.asarray(1 - np.minimum(MAX_EDITS, edits) * (1 - complete) * (1 - accuracy) / MAX_EDITS)


def _of_prompts(formula: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Callable[[Means], Any]:
    return lambda means: formula(means["prompts"])
