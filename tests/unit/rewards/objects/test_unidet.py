"""UniDet: what its authors' code on detectron2 finds in the same pictures with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rewards.objects.boxes import suppress_overlapping
from rewards.objects.unidet.detector import UniDet, load_unidet, resized_size
from rewards.objects.unidet.layers import Weights
from rewards.objects.unidet.regions import align, suppress
from tests.unit.rewards.benchmarks.tiny_unidet import picture_of, read_record, weights_of


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return read_record()


@pytest.mark.parametrize("network", ["R50", "RS200"])
def test_boxes_scores_and_labels_are_those_of_the_original(network: str, record: dict[str, Any]) -> None:
    detector = UniDet(Weights(weights_of(record[network]))).eval()
    for case in record[network]["cases"]:
        pixels = torch.from_numpy(picture_of(*case["size"])[..., ::-1].copy()).permute(2, 0, 1)
        (found,) = detector.look(pixels[None])
        assert len(found.labels) == len(case["labels"])
        left = list(range(len(found.labels)))
        for box, score, label in zip(case["boxes"], case["scores"], case["labels"], strict=True):
            same = [
                place
                for place in left
                if found.labels[place] == label
                and abs(found.scores[place] - score) < 1e-4
                and np.abs(found.boxes[place] - box).max() < 0.01
            ]
            assert same, f"{label} {score} {box}"
            left.remove(same[0])
        assert (np.diff(found.scores) <= 0).all()


def test_a_checkpoint_is_read_from_its_file(record: dict[str, Any], tmp_path: Path) -> None:
    weights = weights_of(record["R50"])
    old = {"pixel_mean": torch.zeros(3, 1, 1), "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(9, 4)}
    torch.save({"model": weights | old, "iteration": 180000}, tmp_path / "x.pth")
    detector = load_unidet(str(tmp_path / "x.pth"), "cpu")
    assert detector.num_classes == 11
    assert not any(weight.requires_grad for weight in detector.parameters())
    batch = np.stack([picture_of(32, 40), 255 - picture_of(32, 40)])
    together, alone = detector.find(batch), [detector.find(batch[i : i + 1])[0] for i in (0, 1)]
    for one, other in zip(together, alone, strict=True):
        assert np.array_equal(one.boxes, other.boxes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.top_block.p6.weight": None}, r"lacks backbone\.top_block\.p6\.weight"),
        (
            {"roi_heads.mask_head.x": torch.zeros(1)},
            r"1 weights that UniDet has not, the first is roi_heads\.mask",
        ),
    ],
)
def test_another_networks_weights_are_refused(
    change: dict[str, Tensor | None], message: str, record: dict[str, Any]
) -> None:
    changed = {**weights_of(record["R50"]), **change}
    with pytest.raises(ValueError, match=message):
        UniDet(Weights({name: tensor for name, tensor in changed.items() if tensor is not None}))


def test_pictures_are_resized_as_the_benchmark_does() -> None:
    assert resized_size(384, 384) == (479, 479)
    assert resized_size(1024, 768) == (480, 360)
    assert resized_size(512, 513) == (479, 479)


def test_features_of_a_box_are_the_mean_of_bilinear_samples() -> None:
    features = torch.randn(3, 6, 9, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[3.0, -2.0, 71.0, 30.0], [0.0, 0.0, 0.0, 20.0], [60.0, 40.0, 90.0, 60.0]])
    pooled = align(features, boxes, 8)
    for box, found in zip(boxes, pooled, strict=True):
        for row in range(7):
            for column in range(7):
                expected = slow_mean(features, (box / 8 - 0.5).tolist(), row, column)
                assert found[:, row, column].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def slow_mean(features: Tensor, box: list[float], row: int, column: int) -> Tensor:
    """Sample by sample."""
    height, width = features.shape[1:]
    high, wide = (box[3] - box[1]) / 7, (box[2] - box[0]) / 7
    num = [int(np.ceil(side)) for side in (high, wide)]
    total = torch.zeros(len(features))
    for i in range(num[0]):
        for j in range(num[1]):
            y, x = box[1] + high * (row + (i + 0.5) / num[0]), box[0] + wide * (column + (j + 0.5) / num[1])
            if not (-1 <= y <= height and -1 <= x <= width):
                continue
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            y0, x0 = int(y), int(x)
            for y1, x1 in {(y0, x0), (y0 + 1, x0), (y0, x0 + 1), (y0 + 1, x0 + 1)}:
                if y1 < height and x1 < width:
                    total += features[:, y1, x1] * (1 - abs(y - y1)) * (1 - abs(x - x1))
    return total / max(num[0] * num[1], 1)


def test_suppression_is_by_kind_and_the_surest_comes_first() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [20, 20, 30, 30]])
    kept = suppress(boxes, torch.tensor([0.6, 0.9, 0.7, 0.8]), torch.tensor([1, 1, 2, 2]), 0.5)
    assert kept.tolist() == [1, 3, 2]
    many = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) * 40
    many[:, 2:] += many[:, :2]
    sure = torch.rand(200, generator=torch.Generator().manual_seed(1))
    expected = suppress_overlapping(many.numpy(), sure.numpy(), 0.3)
    assert suppress(many, sure, torch.zeros(200, dtype=torch.int64), 0.3).tolist() == expected
    assert 20 < len(expected) < 180
    assert suppress(boxes[:0], torch.empty(0), torch.empty(0, dtype=torch.int64), 0.5).tolist() == []
