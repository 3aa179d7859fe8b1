"""OneIG-Bench's prompts, questions and texts, as its repository has them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from configs.errors import DataError
from rewards.benchmarks.protocol import Item

PROMPTS: Final = "OneIG-Bench.csv"
TEXTS: Final = "scripts/text/text_content.csv"
FOLDERS: Final[Mapping[str, str]] = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
}
"""Category -> folder, of those that are scored."""
ALIGNED: Final = ("anime", "human", "object")
WRITTEN: Final = "text"
MODEL_FOLDER: Final = "bicot"
"""The official layout has a folder for each model within that of a category."""
NUM_CELLS: Final = 4


def questions_of(folder: str) -> str:
    """The official file with the questions of a folder's prompts."""
    return f"scripts/alignment/Q_D/{folder}.json"


def read_items(files: Mapping[str, Path]) -> tuple[Item, ...]:
    """The prompts that are scored. files: official path -> where it is. Raises DataError."""
    questions = {folder: _read_json(files[questions_of(folder)]) for folder in ALIGNED}
    texts = {row["id"]: row["text_content"] for row in read_rows(files[TEXTS], ("id", "text_content"))}
    items = []
    for row in read_rows(files[PROMPTS], ("category", "id", "prompt_en")):
        folder = FOLDERS.get(row["category"])
        if folder is None:
            continue
        key = row["id"]
        known = texts if folder == WRITTEN else questions[folder]
        if key not in known:
            raise DataError(f"{files[TEXTS if folder == WRITTEN else questions_of(folder)]} lacks prompt {key}")
        record = {"text": texts[key]} if folder == WRITTEN else _read_graph(known[key], f"{folder} {key}")
        name = f"{folder}/{MODEL_FOLDER}/{key}.webp"
        items.append(Item(f"{folder}-{key}", row["prompt_en"], folder, (name,), record, cells=NUM_CELLS))
    return tuple(items)


def _read_graph(entry: Any, place: str) -> dict[str, Any]:
    """{"questions": number -> text, "parents": number -> numbers}, both in the order of the numbers."""
    try:
        questions, parents = (_as_map(entry[name]) for name in ("question", "dependency"))
        return {
            "questions": {
                int(key): str(text) for key, text in sorted(questions.items(), key=lambda pair: int(pair[0]))
            },
            "parents": {int(key): [int(parent) for parent in own if int(parent)] for key, own in parents.items()},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"the questions of {place} cannot be read: {error}") from error


def _as_map(value: Any) -> Mapping[str, Any]:
    content = json.loads(value) if isinstance(value, str) else value
    if not isinstance(content, dict):
        raise ValueError("no map of numbers")
    return content


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of a CSV file, in which these columns are filled. Raises DataError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not rows or any(not row.get(name) for row in rows for name in columns):
        raise DataError(f"{path}: every row needs {', '.join(columns)}")
    return rows
