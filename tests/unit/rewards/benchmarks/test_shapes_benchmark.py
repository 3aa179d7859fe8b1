"""The benchmark whose truth is known: rendered pictures score 1 in every tag, wrong ones 0, a mix of both between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.benchmark import main
from rewards.benchmarks import make_benchmark
from rewards.benchmarks.encoding import write_picture
from rewards.benchmarks.geneval.records import TAGS
from rewards.benchmarks.protocol import Item
from tests.unit.rewards.benchmarks.worlds import right_picture, write_all, wrong_picture

ITEMS = make_benchmark("shapes").read_data(None).items


def run(images: Path, output_dir: Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["shapes", "--images", str(images), "--output-dir", str(output_dir), *options])
    return code, json.loads((output_dir / "shapes" / "results" / "shapes.json").read_text())


def scores(result: dict[str, Any]) -> dict[str, float]:
    return {name: measure["value"] for name, measure in result["measures"].items()}


def test_every_tag_has_prompts() -> None:
    assert {item.tag for item in ITEMS} == set(TAGS)
    assert len({item.prompt for item in ITEMS}) == len(ITEMS) >= 80


def test_rendered_pictures_score_one_in_every_tag(tmp_path: Path) -> None:
    write_all(ITEMS, tmp_path / "images", lambda item, number: right_picture(item.record, number))
    code, result = run(tmp_path / "images", tmp_path / "out")
    assert code == 0
    assert set(scores(result)) > {"overall", *TAGS}
    assert set(scores(result).values()) == {1.0}
    assert result["is_complete"]


def test_wrong_pictures_score_nought_in_every_tag(tmp_path: Path) -> None:
    write_all(ITEMS, tmp_path / "images", lambda item, number: wrong_picture(item.record))
    code, result = run(tmp_path / "images", tmp_path / "out")
    assert code == 0
    assert set(scores(result).values()) == {0.0}


def mixed(item: Item, number: int) -> Any:
    return right_picture(item.record, number) if number < 1 else wrong_picture(item.record)


def test_missing_and_damaged_pictures_are_told_and_count_as_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_all(ITEMS, tmp_path / "images", mixed)
    gone, damaged = tmp_path / "images" / ITEMS[0].files[0], tmp_path / "images" / ITEMS[0].files[1]
    gone.unlink()
    damaged.write_bytes(b"no picture")
    code, result = run(tmp_path / "images", tmp_path / "out")
    assert code == 1
    assert (result["num_missing"], result["num_failed"], result["is_complete"]) == (1, 1, False)
    assert "INCOMPLETE: 1 of 360 files are missing" in capsys.readouterr().out.replace("\n", " ")
    num = sum(item.tag == ITEMS[0].tag for item in ITEMS)
    assert scores(result)[ITEMS[0].tag] == pytest.approx(0.25 * (num - 1) / num)
    assert scores(result)["counting"] == 0.25

    write_picture(right_picture(ITEMS[0].record), gone)  # what is mended is scored, and the rest is not scored again
    write_picture(wrong_picture(ITEMS[0].record), damaged)
    code, result = run(tmp_path / "images", tmp_path / "out")
    assert (code, result["is_complete"], scores(result)["overall"]) == (0, True, 0.25)


def test_a_limit_takes_prompts_of_each_tag_in_turn_and_a_larger_one_takes_them_too(tmp_path: Path) -> None:
    write_all(ITEMS, tmp_path / "images", mixed)
    _, few = run(tmp_path / "images", tmp_path / "few", "--limit", "8")
    _, more = run(tmp_path / "images", tmp_path / "more", "--limit", "20")
    tags = [prompt["tag"] for prompt in few["prompts"]]
    assert sorted(tags.count(tag) for tag in TAGS) == [1, 1, 1, 1, 2, 2]
    assert {prompt["key"] for prompt in few["prompts"]} < {prompt["key"] for prompt in more["prompts"]}
    assert (few["num_prompts"], few["num_prompts_of_benchmark"]) == (8, len(ITEMS))


def test_names_of_other_width_and_format_are_found(tmp_path: Path) -> None:
    def other_name(item: Item, number: int) -> Any:
        return right_picture(item.record, number)

    write_all(ITEMS[:6], tmp_path / "images", other_name)
    for path in list((tmp_path / "images").rglob("*.png")):
        path.rename(path.with_name(f"{int(path.stem):04d}.png"))
    code, result = run(tmp_path / "images", tmp_path / "out", "--limit", "6")
    assert code == 1
    found = [prompt for prompt in result["prompts"] if prompt["key"] in {item.key for item in ITEMS[:6]}]
    assert [prompt["score"] for prompt in found] == [1.0] * len(found) != []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no benchmark 'nothing'"),
        (["shapes", "--scorer", "detector"], "SETTING=VALUE"),
        (["shapes", "--scorer", "detector=x"], "--scorer detector: there is no such setting; shapes has none"),
    ],
)
def test_wrong_options_are_refused(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main([*arguments, "--images", str(tmp_path), "--output-dir", str(tmp_path / "out")])
    except SystemExit as exit:
        code = int(str(exit.code))
    assert code == 2
    assert message in capsys.readouterr().err
