"""rewards/pictures/resize.py: bytes resized as OpenCV does it, against OpenCV."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rewards.pictures.resize import resize_as_opencv

cv2 = pytest.importorskip("cv2", reason="OpenCV comes with the extra `rewards`")


@pytest.mark.parametrize(
    ("old", "new"), [((384, 384), (800, 800)), ((320, 250), (200, 190)), ((40, 60), (64, 96)), ((7, 90), (30, 20))]
)
def test_every_byte_is_that_of_opencv(old: tuple[int, int], new: tuple[int, int]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, *old, 3), dtype=np.uint8)
    expected = [cv2.resize(picture, new[::-1], interpolation=cv2.INTER_LINEAR) for picture in pictures]
    assert np.array_equal(resize_as_opencv(torch.from_numpy(pictures), new).numpy(), np.stack(expected))
