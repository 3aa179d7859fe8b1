"""Whatever is written in a config, its loader ends in a RunConfig or in a ConfigError, and a RunConfig can be kept.

Hypothesis draws the inputs, the same ones in every run: texts made of what YAML treats in a special way, overrides,
and trees in which any field holds anything.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from cluster.session.placement import plan_placement
from configs.errors import ConfigError, PlacementError
from configs.load import config_from_tree, dump_config, load_config
from configs.schema import RunConfig
from configs.yaml_text import dump_yaml, parse_yaml, parse_yaml_value
from tests.fuzzing import ANY_TEXT, ODD_TEXTS, WRITABLE_TEXT, is_printable, looking_at

VALID: dict[str, Any] = {
    "model": {"path": "models/janus", "dtype": "float32"},
    "data": {"train": "prompts.jsonl", "evaluation": {"heldout": "more.txt"}},
    "warm_start": {"examples": "shapes", "num_examples": 10, "vq": {}},
    "rewards": [{"name": "shapes", "options": {"a": 1}}, {"name": "my.module:Own", "weight": 2}],
    "learner": {"lora": {}},
    "cluster": {"scaling": {}},
}
MINIMAL = "model: {path: a, dtype: float32}\ndata: {train: b}\nrewards: [{name: shapes}]\n"
# What YAML reads in a way of its own, one a line; the rest holds line breaks or characters that are no text.
ODD_YAML = """\
2024-13-45
2024-01-01
2001-12-14t21:59:43.10-05:00
10:30
1_000
0b_
0o17
0x_
09
1e-6
2E5
7e12345
.inf
-.INF
.NaN
1e999
~
null
on
yes
=
<<
#1
Draw #1 things
+1
1.
._1
!!int ''
!!float x
!!bool maybe
!!timestamp x
!!binary '==='
!!set {a, b}
!!omap [a: 1]
!!python/object/apply:os.system ['true']
!mine x
!!str
*a
&a
&a 1
&x [*x]
&x {a: *x}
"\\ud800"
"\\x00"
"\\U00110000"
"\\xZZ"
'
"
[1, 2
{a: 1, a: 2}
{{a: 1}: 2}
{<<: [1]}
{1: 2}
a: b: c
%YAML 9.9
--- 1
...
@x
`x
99999999999999999999999999999999999999999999999999
""".splitlines()
ODD_YAML += ["? [a]\n: b", "--- 1\n--- 2", "|\n  a", ">\n", "\t1", "- 1\n- 2", *ODD_TEXTS]
JOINTS = [" ", "\n", "\n  ", ": ", ":", "- ", ", ", "a", "#", "[", "}"]
NESTED_ANCHORS = "- &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"- &{outer} [{', '.join([f'*{inner}'] * 8)}]\n" for inner, outer in itertools.pairwise("abcdefg")
)
LONG = ["[" * 5000, "{a: " * 60 + "}" * 60, "9" * 5000, "0x" + "f" * 5000, "- " * 3000, "x" * 10_000, NESTED_ANCHORS]

LEAVES = st.one_of(
    st.none() | st.booleans(),
    st.integers(-3, 300),
    st.integers() | st.floats(),
    st.sampled_from([10**30, 1e-320, 1e308, -0.0, math.nan, math.inf, "", "1e-6", "$NOT_SET/x", "a/b", "{prompt}"]),
    ANY_TEXT,
)
ANYTHING = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(ANY_TEXT, LEAVES, max_size=2)
PLAIN_LEAVES = st.one_of(
    st.none() | st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    WRITABLE_TEXT,
    st.sampled_from([text for text in ODD_YAML if "\0" not in text and is_printable(text)]),
)
PLAIN_DATA = (
    PLAIN_LEAVES | st.lists(PLAIN_LEAVES, max_size=2) | st.dictionaries(WRITABLE_TEXT, PLAIN_LEAVES, max_size=2)
)


def paths_of(section: type[BaseModel]) -> Iterator[tuple[str | int, ...]]:
    """Every field of a section and of those inside it; of lists of sections, the first element's."""
    for name, field in section.model_fields.items():
        yield (name,)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                in_list = (0,) if name == "rewards" else ()
                yield from ((name, *in_list, *rest) for rest in paths_of(kind))


PATHS = sorted(paths_of(RunConfig), key=str)
EDITS = st.tuples(st.sampled_from(PATHS), ANYTHING)
FIELDS = [".".join(map(str, path)) for path in PATHS]
FIELDS += ["rewards.my.module:Own.weight", "rewards.99.x", "rewards.٣.x", "data.evaluation.a.b", "..", "", "x"]
OVERRIDES = st.tuples(
    st.sampled_from(FIELDS) | ANY_TEXT,
    st.sampled_from(["=", "=", "=", "==", "", ":"]),
    st.sampled_from(ODD_YAML) | ANY_TEXT | st.floats().map(str) | st.integers().map(str),
).map("".join)


def edited(edits: list[tuple[tuple[str | int, ...], Any]]) -> dict[str, Any]:
    """The valid tree with these values put in; sections on the way are made."""
    whole = copy.deepcopy(VALID)
    for path, value in edits:
        tree: Any = whole
        for step, following in itertools.pairwise(path):
            child = tree[step] if isinstance(tree, list) else tree.get(step)
            if not isinstance(child, list if isinstance(following, int) else dict):
                child = tree[step] = [{"name": "shapes"}] if isinstance(following, int) else {}
            tree = child
        tree[path[-1]] = value
    return whole


def config_or_refusal(tree: dict[str, Any]) -> RunConfig | str:
    try:
        return config_from_tree(tree, "run.yaml")
    except ConfigError as error:
        return str(error)


def check_text(text: str) -> None:
    try:
        data = parse_yaml_value(text, "run.yaml")
    except ConfigError as error:
        refusal = str(error)
        assert is_printable(refusal), text
        assert refusal.startswith("run.yaml"), text
    else:
        assert parse_yaml(dump_yaml(data), "again") == data or "nan" in repr(data)


@looking_at()
@given(st.lists(st.sampled_from([*ODD_YAML, *JOINTS]) | ANY_TEXT, max_size=3).map("".join))
@example("a: &x [*x]")
def test_any_text_is_read_as_yaml_or_refused(text: str):
    check_text(text)


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_a_long_text_is_read_as_yaml_or_refused(text: str):
    check_text(text)


@looking_at(one_in=5)
@given(PLAIN_DATA)
@example({"revision": "7e12345", "lr": "1e-6", "big": "2E5", "switch": "on", "day": "2024-01-01", "nel": "\x85"})
def test_plain_data_is_written_and_read_back_as_it_was(data: Any):
    assert repr(parse_yaml(dump_yaml(data), "again")) == repr(data)  # not ==, for which True is 1


@looking_at()
@given(st.sampled_from(PATHS), ANYTHING)
@example(("rewards", 0, "gpus_per_replica"), math.inf)
@example(("rewards", 0, "options"), {"x": math.nan})
@example(("rewards", 0, "name"), "\ud800")
def test_any_value_in_any_field_is_taken_and_kept_or_refused(path: tuple[str | int, ...], value: Any):
    config = config_or_refusal(edited([(path, value)]))
    if isinstance(config, str):
        assert is_printable(config)
        return
    with contextlib.suppress(PlacementError):  # more GPUs than an actor can have: refused before anything starts
        plan_placement(config)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@looking_at(one_in=10)
@given(OVERRIDES)
def test_any_override_is_applied_or_refused(tmp_path: Path, override: str):
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    with contextlib.suppress(ConfigError):
        load_config(path, [override])


@looking_at(one_in=100)
@given(st.lists(EDITS, max_size=1), WRITABLE_TEXT | st.sampled_from(["7e12345", "1e-6", "0123", "on"]))
@example([], "7e12345")
def test_a_config_that_is_written_down_loads_as_the_same_config(
    tmp_path: Path, edits: list[tuple[tuple[str | int, ...], Any]], revision: str
):
    config = config_or_refusal(edited([(("model", "revision"), revision), *edits]))
    if isinstance(config, RunConfig):
        kept = tmp_path / "kept.yaml"
        kept.write_text(dump_config(config), encoding="utf-8")
        assert load_config(kept) == config
    elif not edits:
        raise AssertionError(config)


@pytest.mark.parametrize("name", sorted(path.name for path in (Path(__file__).parents[3] / "configs").glob("*.yaml")))
def test_a_shipped_config_with_a_line_of_anything_is_taken_or_refused(tmp_path: Path, name: str):
    lines = (Path(__file__).parents[3] / "configs" / name).read_text(encoding="utf-8").split("\n")
    path = tmp_path / name

    @looking_at(one_in=400)
    @given(st.integers(0, len(lines) - 1), st.sampled_from(ODD_YAML))
    def check(number: int, value: str) -> None:
        changed = lines[number].partition(":")[0] + ": " + value
        path.write_bytes("\n".join([*lines[:number], changed, *lines[number + 1 :]]).encode("utf-8", "surrogatepass"))
        with contextlib.suppress(ConfigError):
            load_config(path)

    check()
