"""OneIG-Bench's diversity: distances of DreamSim between the cells of a grid, end to end; black cells and errors."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.errors import RewardError
from rewards.benchmark import main
from rewards.benchmarks import make_benchmark
from rewards.benchmarks.encoding import as_grid, write_picture
from rewards.benchmarks.oneig.diversity import RELEASE, OneIGDiversity
from rewards.benchmarks.protocol import Graded, Item
from rollout.records import UInt8Array
from tests.official_data import official
from tests.pictures import tiled_pictures
from tests.unit.rewards.benchmarks.oneig_data import write_repository
from tests.unit.rewards.benchmarks.tiny_dreamsim import save_dreamsim
from tests.unit.rewards.loading.test_dreamsim import load, through_jpeg


def arguments(folder: Path, *more: str) -> list[str]:
    where = ["--data", str(folder / "data"), "--output-dir", str(folder / "out")]
    return ["oneig_diversity", *where, "--scorer", f"dreamsim={folder / 'models'}", *more]


def run(folder: Path, grids: list[list[UInt8Array]]) -> tuple[int, dict[str, Any]]:
    data = write_repository(folder / "data")
    save_dreamsim(folder / "models", width=64, layers=2)
    items = make_benchmark("oneig_diversity").read_data(data).items
    for item, cells in zip(items, grids, strict=False):
        write_picture(as_grid(cells), (folder / "images" / item.files[0]).with_suffix(".png"))
    code = main(arguments(folder, "--images", str(folder / "images")))
    return code, json.loads((folder / "out" / "oneig_diversity" / "results" / "oneig_diversity.json").read_text())


def by_hand(folder: Path, cells: list[UInt8Array]) -> list[float]:
    """Distance of each pair, with each cell by itself, as the official script goes about it."""
    model = load(folder / "models")
    embedded = [model.embed(through_jpeg(cell)[None])[0] for cell in cells if cell.any()]
    return [1 - float(one @ other) for one, other in combinations(embedded, 2)]


def test_it_runs_end_to_end_with_the_distances_of_each_pair_by_itself(tmp_path: Path) -> None:
    cells = list(tiled_pictures(36, height=40, width=40))
    cells[6] = np.zeros_like(cells[6])  # one could not be drawn
    cells[9:12] = [np.zeros_like(cell) for cell in cells[9:12]]  # only one could
    grids = [cells[start : start + 4] for start in range(0, 36, 4)]
    code, result = run(tmp_path, grids)
    assert code == 0
    assert [prompt["key"] for prompt in result["prompts"]] == [
        *(f"{folder}-00{i}" for folder in ("human", "object", "anime", "text") for i in range(2)),
        "reasoning-000",
    ]
    lines = (tmp_path / "out/oneig_diversity/answers/oneig_diversity.jsonl").read_text().splitlines()
    distances = []
    for line, own in zip(map(json.loads, lines), grids, strict=True):
        distances.append(by_hand(tmp_path, own))
        assert line["answer"]["distances"] == pytest.approx(distances[-1], abs=2e-6)
        assert line["answer"]["num_black"] == sum(not cell.any() for cell in own)
    assert [len(own) for own in distances[:4]] == [6, 3, 0, 6]
    means = [sum(own) / len(own) for own in distances if own]
    measures = {name: measure["value"] for name, measure in result["measures"].items()}
    assert measures["diversity"] == pytest.approx(sum(means) / 8)
    assert measures["diversity_corrected"] == pytest.approx(sum(sum(own) / 6 for own in distances) / 9)
    assert measures["diversity_human"] == pytest.approx(sum(means[:2]) / 2)
    assert measures["diversity_object"] == pytest.approx(means[2])
    assert result["measures"]["diversity"]["low"] < measures["diversity"] < result["measures"]["diversity"]["high"]
    assert set(result["scorer"]["dreamsim"]) >= {"clip_vitb16_pretrain.pth.tar", "dino_vitbase16_pretrain.pth"}


def test_four_equal_pictures_have_no_diversity_and_a_missing_grid_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = tiled_pictures(32, height=20, width=20)
    grids = [[cells[0]] * 4, *([*cells[start : start + 4]] for start in range(4, 32, 4))]
    code, result = run(tmp_path, grids)  # one of nine is missing
    assert code == 1
    assert "reasoning/bicot/000.webp" in capsys.readouterr().out.replace("\n", "")
    scores = {prompt["key"]: prompt["score"] for prompt in result["prompts"]}
    assert scores["human-000"] == pytest.approx(0, abs=1e-6)
    measures = {name: measure["value"] for name, measure in result["measures"].items()}
    assert measures["diversity_reasoning"] == 0
    assert measures["diversity"] == pytest.approx(sum(scores[key] or 0 for key in scores) / 9)


def test_the_self_check_sees_four_different_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_repository(tmp_path / "data")
    save_dreamsim(tmp_path / "models", width=64, layers=1)
    assert main(arguments(tmp_path, "--self-check")) == 1  # invented data are not the official file
    numbers = re.findall(r"reference, (\w+) +│ +([\d.]+)", capsys.readouterr().out)
    assert {name for name, _ in numbers} == {"anime", "human", "object", "text", "reasoning"}
    assert all(float(number) > 1e-3 for _, number in numbers)


def test_a_black_pair_and_a_missing_picture_count_nought() -> None:
    benchmark, item = OneIGDiversity(), Item("a-000", "A prompt", "a", ("a/bicot/000.webp",), cells=4)
    half = benchmark.grade(item, {"distances": [0.2, 0.4, 0.6], "num_black": 1})
    black = benchmark.grade(item, {"distances": [], "num_black": 3})
    measures = [
        {measure.name: round(measure.value(), 9) for measure in benchmark.measures(graded)}
        for graded in ([Graded(item, (half,)), Graded(item, (black,))], [Graded(item, (half,)), Graded(item, (None,))])
    ]
    assert measures == [
        {"diversity": 0.4, "diversity_corrected": 0.1},
        {"diversity": 0.2, "diversity_corrected": 0.1},
    ]
    with pytest.raises(RewardError, match="no distances of a picture"):
        benchmark.grade(item, {"distances": [0.2], "num_black": 0})


def test_wrong_input_is_told_before_anything_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_repository(tmp_path / "data")
    (tmp_path / "images").mkdir()
    command = arguments(tmp_path, "--images", str(tmp_path / "images"))
    assert main(command) == 2
    assert "models lacks dino_vitbase16_pretrain.pth, clip_vitb16_pretrain.pth.tar" in capsys.readouterr().err
    save_dreamsim(tmp_path / "models", width=64, layers=1)
    (tmp_path / "models" / RELEASE["adapter"]).unlink()
    assert main(command) == 2
    assert "models lacks ensemble_lora/adapter_model.safetensors" in capsys.readouterr().err
    without = command.index("--scorer")
    assert main(command[:without] + command[without + 2 :]) == 2
    assert "needs --scorer dreamsim=…: folder of DreamSim's" in capsys.readouterr().err
    (tmp_path / "data" / "OneIG-Bench.csv").unlink()
    assert main(command) == 2
    assert "lacks OneIG-Bench.csv" in capsys.readouterr().err


def test_the_official_prompts_are_read_in_full() -> None:
    data = OneIGDiversity().read_data(official("oneig_bench"))
    assert (len(data.items), data.departures) == (1120, ())
