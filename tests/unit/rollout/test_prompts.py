from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from configs.errors import DataError
from rollout.prompts import PromptSet, PromptSource, load_prompts
from rollout.records import CountInfo, Prompt, SpatialInfo

FULL = {
    "prompt": "two cats left of a red car",
    "task_type": "spatial",
    "nouns": ["cat", "car"],
    "attr_nouns": ["red car"],
    "spatial_info": {"obj1": "cat", "obj2": "car", "locality": "left of"},
    "numeracy_info": [{"obj_name": "cat", "num": 2}],
}
BARE = {"prompt": "a boat"}
NULLS = {**dict.fromkeys(FULL), "prompt": "a tree"}

FULL_PROMPT = Prompt(
    "",
    FULL["prompt"],
    "spatial",
    ("cat", "car"),
    ("red car",),
    SpatialInfo("cat", "car", "left of"),
    (CountInfo("cat", 2),),
)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def without_ids(prompts: Sequence[Prompt]) -> list[Prompt]:
    return [dataclasses.replace(prompt, prompt_id="") for prompt in prompts]


def as_lines(rows: Sequence[Any]) -> str:
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def numbered(num: int) -> list[Prompt]:
    return [Prompt(f"p:{number}", f"prompt {number}") for number in range(num)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines.jsonl", as_lines([FULL, BARE, NULLS])),
        ("lines.json", as_lines([FULL, BARE, NULLS])),
        ("array.json", json.dumps([FULL, BARE, NULLS], indent=2)),
        ("array.jsonl", json.dumps([FULL, BARE, NULLS])),
        ("bom.jsonl", "\ufeff" + as_lines([FULL, BARE, NULLS])),
        ("windows.jsonl", as_lines([FULL, BARE, NULLS]).replace("\n", "\r\n")),
        ("blank_lines.jsonl", as_lines([FULL, BARE, NULLS]).replace("\n", "\n\n")),
    ],
)
def test_json_is_read_as_an_array_and_line_by_line_under_either_suffix(tmp_path: Path, name: str, text: str):
    loaded = load_prompts(write(tmp_path / name, text), max_bad_lines=0)
    assert without_ids(loaded.prompts) == [FULL_PROMPT, Prompt("", "a boat"), Prompt("", "a tree")]
    assert loaded.skipped == ()


def test_csv_cells_hold_lists_and_objects_as_json_or_as_pandas_writes_them(tmp_path: Path):
    as_json = ",".join('"' + json.dumps(FULL[key]).replace('"', '""') + '"' for key in list(FULL)[2:])
    as_python = ",".join('"' + str(FULL[key]).replace('"', '""') + '"' for key in list(FULL)[2:])
    rows = [",".join(FULL), *(f"{FULL['prompt']},spatial,{cells}" for cells in (as_json, as_python)), "a boat,,,,,"]
    loaded = load_prompts(write(tmp_path / "prompts.csv", "\n".join(rows) + "\n"), max_bad_lines=0)
    assert without_ids(loaded.prompts) == [FULL_PROMPT, FULL_PROMPT, Prompt("", "a boat")]


def test_a_csv_prompt_may_span_lines_and_its_id_is_its_last_line(tmp_path: Path):
    loaded = load_prompts(write(tmp_path / "prompts.csv", 'prompt\n"a boat\nat sea"\na tree\n'), max_bad_lines=0)
    assert [(p.prompt_id, p.text) for p in loaded.prompts] == [
        ("prompts.csv:3", "a boat\nat sea"),
        ("prompts.csv:4", "a tree"),
    ]


def test_parquet_rows_are_read_with_nested_fields_and_nulls(tmp_path: Path):
    path = tmp_path / "prompts.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([FULL, NULLS]), path)
    loaded = load_prompts(str(path), max_bad_lines=0)
    assert without_ids(loaded.prompts) == [FULL_PROMPT, Prompt("", "a tree")]


