"""Readers of prompt files: a file in, its records with their places out.

Every format ends in the same mapping, T2I-R1's schema, of which only `prompt` must be there:

    {"prompt": str, "task_type": str, "nouns": [str], "attr_nouns": [str],
     "spatial_info": {"obj1": str, "obj2": str, "locality": str}, "numeracy_info": [{"obj_name": str, "num": int}],
     "metadata": {any JSON}}

Fields of other names join the metadata, for rewards to read.

A record that cannot be read is a `BadRecord` in its place and does not stop the others.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from configs.errors import DataError
from rollout.prompts.metadata import NotJson, as_json
from rollout.records import CountInfo, Prompt, SpatialInfo

FIELDS = frozenset(field.name for field in fields(Prompt)) - {"text"} | {"prompt"}
"""Of a record that mean something to bicot itself; `prompt_id` is made anew, from the record's place."""


class BadRecord(ValueError):
    """One record of a file is not a prompt; the message says why."""


Record = tuple[str, int, Any]
"""Unit ("line", "row" or "item"), number from 1, and the record: parsed, or the BadRecord it ended in."""


def read_records(path: Path) -> Iterator[Record]:
    """All records of a prompt file, in order. The suffix decides the format.

    Raises DataError when the file cannot be read at all.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: prompts are read from {', '.join(sorted(_READERS))} files, not '{path.suffix}'")
    try:
        yield from reader(path)
    except OSError as error:
        raise DataError(f"{path}: cannot read the prompts: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text, at byte {error.start}; convert the file to UTF-8") from error


def parse_prompt(record: Any, prompt_id: str) -> Prompt:
    """A record as a Prompt. A field that is missing or null is empty; unknown fields join its metadata.

    Raises BadRecord.
    """
    if isinstance(record, BadRecord):
        raise record
    if not isinstance(record, Mapping):
        raise BadRecord(f"expected an object with a 'prompt', found {_show(record)}")
    return Prompt(
        prompt_id=prompt_id,
        text=_text(record, "prompt"),
        task_type=_text(record, "task_type", required=False),
        nouns=_words(record, "nouns"),
        attr_nouns=_words(record, "attr_nouns"),
        spatial_info=_spatial_info(record.get("spatial_info")),
        numeracy_info=_numeracy_info(record.get("numeracy_info")),
        metadata=metadata_of(record),
    )


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _read_lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if line.strip():
            yield "line", number, {"prompt": line}


def _read_json(path: Path) -> Iterator[Record]:
    """An array of objects, or one object a line; both occur under either suffix."""
    text = _read_text(path)
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}:{error.colno}: broken JSON: {error.msg}") from error
        for number, record in enumerate(records, start=1):
            yield "item", number, record
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield "line", number, json.loads(line)
        except json.JSONDecodeError as error:
            yield "line", number, BadRecord(f"broken JSON at column {error.colno}: {error.msg}")


def _read_csv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        try:
            if "prompt" not in (rows.fieldnames or ()):
                raise DataError(f"{path}:1: the header has no column 'prompt', only {', '.join(rows.fieldnames or ())}")
            for row in rows:
                yield "line", rows.line_num, _parse_cells(row)
        except csv.Error as error:
            raise DataError(f"{path}:{rows.line_num + 1}: broken CSV: {error}") from error


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: broken Parquet: {error}") from error
    if "prompt" not in table.column_names:
        raise DataError(f"{path}: there is no column 'prompt', only {', '.join(table.column_names)}")
    for number, row in enumerate(table.to_pylist(), start=1):
        yield "row", number, row


_READERS: Mapping[str, Callable[[Path], Iterator[Record]]] = {
    ".txt": _read_lines,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _parse_cells(row: Mapping[str, Any]) -> dict[str, Any] | BadRecord:
    """The cells of a CSV row: lists and objects are JSON, or Python as pandas writes it."""
    cells = dict(row)
    for name in ("nouns", "attr_nouns", "spatial_info", "numeracy_info", "metadata"):
        text = cells.get(name)
        if text is None:
            continue
        try:
            cells[name] = _parse_literal(text) if text.strip() else None
        except ValueError:
            return BadRecord(f"{name}: expected JSON, found {_show(text)}")
    return cells


def _parse_literal(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        try:
            return ast.literal_eval(text)
        except SyntaxError as error:
            raise ValueError(str(error)) from error


def metadata_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record's own `metadata`, and before it the fields that bicot does not know, but for nulls and for what JSON
    cannot hold (pictures in a Parquet file). Raises BadRecord for metadata that are no object."""
    own = record.get("metadata")
    if own is None:
        own = {}
    if not isinstance(own, Mapping):
        raise BadRecord(f"metadata: expected an object, found {_show(own)}")
    known: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(name, str) and name not in FIELDS and value not in (None, ""):
            with contextlib.suppress(NotJson):
                known[name] = as_json(value)
    try:
        stated: dict[str, Any] = as_json(own)
    except NotJson as error:
        raise BadRecord(f"metadata: {error}") from None
    return known | stated


def _text(record: Mapping[str, Any], field: str, *, required: bool = True) -> str:
    value = record.get(field)
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise BadRecord(f"{field}: expected a text, found {_show(value)}")
    if required and not value.strip():
        raise BadRecord(f"{field}: missing or empty")
    return value.strip()


def _words(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    value = record.get(field)
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise BadRecord(f"{field}: expected a list of texts, found {_show(value)}")
    return tuple(value)


def _spatial_info(value: Any) -> SpatialInfo | None:
    if value is None or (isinstance(value, Mapping) and all(part is None for part in value.values())):
        return None
    if not isinstance(value, Mapping):
        raise BadRecord(f"spatial_info: expected an object with obj1, obj2 and locality, found {_show(value)}")
    try:
        obj1, obj2, locality = (_text(value, part) for part in ("obj1", "obj2", "locality"))
    except BadRecord as error:
        raise BadRecord(f"spatial_info.{error}") from None
    return SpatialInfo(obj1, obj2, locality)


def _numeracy_info(value: Any) -> tuple[CountInfo, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadRecord(f"numeracy_info: expected a list, found {_show(value)}")
    return tuple(_count_info(entry) for entry in value)


def _count_info(entry: Any) -> CountInfo:
    if not isinstance(entry, Mapping):
        raise BadRecord(f"numeracy_info: expected objects with obj_name and num, found {_show(entry)}")
    try:
        name = _text(entry, "obj_name")
    except BadRecord as error:
        raise BadRecord(f"numeracy_info.{error}") from None
    num = entry.get("num")
    if isinstance(num, float) and num.is_integer():
        num = int(num)  # a table with a gap in the column holds 3 as 3.0
    if isinstance(num, bool) or not isinstance(num, int) or num < 0:
        raise BadRecord(f"numeracy_info.num: expected a whole number from 0, found {_show(num)}")
    return CountInfo(name, num)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
