"""python -m rewards.best_of keeps the picture that the rewards like best, with a drawer that needs no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rollout.drawing
from configs.errors import RewardError
from rewards.best_of import best_of, main
from rollout.drawing_options import DrawingOptions
from rollout.records import GroupRequest, GroupRollout, Prompt, Score, UInt8Array
from tests.records import make_trajectory

LEVELS = (40, 200, 90)


def brightness(pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[float]:
    return [float(picture.mean()) for picture in pictures]


def below_100(pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[float | RewardError]:
    if any("cursed" in prompt.text for prompt in prompts):
        raise RuntimeError("a curse")
    return [RewardError("too bright") if picture.mean() > 100 else 1.0 for picture in pictures]


async def draw(
    options: DrawingOptions, prompts: Sequence[Prompt], sink: Callable[[GroupRollout, UInt8Array], None]
) -> None:
    """In the place of the engine: pictures of three levels of grey."""
    assert options.num_images == len(LEVELS)
    for sequence, prompt in enumerate(prompts):
        trajectories = tuple(replace(make_trajectory(), seed=place) for place in range(len(LEVELS)))
        request = GroupRequest(sequence, 0, prompt, len(LEVELS), 1, 0)
        pictures = np.stack([np.full((4, 4, 3), level, np.uint8) for level in LEVELS])
        sink(GroupRollout(request, trajectories, "w", 0.0, 0.0), pictures)


@pytest.fixture(autouse=True)
def _drawer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout.drawing, "draw", draw)


def run(folder: Path, rewards: str, *prompts: str) -> int:
    texts = [part for prompt in prompts for part in ("--prompt", prompt)]
    rewards = ",".join(f"{__name__}:{name}" for name in rewards.split(","))
    return main(["--model", "m", "--best-of", "3", "--rewards", rewards, "--output-dir", str(folder), *texts])


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "images.jsonl").read_text().splitlines()]


def test_the_best_of_each_prompt_is_kept_with_its_scores(tmp_path: Path):
    assert run(tmp_path, "brightness", "a red star", "a blue ring") == 0
    lines = lines_of(tmp_path)
    assert sorted(line["prompt"] for line in lines) == ["a blue ring", "a red star"]
    assert len(list(tmp_path.glob("*.png"))) == 2
    for line in lines:
        assert np.asarray(Image.open(tmp_path / line["file"])).max() == 200
        assert (line["score"], line["score_of_each"]) == (200, [40, 200, 90])
        assert line["scores"] == {f"{__name__}:brightness": 200}
        assert line["trajectory_seed"] == 1


def test_a_picture_that_a_reward_could_not_score_is_not_chosen(tmp_path: Path):
    assert run(tmp_path, "brightness,below_100", "a red star") == 0
    (line,) = lines_of(tmp_path)
    assert (line["score"], line["score_of_each"]) == (91, [41, None, 91])


def test_a_prompt_whose_pictures_all_fail_is_named_and_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(tmp_path, "below_100", "a cursed star", "a red star") == 1
    assert [line["prompt"] for line in lines_of(tmp_path)] == ["a red star"]
    assert "a cursed star\n  none is kept:" in capsys.readouterr().out


def test_a_second_call_into_the_folder_writes_over_nothing(tmp_path: Path):
    assert run(tmp_path, "brightness", "a red star") == run(tmp_path, "brightness", "a red star") == 0
    assert [line["file"] for line in lines_of(tmp_path)] == ["0000-a-red-star-0.png", "0001-a-red-star-0.png"]


def test_weights_decide():
    answers = {"a": [Score(1.0), Score(0.0)], "b": [Score(0.0), Score(0.6)]}
    assert best_of(answers, {"a": 1.0, "b": 1.0}).place == 0
    assert best_of(answers, {"a": 1.0, "b": 2.0}).place == 1


def test_rewards_must_be_named(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["--model", "m", "--prompt", "a red star"])
    assert "give --rewards, --config, or both" in capsys.readouterr().err