def test_a_text_file_holds_a_prompt_a_line(tmp_path: Path):
    loaded = load_prompts(write(tmp_path / "prompts.txt", "a boat\n\n  a tree \n"), max_bad_lines=0)
    assert loaded.prompts == (Prompt("prompts.txt:1", "a boat"), Prompt("prompts.txt:3", "a tree"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "a", }', "broken JSON at column"),
        ('"just text"', "expected an object with a 'prompt', found 'just text'"),
        ("{}", "prompt: missing or empty"),
        ('{"prompt": "  "}', "prompt: missing or empty"),
        ('{"prompt": 3}', "prompt: expected a text, found 3"),
        ('{"prompt": "a", "task_type": 1}', "task_type: expected a text, found 1"),
        ('{"prompt": "a", "nouns": "cat"}', "nouns: expected a list of texts, found 'cat'"),
        ('{"prompt": "a", "attr_nouns": [1]}', "attr_nouns: expected a list of texts, found [1]"),
        ('{"prompt": "a", "spatial_info": "left"}', "spatial_info: expected an object with obj1, obj2 and locality"),
        ('{"prompt": "a", "spatial_info": {"obj1": "b"}}', "spatial_info.obj2: missing or empty"),
        ('{"prompt": "a", "numeracy_info": {}}', "numeracy_info: expected a list, found {}"),
        ('{"prompt": "a", "numeracy_info": [{"num": 2}]}', "numeracy_info.obj_name: missing or empty"),
        ('{"prompt": "a", "numeracy_info": [{"obj_name": "b", "num": "two"}]}', "numeracy_info.num: expected a whole"),
        ('{"prompt": "a", "numeracy_info": [{"obj_name": "b", "num": 2.5}]}', "numeracy_info.num: expected a whole"),
        ('{"prompt": "a", "numeracy_info": [{"obj_name": "b", "num": true}]}', "numeracy_info.num: expected a whole"),
        ('{"prompt": "a", "numeracy_info": [{"obj_name": "b", "num": NaN}]}', "numeracy_info.num: expected a whole"),
    ],
)
def test_a_bad_line_is_skipped_with_its_number_and_reason(tmp_path: Path, line: str, reason: str):
    loaded = load_prompts(write(tmp_path / "p.jsonl", f'{{"prompt": "a boat"}}\n{line}\n'), max_bad_lines=1)
    assert [prompt.prompt_id for prompt in loaded.prompts] == ["p.jsonl:1"]
    assert loaded.skipped[0].place == "line 2"
    assert reason in loaded.skipped[0].reason


def test_a_whole_number_in_a_column_of_floats_is_a_count(tmp_path: Path):
    row = {"prompt": "cats", "numeracy_info": [{"obj_name": "cat", "num": 3.0}]}
    loaded = load_prompts(write(tmp_path / "p.jsonl", as_lines([row])), max_bad_lines=0)
    assert loaded.prompts[0].numeracy_info == (CountInfo("cat", 3),)


def test_more_bad_lines_than_allowed_end_the_run_with_file_lines_and_reasons(tmp_path: Path):
    path = write(tmp_path / "p.jsonl", as_lines([BARE, *[{}] * 7]))
    assert len(load_prompts(path, max_bad_lines=7).skipped) == 7
    with pytest.raises(DataError) as caught:
        load_prompts(path, max_bad_lines=6)
    message = str(caught.value)
    assert f"{path}: 7 records are bad, data.max_bad_lines allows 6" in message
    assert "line 2: prompt: missing or empty" in message
    assert "and 2 more" in message


def test_a_bad_csv_cell_is_a_bad_line(tmp_path: Path):
    path = write(tmp_path / "p.csv", "prompt,nouns\na boat,\na car,[oops\n")
    loaded = load_prompts(path, max_bad_lines=1)
    assert [str(entry) for entry in loaded.skipped] == ["line 3: nouns: expected JSON, found '[oops'"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "there is no prompt in this file"),
        ("empty.json", b"[]", "there is no prompt in this file"),
        ("blank.txt", b"\n \n", "there is no prompt in this file"),
        ("only_bad.jsonl", b"{}\n", "line 1: prompt: missing or empty"),
        ("cut.json", b'[{"prompt": "a"},\n {"prom', "cut.json:2:3: broken JSON"),
        ("latin.txt", b"caf\xe9\n", "not UTF-8 text, at byte 3"),
        ("columns.csv", b"text,kind\na,b\n", "the header has no column 'prompt', only text, kind"),
        ("wide.csv", b"prompt\n" + b"a" * 200_000, "line 2: broken CSV: field larger than field limit"),
        ("empty.csv", b"", "the header has no column 'prompt'"),
        ("not.parquet", b"PAR0", "broken Parquet"),
        ("prompts.xlsx", b"PK", "prompts are read from .csv, .json, .jsonl, .parquet, .txt files, not '.xlsx'"),
    ],
)
def test_a_file_without_a_usable_prompt_is_an_error_that_names_it(
    tmp_path: Path, name: str, content: bytes, message: str
):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_prompts(str(path), max_bad_lines=100)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(DataError, match=r"no\.jsonl: cannot read the prompts: No such file"):
        load_prompts(str(tmp_path / "no.jsonl"), max_bad_lines=0)


