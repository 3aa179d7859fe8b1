"""rewards/pictures/preprocessing.py, against transformers' own processors, which use Pillow picture by picture."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    GroundingDinoImageProcessorPil,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from rewards.pictures import Preprocessing, QwenPatches
from rewards.pictures.resize import BICUBIC, BILINEAR, resize_by_weights, resize_with_pillow
from rollout.records import UInt8Array

SIZES = [(48, 48), (37, 61), (90, 40), (16, 16), (110, 30)]
PROCESSORS = {
    "clip": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    "grounding_dino": GroundingDinoImageProcessorPil(size={"shortest_edge": 80, "longest_edge": 133}),
    "siglip": SiglipImageProcessorPil(size={"height": 32, "width": 40}),
    "vit": ViTImageProcessorPil(size={"height": 24, "width": 24}),
}


def some_pictures(height: int, width: int) -> UInt8Array:
    """Noise and tiles: what is hardest to resize, and what pictures look like."""
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    tiles = tiles.repeat(-(-height // 5), axis=1).repeat(-(-width // 5), axis=2)[:, :height, :width]
    return np.concatenate([rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8), tiles])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_transformers(name: str, size: tuple[int, int]) -> None:
    processor: Any = PROCESSORS[name]
    pictures = some_pictures(*size)
    expected = torch.cat([processor(Image.fromarray(p), return_tensors="pt").pixel_values for p in pictures])
    given = Preprocessing.of(processor)(pictures, "cpu")
    assert given.shape == expected.shape
    assert given.dtype == torch.float32
    if processor.resample == BILINEAR:  # by torch, which rounds otherwise
        difference = (given - expected).abs() * torch.tensor(processor.image_std).view(3, 1, 1) * 255
        assert difference.mean() < 0.15
        assert difference.max() < 3.1
    else:
        torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("resample", [BILINEAR, BICUBIC], ids=str)
@pytest.mark.parametrize("old", [(48, 48), (31, 31), (90, 40), (7, 7)], ids=str)
@pytest.mark.parametrize("scale", [0.3, 0.5, 0.9, 1.7, 2.0])
def test_what_a_gpu_is_given_is_pillows_resize_bit_by_bit(
    resample: Image.Resampling, old: tuple[int, int], scale: float
) -> None:
    pictures, new = some_pictures(*old), (round(old[0] * scale), round(old[1] * scale))
    expected = torch.from_numpy(resize_with_pillow(pictures, new, resample))
    given = resize_by_weights(torch.from_numpy(pictures), new, resample)
    difference = (given.int() - expected.int()).abs()
    if old[0] == old[1]:
        assert torch.equal(given, expected)
    else:  # Pillow may begin with the other direction
        assert difference.float().mean() < 0.6


def test_one_direction_may_grow_while_the_other_shrinks() -> None:
    pictures = some_pictures(37, 61)
    for size in ((33, 90), (61, 37), (37, 20), (80, 61)):
        for resample in (BILINEAR, BICUBIC):
            expected = torch.from_numpy(resize_with_pillow(pictures, size, resample)).int()
            given = resize_by_weights(torch.from_numpy(pictures), size, resample).int()
            assert (given - expected).abs().float().mean() < 0.6


def test_a_picture_is_resized_the_same_alone_and_in_a_batch() -> None:
    pictures = some_pictures(37, 61)
    prepare = Preprocessing.of(PROCESSORS["grounding_dino"])
    batch = prepare(pictures, "cpu")
    assert torch.equal(batch, torch.cat([prepare(pictures[i : i + 1], "cpu") for i in range(len(pictures))]))


def test_the_pictures_given_are_not_written_to() -> None:
    pictures = some_pictures(32, 32)
    before = pictures.copy()
    pictures.setflags(write=False)
    Preprocessing.of(PROCESSORS["clip"])(pictures, "cpu")
    np.testing.assert_array_equal(pictures, before)


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (20, 8000)], ids=str)
def test_a_picture_of_odd_shape_takes_no_more_room_than_another(size: tuple[int, int]) -> None:
    prepare = Preprocessing.of(CLIPImageProcessorPil())
    tracemalloc.start()
    assert prepare(np.zeros((1, *size, 3), np.uint8), "cpu").shape == (1, 3, 224, 224)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_picture_too_narrow_to_be_resized_is_refused_by_its_size() -> None:
    with pytest.raises(ValueError, match="a picture of 3000 x 1 pixels is too narrow"):
        Preprocessing.of(PROCESSORS["grounding_dino"])(np.zeros((1, 3000, 1, 3), np.uint8), "cpu")


def test_a_processor_that_does_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="do_normalize"):
        Preprocessing.of(CLIPImageProcessorPil(do_normalize=False))
    with pytest.raises(ValueError, match="resample"):
        Preprocessing.of(CLIPImageProcessorPil(resample=0))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("patch_size", [14, 16])
def test_qwens_patches_are_those_of_transformers(size: tuple[int, int], patch_size: int) -> None:
    bounds = {"shortest_edge": 28 * 28, "longest_edge": 64 * 64}
    processor = Qwen2VLImageProcessorPil(size=bounds, patch_size=patch_size)
    pictures = some_pictures(*size)
    expected = processor([Image.fromarray(picture) for picture in pictures], return_tensors="pt")
    seen = QwenPatches(processor)(pictures, "cpu")
    assert torch.equal(seen.grid, expected.image_grid_thw)
    assert seen.num_tokens == int(expected.image_grid_thw[0].prod()) // 4
    torch.testing.assert_close(seen.patches, expected.pixel_values, atol=1e-5, rtol=0)
