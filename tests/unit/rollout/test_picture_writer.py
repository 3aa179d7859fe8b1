"""Pictures are written beside each other and never over one another."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.errors import DataError
from rollout.pictures import PictureWriter
from tests.records import make_scored_group

ROLLOUT = make_scored_group().rollout  # two pictures of "a red star", at the beginning of a run


def level_of(path: Path) -> int:
    return int(np.asarray(Image.open(path)).max())


def test_a_second_writer_numbers_on_after_the_pictures_of_the_first(tmp_path: Path):
    for level in (1, 2, 3):
        PictureWriter(tmp_path, {}).write(ROLLOUT, np.full((2, 4, 4, 3), level, np.uint8))
    lines = [json.loads(line) for line in (tmp_path / "images.jsonl").read_text().splitlines()]
    files = [line["file"] for line in lines]
    assert files == [f"000{call}-a-red-star-{number}.png" for call in range(3) for number in range(2)]
    assert [level_of(tmp_path / name) for name in files] == [1, 1, 2, 2, 3, 3]


def test_a_picture_that_another_process_wrote_meanwhile_stays(tmp_path: Path):
    one, other = PictureWriter(tmp_path, {}), PictureWriter(tmp_path, {})
    one.write(ROLLOUT, np.full((2, 4, 4, 3), 1, np.uint8))
    with pytest.raises(DataError, match=r"0000-a-red-star-0\.png was written by another process meanwhile"):
        other.write(ROLLOUT, np.full((2, 4, 4, 3), 2, np.uint8))
    assert level_of(tmp_path / "0000-a-red-star-0.png") == 1