def test_parquet_without_a_prompt_column_is_an_error(tmp_path: Path):
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    with pytest.raises(DataError, match="no column 'prompt', only text"):
        load_prompts(str(path), max_bad_lines=0)


def test_the_shapes_world_is_a_source_with_as_many_prompts_as_asked_for():
    loaded = load_prompts("shapes:heldout:24", max_bad_lines=0)
    assert len(loaded.prompts) == 24
    assert len({prompt.prompt_id for prompt in loaded.prompts}) == 24
    assert loaded.prompts == load_prompts("shapes:heldout", max_bad_lines=0).prompts[:24]


@pytest.mark.parametrize("source", ["shapes", "shapes:", "shapes:train:0", "shapes:train:many", "shapes:train:-1"])
def test_a_malformed_shapes_source_is_an_error(source: str):
    with pytest.raises(DataError, match="expected shapes:SPLIT"):
        load_prompts(source, max_bad_lines=0)


def test_an_unknown_shapes_split_is_an_error():
    with pytest.raises(DataError, match="nowhere"):
        load_prompts("shapes:nowhere", max_bad_lines=0)


def test_prompts_are_counted_by_task_type():
    prompts = [Prompt("a", "a", "color"), Prompt("b", "b"), Prompt("c", "c", "color")]
    assert PromptSet("x", tuple(prompts)).num_by_task_type == {"color": 2, "": 1}


def test_prompts_with_a_reason_against_them_move_to_the_skipped():
    prompts = PromptSet("x", tuple(numbered(3)))
    fitting = prompts.without(lambda prompt: "too long" if prompt.text.endswith("1") else None)
    assert [prompt.prompt_id for prompt in fitting.prompts] == ["p:0", "p:2"]
    assert [str(entry) for entry in fitting.skipped] == ["p:1: too long"]


def test_a_set_of_which_no_prompt_is_left_is_an_error():
    with pytest.raises(DataError, match="x: no prompt is left\n  p:0: too long"):
        PromptSet("x", tuple(numbered(2))).without(lambda prompt: "too long")


def test_each_epoch_holds_every_prompt_once_in_its_own_order():
    prompts = numbered(20)
    source = PromptSource(prompts, seed=3)
    epochs = [[source.prompt_at(20 * epoch + place) for place in range(20)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch, key=prompts.index) == prompts
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != prompts


def test_the_order_depends_on_the_seed_alone():
    first, again, other = (PromptSource(numbered(20), seed=seed) for seed in (3, 3, 4))
    order = [first.prompt_at(index) for index in range(50)]
    # In any order of asking: resuming asks for a place in the middle of an epoch first.
    assert [again.prompt_at(index) for index in reversed(range(50))] == order[::-1]
    assert [other.prompt_at(index) for index in range(50)] != order


def test_without_shuffling_prompts_come_in_the_order_of_the_file():
    prompts = numbered(3)
    source = PromptSource(prompts, seed=0, shuffle=False)
    assert [source.prompt_at(index) for index in range(7)] == [*prompts, *prompts, prompts[0]]


def test_a_source_of_nothing_and_a_negative_index_are_the_callers_errors():
    with pytest.raises(ValueError, match="at least one prompt"):
        PromptSource([], seed=0)
    with pytest.raises(ValueError, match="-1 is negative"):
        PromptSource(numbered(2), seed=0).prompt_at(-1)


GENEVAL = {
    "prompt": "a photo of a bench",
    "tag": "single_object",
    "include": [{"class": "bench", "count": 1}],
    "n": None,
}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_what_else_a_record_says_is_kept_for_the_rewards(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.{suffix}"
    if suffix == "jsonl":
        write(path, as_lines([GENEVAL, {**BARE, "metadata": {"tag": "mine", "box": (0, 1)}, "tag": "theirs"}]))
    else:
        rows = [
            {**GENEVAL, "picture": b"\x89PNG"},
            {**BARE, "tag": "theirs", "metadata": {"tag": "mine", "box": [0, 1]}},
        ]
        names = ("prompt", "tag", "include", "picture", "metadata")
        pyarrow.parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in names}), path)
    bench, boat = load_prompts(str(path), 0).prompts
    assert bench.metadata["include"] == [{"class": "bench", "count": 1}]
    assert bench.metadata["tag"] == "single_object"
    assert not {"n", "picture", "prompt"} & bench.metadata.keys()
    assert boat.metadata == {"tag": "mine", "box": [0, 1]}, "what a record calls metadata goes before its other fields"
    assert hash(bench) != hash(boat)


