"""Parsers and checklists against what the official scripts' own functions gave for the same texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.errors import DataError, RewardError
from rewards.benchmarks import make_benchmark
from rewards.benchmarks.judged.echo4o import checklist, imagine_score, imagine_scores, read_json_reply
from rewards.benchmarks.judged.script import OfficialScript
from rewards.benchmarks.judged.wise import legacy_scores, verified_scores
from tests.official_data import official


def golden(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(official("golden", f"{name}.json").read_text())
    return content


def test_wises_parsers_read_what_the_official_ones_read() -> None:
    for case in golden("wise")["legacy"]:
        assert legacy_scores(case["reply"]) == case["scores"], case
    for case in golden("wise")["verified"]:
        assert verified_scores(case["reply"]) == case["scores"], case


def test_imagines_parser_and_sum_are_the_official_ones() -> None:
    for case in golden("echo4o")["imagine"]:
        scores = imagine_scores(case["reply"])
        assert scores == case["scores"], case
        assert imagine_score(scores) == case["weighted"], case


def test_geneval_pps_replies_and_checklists_are_the_official_ones() -> None:
    for case in golden("echo4o")["geneval_pp_replies"]:
        try:
            parsed: Any = read_json_reply(case["reply"])
        except RewardError:
            parsed = None
        if isinstance(case["parsed"], dict) and "correct" in case["parsed"]:
            assert parsed == case["parsed"], case
        assert (parsed is not None and parsed.get("correct", 0) == 1) == case["counts_as_correct"], case
    for case in golden("echo4o")["geneval_pp_checklists"]:
        assert checklist(case["record"]) == case["checklist"], case


@pytest.mark.parametrize(
    ("name", "file", "num"), [("geneval_pp", "Geneval++.jsonl", 280), ("imagine", "Imagine.jsonl", 270)]
)
def test_the_official_prompts_are_read_in_full(name: str, file: str, num: int) -> None:
    benchmark = make_benchmark(name)
    path = official({"geneval_pp": "geneval_pp", "imagine": "imagine_bench"}[name], file)
    items = benchmark.items({f"test_scripts/{file}": path})  # type: ignore[attr-defined]
    assert len(items) == num


def test_a_script_of_another_form_is_refused_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "script.py"
    path.write_text("messages = [\n  {'role': 'user', 'content': f'{secret()}'},\n]\n")
    with pytest.raises(DataError, match=r"script\.py:2: secret\(\) is not understood"):
        OfficialScript(path).messages({})
    path.write_text("x = 1\n")
    with pytest.raises(DataError, match="no messages to a judge"):
        OfficialScript(path)
