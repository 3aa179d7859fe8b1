"""rewards/loading/mmdet_mask2former.py: a model written under mmdetection's names comes back bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rewards.loading.mmdet_mask2former import (
    convert_state_dict,
    infer_config,
    load_mmdet_mask2former,
    merge_pixel_by_pixel,
)
from rewards.objects.geneval_detector import ObjectDetector
from tests.pictures import tiled_pictures
from tests.unit.rewards.objects.mmdet_names import as_mmdet, tiny_detector


@pytest.mark.parametrize("version", [2, 3])
def test_a_file_of_mmdetections_gives_the_same_model(tmp_path: Path, version: int) -> None:
    model = tiny_detector()
    path = tmp_path / "mask2former.pth"
    torch.save({"meta": {"epoch": 50}, "state_dict": as_mmdet(model, version)}, path)
    loaded = load_mmdet_mask2former(str(path), "float32", "cpu")
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, given = model(pixel_values=pixels), loaded(pixel_values=pixels)
    assert torch.equal(given.class_queries_logits, expected.class_queries_logits)
    assert torch.equal(given.masks_queries_logits, expected.masks_queries_logits)
    assert expected.masks_queries_logits.std() > 0.1


def test_merging_of_pixels_is_that_of_an_unfold() -> None:
    generator = torch.Generator().manual_seed(0)
    channels, height, width = 3, 4, 6
    picture = torch.randn(1, channels, height, width, generator=generator)
    weight = torch.randn(5, 4 * channels, generator=generator)
    theirs = torch.nn.Unfold(kernel_size=2, stride=2)(picture).transpose(1, 2) @ weight.T
    mine = []
    for row in range(0, height, 2):
        for column in range(0, width, 2):
            merged = torch.cat([picture[0, :, row + r, column + c] for c in (0, 1) for r in (0, 1)])
            mine.append(merge_pixel_by_pixel(weight) @ merged)
    assert torch.allclose(torch.stack(mine), theirs[0], atol=1e-5)


def test_the_config_is_read_from_the_shapes() -> None:
    model = tiny_detector()
    config = infer_config(convert_state_dict(as_mmdet(model, 2)))
    for name in (
        "feature_size",
        "hidden_dim",
        "encoder_layers",
        "decoder_layers",
        "num_attention_heads",
        "num_queries",
    ):
        assert getattr(config, name) == getattr(model.config, name), name
    for name in ("embed_dim", "depths", "num_heads", "window_size", "patch_size"):
        assert getattr(config.backbone_config, name) == getattr(model.config.backbone_config, name), name
    assert config.num_labels == 80


def test_an_unknown_or_a_missing_weight_is_refused(tmp_path: Path) -> None:
    weights = as_mmdet(tiny_detector(), 3)
    with pytest.raises(ValueError, match=r"'backbone\.stem\.weight' is no weight of mmdetection's Mask2Former"):
        convert_state_dict(weights | {"backbone.stem.weight": torch.zeros(1)})
    del weights["panoptic_head.pixel_decoder.mask_feature.bias"]
    torch.save({"state_dict": weights}, tmp_path / "less.pth")
    with pytest.raises(ValueError, match=r"lacks 1 weights, the first is .*mask_projection\.bias"):
        load_mmdet_mask2former(str(tmp_path / "less.pth"), "float32", "cpu")


def test_the_detector_takes_a_file_of_mmdetections(tmp_path: Path) -> None:
    model = tiny_detector()
    torch.save({"state_dict": as_mmdet(model, 2)}, tmp_path / "mask2former.pth")
    model.save_pretrained(tmp_path / "folder")
    pictures = tiled_pictures(2, height=40, width=60)
    from_file, from_folder = (
        ObjectDetector(str(tmp_path / name), "float32", "cpu", 64)(pictures) for name in ("mask2former.pth", "folder")
    )
    for given, expected in zip(from_file, from_folder, strict=True):
        assert {name: [item.score for item in items] for name, items in given.items()} == {
            name: [item.score for item in items] for name, items in expected.items()
        }