def test_metadata_of_a_table_are_json_in_a_column(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", 'prompt,metadata,note\na boat,"{""ocr_text"": ""BOAT""}",\na car,,quick\n')
    assert [prompt.metadata for prompt in load_prompts(path, 0).prompts] == [{"ocr_text": "BOAT"}, {"note": "quick"}]


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [([1], "expected an object, found"), ({"text": "x" * 1_000_001}, "at most 1,000,000 are carried to the rewards")],
)
def test_metadata_that_cannot_be_carried_make_a_bad_record(tmp_path: Path, metadata: Any, reason: str) -> None:
    path = write(tmp_path / "p.jsonl", as_lines([BARE, {**BARE, "metadata": metadata}]))
    (skipped,) = load_prompts(path, 1).skipped
    assert skipped.place == "line 2"
    assert skipped.reason.startswith("metadata: ")
    assert reason in skipped.reason


def test_a_prompt_written_as_a_record_is_read_as_itself(tmp_path: Path) -> None:
    prompts = [dataclasses.replace(FULL_PROMPT, metadata={"level": {"a": [1, None]}}), Prompt("", "a boat")]
    path = write(tmp_path / "p.jsonl", as_lines([prompt.to_record() for prompt in prompts]))
    assert without_ids(load_prompts(path, 0).prompts) == prompts


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (r'{"prompt": "a red star \ud83d"}', "half a character in 'a red star \\ud83d'"),
        (r'{"prompt": "a", "nouns": ["\udc00"]}', "half a character"),
        (r'{"prompt": "a", "of_my_own": {"x": ["\ud800"]}}', "half a character"),
        (r'{"prompt": "a\u0000b"}', "prompt: holds the character U+0000"),
        (r'{"prompt": "a", "nouns": ["\u0000"]}', "nouns: holds the character U+0000"),
        ('{"prompt": "\u200b\u2060 "}', r"prompt: empty but for characters that nobody sees, '\u200b\u2060 '"),
        ('{"prompt": "a", "prompt": "b"}', "'prompt' stands in an object twice"),
        ('{"prompt": "a", "spatial_info": {"obj1": "b", "obj1": "c"}}', "'obj1' stands in an object twice"),
        ('{"prompt": ' + "9" * 5000 + "}", "broken JSON: Exceeds the limit (4300 digits)"),
        ("[" * 100_000, "nested too deeply"),
        ('{"prompt": "a", "x": ' + "[" * 200 + "]" * 200 + "}", "nested more than 100 deep"),
    ],
)
def test_a_line_that_ends_in_a_fault_further_on_is_bad_where_it_stands(tmp_path: Path, line: str, reason: str):
    loaded = load_prompts(write(tmp_path / "p.jsonl", f'{{"prompt": "a boat"}}\n{line}\n'), max_bad_lines=1)
    assert [prompt.text for prompt in loaded.prompts] == ["a boat"]
    assert loaded.skipped[0].place == "line 2"
    assert reason in loaded.skipped[0].reason


