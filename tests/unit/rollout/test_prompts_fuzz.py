"""Whatever is in a file of prompts, its reader ends in prompts that can be used, or in a DataError that can be shown.

Hypothesis draws the inputs, the same ones in every run.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from configs.errors import DataError
from rollout.prompts import load_prompts
from tests.fuzzing import ANY_TEXT, ODD_TEXTS, is_printable, looking_at

FIELDS = ["prompt", "task_type", "nouns", "attr_nouns", "spatial_info", "numeracy_info", "of_my_own", ""]
VALUES: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        1.5,
        float("nan"),
        float("inf"),
        10**400,
        [],
        {},
        [[]],
        "x",
        ["a", None],
        ["a", "b"],
        {"a": None},
    ),
    *({"obj1": "a"}, {"obj1": "a", "obj2": "b", "locality": "left of"}, {"obj_name": "x", "num": 1}),
    *([{"obj_name": "x", "num": 1}], [{"obj_name": "x", "num": True}], [{"obj_name": 1, "num": -5}], [{"num": 1e400}]),
]
ODD_LINES = [
    *(
        "[" * 3000 + "]" * 3000,
        "[" * 20_000,
        '{"a":' * 2000 + "1" + "}" * 2000,
        "9" * 5000,
        '{"prompt": ' + "9" * 5000 + "}",
    ),
    *(
        "{}",
        "[]",
        "null",
        "nul",
        "{",
        '{"prompt": "a"',
        '{"prompt": "a"}}',
        '{"prompt": "a"} {"prompt": "b"}',
        '"x"',
        "NaN",
    ),
    *(
        '{"prompt": "a", "prompt": 5}',
        r'{"prompt": "\ud800"}',
        r'{"prompt": "\u0000x"}',
        "{'prompt': 'a'}",
        "-Infinity",
    ),
]
ODD_CELLS = [
    *(
        "a red star",
        "",
        "[]",
        "['a', 'b']",
        "['a' 'b']",
        '["a"]',
        "{[]: 1}",
        "{{}: 1}",
        "{1, 2}",
        "(1,)",
        "1+1j",
        "-",
        "--1",
    ),
    *(
        "[" * 200 + "]" * 200,
        "(" * 100 + ")" * 100,
        "9" * 5000,
        "[b'x']",
        "[f'{x}']",
        "None",
        "nan",
        r"['\ud800']",
        r"['\N{foo}']",
    ),
    *(
        "{'obj1': 'a', 'obj2': 'b', 'locality': 'above'}",
        "[{'obj_name': 'x', 'num': 3}]",
        "[*[1]]",
        "{**1}",
        "[0777]",
        "'",
        '"',
    ),
    *(
        "[lambda: 0]",
        "[1 if 1 else 2]",
        "(" + "-" * 100 + "1)",
        "[" + "1" + "+1" * 50 + "]",
        r"['\d']",
        "[...]",
        "[1_0]",
    ),
]
PROMPTS = st.sampled_from(["a blue circle", "a red star", " ", "\ud800", "{prompt}", "<begin_of_image>", *ODD_TEXTS])
RECORDS = st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(VALUES) | ANY_TEXT, max_size=4)
LINES = st.one_of(
    st.builds(lambda record, text: json.dumps({"prompt": text, **record}), RECORDS, PROMPTS),
    st.builds(lambda record: json.dumps(record, ensure_ascii=False), RECORDS),
    st.sampled_from(ODD_LINES),
    ANY_TEXT,
)
CELLS = st.sampled_from(ODD_CELLS) | ANY_TEXT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prompts")


def read(path: Path, content: bytes) -> None:
    """Read a file, and use what comes out of it as a run does: encode it, and show what was skipped."""
    path.write_bytes(content)
    try:
        loaded = load_prompts(str(path), max_bad_lines=10**9)
    except DataError as error:
        message = str(error)
        assert is_printable(message), message
        return
    assert all(prompt.text.strip() for prompt in loaded.prompts)
    json.dumps([asdict(prompt) for prompt in loaded.prompts], ensure_ascii=False).encode()
    assert all(is_printable(str(entry)) for entry in loaded.skipped)


@looking_at()
@given(LINES)
@example('{"prompt": "a red star \\ud83d"}')
@example("[" * 100_000)
def test_any_line_of_json_is_a_prompt_or_a_bad_record(folder: Path, line: str):
    read(folder / "p.jsonl", ('{"prompt": "a boat"}\n' + line).encode("utf-8", "surrogatepass"))


@looking_at(one_in=5)
@given(st.lists(LINES, max_size=3), st.booleans())
def test_any_json_file_is_read_or_refused(folder: Path, lines: list[str], as_array: bool):
    text = f"[{','.join(lines)}]" if as_array else "\n".join(lines)
    read(folder / "p.json", text.encode("utf-8", "surrogatepass"))


@looking_at(one_in=4)
@given(
    st.sampled_from(FIELDS[1:7]),
    st.lists(st.tuples(CELLS, CELLS, st.sampled_from([2, 2, 2, 1, 3])), min_size=4, max_size=4),
    st.booleans(),
)
@example("nouns", [("a", "{{}: 1}", 2)], False)
def test_any_table_is_read_or_refused(folder: Path, column: str, rows: list[tuple[str, str, int]], drop_quote: bool):
    cells = [[prompt, cell, "more"][:num_cells] for prompt, cell, num_cells in rows]
    out = io.StringIO()
    csv.writer(out).writerows([["prompt", column], ["a boat", ""], *cells])
    text = out.getvalue().replace('"', "", 1) if drop_quote else out.getvalue()
    read(folder / "p.csv", text.encode("utf-8", "surrogatepass"))


@looking_at(one_in=10)
@given(
    st.lists(PROMPTS | ANY_TEXT, max_size=4).map("\n".join), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])
)
def test_any_text_file_is_read_or_refused(folder: Path, text: str, encoding: str):
    read(folder / "p.txt", text.encode(encoding, "surrogatepass"))


@looking_at(one_in=10)
@given(st.binary(max_size=40), st.sampled_from([".txt", ".jsonl", ".json", ".csv", ".parquet"]))
def test_any_bytes_are_read_or_refused(folder: Path, content: bytes, suffix: str):
    read(folder / f"p{suffix}", content)


@looking_at(one_in=20)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4), st.integers(0, 10**6))
def test_a_damaged_parquet_file_is_read_or_refused(folder: Path, damages: list[tuple[int, int]], cut: int):
    content = bytearray(parquet_bytes())
    for place, value in damages:
        content[place % len(content)] = value
    read(folder / "p.parquet", bytes(content[: cut % len(content)] if cut % 4 == 0 else content))


@looking_at(one_in=10)
@given(ANY_TEXT)
def test_any_source_is_read_or_refused(text: str):
    for source in (text, f"shapes:{text}", f"{text}.txt"):
        try:
            load_prompts(source, max_bad_lines=0)
        except DataError as error:
            message = str(error)
            assert message


def parquet_bytes() -> bytes:
    out = io.BytesIO()
    rows = [{"prompt": f"a boat {number}", "nouns": ["boat"] * (number % 3)} for number in range(8)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
    return out.getvalue()


def test_every_field_is_tried_with_every_value(folder: Path):
    lines = (
        json.dumps({"prompt": "a", field: value}) for field, value in itertools.product(FIELDS, [*VALUES, *ODD_TEXTS])
    )
    read(folder / "all.jsonl", "\n".join(lines).encode())
