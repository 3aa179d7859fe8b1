"""Files of records: a file in, its records with their places out, as their format has them.

    .jsonl, .json  an array, or an object a line      .txt  a prompt a line, and a line ends at \\n, \\r or \\r\\n alone
    .csv           a header, then a row a record      .parquet

A record that cannot be read, or that could only be read by guessing, is a `BadRecord` in its place and does not stop
the others. Nothing is repaired: an unquoted comma or a field given twice is named, and not cut or overwritten.
"""

from __future__ import annotations

import ast
import csv
import io
import itertools
import json
import tokenize
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import DataError

LITERAL_FIELDS = ("nouns", "attr_nouns", "spatial_info", "numeracy_info", "metadata")
"""Columns of a CSV file whose cells hold lists or objects."""
MAX_DEPTH = 100
"""Of lists and objects in one another."""


class BadRecord(ValueError):
    """One record of a file is not what it should be; the message says why."""


Record = tuple[str, int, Any]
"""Unit ("line", "row" or "item"), number from 1, and the record: parsed, or the BadRecord it ended in."""


def read_records(path: Path) -> Iterator[Record]:
    """All records of a file, in order. The suffix decides the format.

    Raises DataError when the file cannot be read at all.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: prompts are read from {', '.join(sorted(_READERS))} files, not '{path.suffix}'")
    try:
        path = path.expanduser()
    except RuntimeError as error:  # there is no such user
        raise DataError(f"{path}: cannot read the prompts: {error}") from error
    if "\0" in str(path) or not is_text(str(path)):
        raise DataError(f"{str(path)!a}: cannot read the prompts: no file can have this name")
    try:
        if path.is_dir():
            raise DataError(f"{path}: cannot read the prompts: it is a folder; name a file in it")
        yield from reader(path)
    except OSError as error:
        raise DataError(f"{path}: cannot read the prompts: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text, at byte {error.start}; convert the file to UTF-8") from error


def show(value: Any) -> str:
    """A value for a message: short, on one line, and of characters that any screen has."""
    text = ascii(value) if not is_text(repr(value)) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no half of a pair of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig")


def _read_lines(path: Path) -> Iterator[Record]:
    # Not str.splitlines, which ends a line at U+2028, U+0085 and others, too: in a prompt they are blanks.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield "line", number, {"prompt": line}


def _read_json(path: Path) -> Iterator[Record]:
    """An array of objects or of texts, or one object a line; both occur under either suffix."""
    text = _read_text(path)
    if text.lstrip().startswith("["):
        try:
            items = _parse_json(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}:{error.colno}: broken JSON: {error.msg}") from error
        except ValueError as error:
            raise DataError(f"{path}: broken JSON: {error}") from error
        for number, item in enumerate(items, start=1):
            yield "item", number, {"prompt": item} if isinstance(item, str) else _checked(item)
        return
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield "line", number, _checked(_parse_json(line))
        except json.JSONDecodeError as error:
            if number == 1 and _is_one_value(text):
                raise DataError(
                    f"{path}: one JSON object over {len(lines)} lines; expected an array, or one object a line"
                ) from None
            yield "line", number, BadRecord(f"broken JSON at column {error.colno}: {error.msg}")
        except ValueError as error:
            yield "line", number, BadRecord(f"broken JSON: {error}")


def _read_csv(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            header = next(rows, [])
        except csv.Error as error:
            raise DataError(f"{path}:1: broken CSV: {error}") from error
        if "prompt" not in header:
            raise DataError(f"{path}:1: the header has no column 'prompt', only {', '.join(header)}")
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise DataError(f"{path}:1: the header has the column '{repeated[0]}' twice; remove one")
        while True:
            begins = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    raise DataError(
                        f"{path}:{begins}: broken CSV: a quote opens a cell here, or below, and no quote closes it"
                    ) from error
                lines = f"lines {begins} to {rows.line_num}: " if rows.line_num > begins else ""
                yield "line", rows.line_num, BadRecord(f"{lines}broken CSV: {_csv_reason(error)}")
                continue
            if row:
                yield "line", rows.line_num, _record_of_row(header, row)


def _csv_reason(error: csv.Error) -> str:
    if "expected after" in str(error):
        return 'text follows a closing quote; put the whole cell in quotes, and write quotes in it twice ("")'
    return str(error)


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Not read_table, which takes folders like `prompt=1` on the way to the file for columns.
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
        names = table.column_names
        if "prompt" not in names:
            raise DataError(f"{path}: there is no column 'prompt', only {', '.join(names)}")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"{path}: the column '{repeated[0]}' is there twice; remove one")
        rows = table.to_pylist()
    except OSError:
        raise
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, LookupError) as error:
        raise DataError(f"{path}: broken Parquet: {error}") from error
    for number, row in enumerate(rows, start=1):
        yield "row", number, row


_READERS: Mapping[str, Callable[[Path], Iterator[Record]]] = {
    ".txt": _read_lines,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _parse_json(text: str) -> Any:
    """Raises ValueError, of which JSONDecodeError is one. An object with a key twice becomes a BadRecord."""
    try:
        return json.loads(text, object_pairs_hook=_object_without_repeats)
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


def _object_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any] | BadRecord:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        return BadRecord(f"{show(next(name for name in names if names.count(name) > 1))} stands in an object twice")
    return record


def _checked(record: Any) -> Any:
    """The record, or a BadRecord where something in it cannot be what was meant, or can be written nowhere."""
    stack: list[tuple[Any, int]] = [(record, 0)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, BadRecord):
            return value
        if depth > MAX_DEPTH:
            return BadRecord(f"lists or objects are nested more than {MAX_DEPTH} deep")
        if isinstance(value, str) and not is_text(value):
            return BadRecord(f"half a character in {show(value)}: a text was cut in two there (a lone surrogate)")
        if isinstance(value, Mapping):
            stack.extend((child, depth + 1) for pair in value.items() for child in pair)
        elif isinstance(value, list | tuple | set):
            stack.extend((child, depth + 1) for child in value)
    return record


def _is_one_value(text: str) -> bool:
    try:
        _parse_json(text)
    except ValueError:
        return False
    return True


def _record_of_row(header: Sequence[str], row: Sequence[str]) -> dict[str, Any] | BadRecord:
    """The cells by their columns' names; lists and objects are JSON, or Python as pandas writes it."""
    if len(row) != len(header):
        return BadRecord(
            f"{len(row)} cells under a header of {len(header)}; put cells that hold commas in quotes: {show(row[0])}"
        )
    cells: dict[str, Any] = dict(zip(header, row, strict=True))
    for name in LITERAL_FIELDS:
        text = cells.get(name)
        if text is None:
            continue
        try:
            cells[name] = _parse_literal(text.strip())
        except ValueError as error:
            return BadRecord(f"{name}: expected JSON, found {show(text)}{_because(error)}")
    return _checked(cells)


def _because(error: ValueError) -> str:
    return f" ({error})" if isinstance(error, _Ambiguous) else ""


class _Ambiguous(ValueError):
    """A literal that Python reads, but not as what it was."""


def _parse_literal(text: str) -> Any:
    """A cell that holds a list or an object; None for an empty one. Raises ValueError."""
    if text in ("", "null", "None"):
        return None
    if not text.startswith(("[", "{", "(")):
        raise ValueError("neither a list nor an object")
    try:
        return _parse_json(text)
    except ValueError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an escape that Python does not know
            value = ast.literal_eval(text)
        strings = [token.type == tokenize.STRING for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(str(error)) from error
    if any(first and second for first, second in itertools.pairwise(strings)):
        raise _Ambiguous("a comma is missing between two texts; NumPy's arrays must be written as lists")
    return value