@pytest.mark.parametrize(
    ("text", "prompts", "skipped"),
    [
        (
            "prompt\na red fox, a cat and a dog\na bird\n",
            ["a bird"],
            "line 2: 2 cells under a header of 1; put cells that hold commas in quotes: 'a red fox'",
        ),
        ('prompt\n"Stop" sign on a street\na cat\n', ["a cat"], "line 2: broken CSV: text follows a closing quote"),
        (
            'prompt\n"a red fox\na cat\n"a dog"\na bird\n',
            ["a bird"],
            "line 4: lines 2 to 4: broken CSV: text follows a closing quote",
        ),
        ("prompt,nouns\na boat\na cat,[]\n", ["a cat"], "line 2: 1 cells under a header of 2"),
        (
            "prompt,nouns\na fox and a cat,['fox' 'cat']\na boat,[]\n",
            ["a boat"],
            "line 2: nouns: expected JSON, found \"['fox' 'cat']\" (a comma is missing between two texts",
        ),
        ("prompt,nouns\na boat,{{}: 1}\na cat,[]\n", ["a cat"], "line 2: nouns: expected JSON, found '{{}: 1}'"),
        ("prompt,nouns\na boat,fox\na cat,None\n", ["a cat"], "line 2: nouns: expected JSON, found 'fox'"),
        ("prompt,nouns\na boat," + "[" * 5000 + "\na cat,\n", ["a cat"], "line 2: nouns: expected JSON, found '[[["),
        ("prompt,nouns\na boat,\"{'x': '\\ud800'}\"\na cat,\n", ["a cat"], "half a character"),
    ],
)
def test_a_table_is_read_as_it_is_written_or_its_line_is_named(
    tmp_path: Path, text: str, prompts: list[str], skipped: str
):
    loaded = load_prompts(write(tmp_path / "p.csv", text), max_bad_lines=1)
    assert [prompt.text for prompt in loaded.prompts] == prompts
    (entry,) = loaded.skipped
    assert skipped in str(entry)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "open.csv",
            b'prompt\na cat\n"a red fox\na dog\na bird\n',
            "open.csv:3: broken CSV: a quote opens a cell",
        ),
        ("twice.csv", b"prompt,prompt\na,b\n", "the header has the column 'prompt' twice"),
        ("pretty.jsonl", b'{\n "prompts": [\n  "a"\n ]\n}\n', "one JSON object over 6 lines; expected an array"),
        ("deep.json", b"[" * 100_000, "nested too deeply"),
        ("digits.json", b"[" + b"9" * 5000 + b"]", "broken JSON: Exceeds the limit (4300 digits)"),
        ("utf16.txt", "a cat\n".encode("utf-16-le"), "is the file UTF-16? convert it to UTF-8"),
    ],
)
def test_a_file_that_can_only_be_guessed_at_is_refused(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_prompts(str(tmp_path / name), max_bad_lines=100)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "source",
    ["a\0b.txt", "\ud800.txt", "~nobody-of-this-name/p.txt", "x" * 5000 + ".txt", "shapes:train:" + "9" * 5000],
)
def test_a_source_that_no_file_can_have_is_refused(source: str):
    with pytest.raises(DataError):
        load_prompts(source, max_bad_lines=0)


@pytest.mark.parametrize("name", ["folder.txt", "folder.parquet", "folder.jsonl"])
def test_a_folder_is_no_file_of_prompts(tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="it is a folder; name a file in it"):
        load_prompts(str(tmp_path / name), max_bad_lines=0)


def test_only_line_ends_end_a_line_of_a_text_file(tmp_path: Path):
    text = "a red fox\u2028in the snow\na cat\x85on a mat\r\na dog\x0bat sea\x1con a boat\x0c\n"
    loaded = load_prompts(write(tmp_path / "p.txt", text), max_bad_lines=0)
    assert [prompt.text for prompt in loaded.prompts] == [
        "a red fox\u2028in the snow",
        "a cat\x85on a mat",
        "a dog\x0bat sea\x1con a boat",
    ]


def test_a_json_array_of_texts_is_an_array_of_prompts(tmp_path: Path):
    loaded = load_prompts(write(tmp_path / "p.json", '["a red fox", "a cat"]'), max_bad_lines=0)
    assert [prompt.text for prompt in loaded.prompts] == ["a red fox", "a cat"]


def test_parquet_columns_are_those_of_the_file_and_each_once(tmp_path: Path):
    folder = tmp_path / "nouns=3"
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a"]}), folder / "p.parquet")
    assert load_prompts(str(folder / "p.parquet"), max_bad_lines=0).prompts[0].nouns == ()
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="the column 'prompt' is there twice"):
        load_prompts(str(tmp_path / "twice.parquet"), max_bad_lines=0)
