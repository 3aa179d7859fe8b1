"""The checks of the documentation find what is stale: otherwise they would prove nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.errors import ConfigError
from tests.unit.docs.commands import check_command, check_overrides, command_lines
from tests.unit.docs.documents import blocks, spans
from tests.unit.docs.html import broken_links, outside_assets


@pytest.mark.parametrize(
    "line",
    [
        "make trian",
        "make train ARG=x",
        'make train ARGS="--steps 10"',
        "python -m cluster.launch --no-such-option",
        "python -m cluster.lunch",
        "python -m cluster.study colours",
        "python -m rollout.generate --model here",
        "python -m cluster.launch --config configs/no_such.yaml",
        "ray job submit --working-dir . -- python -m cluster.launch --dryrun",
        "frobnicate --all",
    ],
)
def test_a_stale_command_is_found(line: str):
    with pytest.raises(AssertionError):
        check_command(next(command_lines(line)))


@pytest.mark.parametrize(
    "line",
    [
        "python -m cluster.launch --config configs/shapes_cpu.yaml --set learner.learning_rate=1e-6",
        "python -m cluster.launch --resume runs/x --set learner.lr=1e-6",
        'make train ARGS="--set run.steps=many"',
    ],
)
def test_an_override_that_is_refused_is_found(line: str):
    with pytest.raises(ConfigError):
        check_command(next(command_lines(line)))


def test_overrides_are_tried_together():
    check_overrides(["run.deterministic=true", "algorithm.max_staleness=0"])
    with pytest.raises(ConfigError, match=r"run\.deterministic"):
        check_overrides(["run.deterministic=true", "algorithm.max_staleness=1"])


def test_continued_lines_are_joined_and_comments_are_left_out():
    script = "# a comment\nmake train  # another\npython -m x \\\n    --y 1\n"
    assert list(command_lines(script)) == [["make", "train"], ["python", "-m", "x", "--y", "1"]]


def test_blocks_and_inline_code_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "page.md"
    page.write_text("Say `one`.\n\n```yaml\nkey: `two`\n```\n\nAnd `three`.\n", encoding="utf-8")
    monkeypatch.setattr("tests.unit.docs.documents.ROOT", tmp_path)
    assert [(block.place, block.language, block.text) for block in blocks(page)] == [
        ("page.md:3", "yaml", "key: `two`\n")
    ]
    assert [(span.place, span.text) for span in spans(page)] == [("page.md:1", "one"), ("page.md:7", "three")]


def test_a_broken_link_a_missing_anchor_and_an_outside_asset_are_found(tmp_path: Path):
    (tmp_path / "b.html").write_text('<h2 id="here">Here</h2>', encoding="utf-8")
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">good</a> <a href="b.html#there">no anchor</a> <a href="c.html">no page</a>'
        '<a href="https://example.org">outside, and a link may lead there</a>'
        '<script src="https://cdn.example.org/x.js"></script><img src="no.png"><link rel="stylesheet" href="s.css">',
        encoding="utf-8",
    )
    (tmp_path / "s.css").write_text("@font-face { src: url(//fonts.example.org/x.woff2) }", encoding="utf-8")
    assert broken_links(tmp_path) == ["a.html: b.html#there", "a.html: c.html", "a.html: no.png"]
    assert outside_assets(tmp_path) == [
        "a.html: https://cdn.example.org/x.js",
        "s.css: //fonts.example.org/x.woff2",
    ]
