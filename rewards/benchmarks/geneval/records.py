"""GenEval's prompts and files: one JSON object a line, four pictures each, a folder a prompt.

(Ghosh et al. 2023, arXiv 2310.11513; MIT.)  IMAGES/00017/metadata.jsonl, IMAGES/00017/samples/00002.png
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import DataError
from rewards.benchmarks.protocol import Item
from rewards.objects.geneval import read_record

NUM_PICTURES = 4
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""In the order of its report."""


def items_of(records: Sequence[Mapping[str, Any]], source: str) -> tuple[Item, ...]:
    """The items of GenEval's records, numbered in their order. Raises DataError, naming the record."""
    items = []
    for index, record in enumerate(records):
        where = f"{source}:{index + 1}"
        try:
            prompt, tag = record["prompt"], record["tag"]
            if read_record(record) is None:
                raise ValueError("it includes nothing")
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: no record of GenEval: {error}") from error
        if tag not in TAGS:
            raise DataError(f"{where}: tag is {tag!r}; it has to be one of {', '.join(TAGS)}")
        name = f"{index:05d}"
        files = tuple(f"{name}/samples/{number:05d}.png" for number in range(NUM_PICTURES))
        sidecars = {f"{name}/metadata.jsonl": json.dumps(record) + "\n"}
        items.append(Item(name, prompt, tag, files, dict(record), sidecars=sidecars))
    return tuple(items)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, one a line. Raises DataError, naming file and line."""
    records = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: no JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: an object is expected, not {line[:80]}")
        records.append(record)
    return records
