"""`--self-check`: the files that a benchmark reads, by their hashes, and what its scorer says of a reference picture.

    data files    SHA-256 ─► the official file, or not
    scorer        names and SHA-256 of its weights, as a result has them
    reference     one picture of the shapes world for each category ─► answers ─► one number a category, compared with
                  references.json, or with the first check of the same weights in the output folder

The number of a category is the sum of all numbers and letters in the answer, of a judge's reply the sum of its grades:
of no meaning, but another one where weights, libraries, a GPU's kernels or a judge see the picture otherwise.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from configs.errors import RewardError
from rewards.benchmarks.encoding import as_grid, write_picture
from rewards.benchmarks.folders import read_json, slug, write_json
from rewards.benchmarks.protocol import Answer, Asked, Benchmark, Item, ScorerOptions
from rewards.benchmarks.provenance import join_names
from rollout.records import UInt8Array
from rollout.shapes.world import PlannedObject, render

REFERENCES: Final = Path(__file__).with_name("references.json")
TOLERANCE: Final = 0.01
"""Relative, of a category's number: GPUs and libraries round otherwise, and a weak box may come or go."""
LETTER: Final = 1e-3
"""What a letter's code counts: numbers are to be seen beside texts."""


def self_check(
    benchmark: Benchmark, data: Path | None, options: ScorerOptions, output_dir: Path, console: Console
) -> bool:
    """Whether nothing differs from what is known. Raises what reading data and loading the scorer raise."""
    read = benchmark.read_data(data)
    metric = benchmark.name + join_names(benchmark.variant(options))
    table = Table("what", "found", "verdict", title=f"{benchmark.title}: {metric}", title_justify="left")
    wrong = [one for one in read.departures if "is not the official file" in one]
    for name, found in read.files.items():
        is_wrong = any(one.startswith(f"{name} ") for one in wrong)
        table.add_row(name, f"sha256 {found[:12]}…", "NOT the official file" if is_wrong else "read")
    numbers, about = _look(benchmark, read.items, options)
    for name, value in about.items():
        table.add_row(name, _shown(value), "the result has it in full")
    weights = _digest({name: value for name, value in about.items() if not name.startswith("seen_")})
    kept_path = output_dir / benchmark.name / f"self_check.{slug(metric)}.json"
    known, whose = _known(benchmark, weights, kept_path)
    all_agree = not wrong
    for tag, number in numbers.items():
        if isinstance(number, RewardError):
            verdict, all_agree = f"FAILED: {number}", False
        elif tag not in known:
            verdict = "kept: nothing to compare with yet"
        elif abs(number - known[tag]) <= TOLERANCE * max(1.0, abs(known[tag])):
            verdict = f"agrees with {whose}"
        else:
            verdict, all_agree = f"DIFFERS from {whose}: {known[tag]:.4f}", False
        table.add_row(f"reference, {tag}", "" if isinstance(number, RewardError) else f"{number:.4f}", verdict)
    if not known and all_agree:
        kept_path.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept_path, {"weights": weights, "numbers": numbers})
    console.print(table)
    return all_agree


def _look(
    benchmark: Benchmark, items: tuple[Item, ...], options: ScorerOptions
) -> tuple[dict[str, float | RewardError], Mapping[str, Any]]:
    """A number for each category, and what the scorer says of itself."""
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.tag, item)
    numbers: dict[str, float | RewardError] = {}
    scorer = benchmark.open_scorer(options)
    try:
        with tempfile.TemporaryDirectory() as folder:
            asked = []
            for number, item in enumerate(first.values()):
                path = Path(folder) / f"{number}.png"
                write_picture(reference_picture(item.cells), path)
                asked.append(Asked(item, 0, path))
            for one, answer in scorer.answers(asked):
                numbers[one.item.tag] = answer if isinstance(answer, RewardError) else number_of(benchmark, one, answer)
        return {tag: numbers[tag] for tag in first}, scorer.about()
    finally:
        scorer.close()


def reference_picture(num_cells: int = 1) -> UInt8Array:
    """A red circle and a blue square, uint8 [64, 64, 3]; or four as a grid, each with both in other places."""
    plans = [
        (PlannedObject("solid", "red", "circle", place), PlannedObject("solid", "blue", "square", 3 - place))
        for place in range(num_cells)
    ]
    pictures = [render(plan, random.Random(0)) for plan in plans]
    return pictures[0] if num_cells == 1 else as_grid(pictures)


def number_of(benchmark: Benchmark, one: Asked, answer: Answer) -> float | RewardError:
    """The number of an answer."""
    if "replies" not in answer:
        return _sum_of({name: part for name, part in answer.items() if name not in ("date", "models")})
    try:
        return float(sum(benchmark.grade(one.item, answer).values()))
    except RewardError as error:
        return error


def _sum_of(part: Any) -> float:
    match part:
        case int() | float():
            return float(part)
        case str():
            return sum(map(ord, part)) * LETTER
        case Mapping():
            return sum(map(_sum_of, part.values()))
        case list():
            return sum(map(_sum_of, part))
    return 0.0


def _known(benchmark: Benchmark, weights: str, kept: Path) -> tuple[Mapping[str, float], str]:
    """Numbers of the same weights, and where they stand; none where there are none."""
    shipped = json.loads(REFERENCES.read_text(encoding="utf-8")).get(benchmark.name, {})
    if shipped.get("weights") == weights:
        return shipped["numbers"], REFERENCES.name
    own = read_json(kept) or {}
    return (own["numbers"], kept.name) if own.get("weights") == weights else ({}, "")


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {str(part)[:12]}" for name, part in value.items())
    return str(value)
