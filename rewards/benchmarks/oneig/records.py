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
PROMPTS_SHA256: Final = "e06c65b32252d82406fb1a27f13022b38d432c899a2486eb49ab0c100f83b3e1"
TEXTS: Final = "scripts/text/text_content.csv"
FOLDERS: Final[Mapping[str, str]] = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
}
"""Category -> folder."""
ALIGNED: Final = ("anime", "human", "object")
WRITTEN: Final = "text"
MODEL_FOLDER: Final = "bicot"
"""The official layout has a folder for each model within that of a category."""
NUM_CELLS: Final = 4
_NOTHING: Final[Mapping[str, Any]] = {}


def questions_of(folder: str) -> str:
    """The official file with the questions of a folder's prompts."""
    return f"scripts/alignment/Q_D/{folder}.json"


def read_items(files: Mapping[str, Path]) -> tuple[Item, ...]:
    """The prompts of alignment and text. files: official path -> where it is. Raises DataError."""
    questions = {folder: _read_json(files[questions_of(folder)]) for folder in ALIGNED}
    texts = {row["id"]: row["text_content"] for row in read_rows(files[TEXTS], ("id", "text_content"))}
    items = []
    for folder, row in read_prompts(files[PROMPTS]):
        if folder not in (*ALIGNED, WRITTEN):
            continue
        key = row["id"]
        known = texts if folder == WRITTEN else questions[folder]
        if key not in known:
            raise DataError(f"{files[TEXTS if folder == WRITTEN else questions_of(folder)]} lacks prompt {key}")
        record = {"text": texts[key]} if folder == WRITTEN else _read_graph(known[key], f"{folder} {key}")
        items.append(item_of(row, folder, record=record))
    return tuple(items)


def read_prompts(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Folder and row of each prompt, in the repository's order. Raises DataError."""
    rows = read_rows(path, ("category", "id", "prompt_en"))
    return [(FOLDERS[row["category"]], row) for row in rows if row["category"] in FOLDERS]


def item_of(row: Mapping[str, str], folder: str, tag: str | None = None, record: Mapping[str, Any] = _NOTHING) -> Item:
    """A prompt, whose picture is a grid in its folder. tag: null for the folder."""
    name = f"{folder}/{MODEL_FOLDER}/{row['id']}.webp"
    return Item(f"{folder}-{row['id']}", row["prompt_en"], tag or folder, (name,), record, cells=NUM_CELLS)


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
