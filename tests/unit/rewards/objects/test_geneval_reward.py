"""rewards/objects/geneval_reward.py: small random Mask2Former and CLIP, against one picture worked out step by step."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedTokenizerFast,
)

from configs.errors import ModelError, RewardError
from rewards.objects import GenEvalReward
from rewards.objects.geneval import COLORS, FoundObject
from rewards.objects.geneval_detector import ColorNamer, ObjectDetector
from rollout.records import Prompt, UInt8Array
from tests.pictures import tiled_pictures
from tests.tiny_clip import save_tiny_clip

LABELS = ("cat", "dog", "kite", "oven")
SHORT_SIDE = 64
TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mask2former")
    torch.manual_seed(1)
    config = Mask2FormerConfig(
        backbone_config={
            "model_type": "swin",
            "image_size": 64,
            "embed_dim": 12,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "window_size": 4,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=6,
        id2label=dict(enumerate(LABELS)),
    )
    model = Mask2FormerForUniversalSegmentation(config)
    for name, weight in model.named_parameters():
        if "mask_embedder" in name and weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.5)
        if name == "class_predictor.weight":
            torch.nn.init.normal_(weight, std=0.6)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"), LABELS)


def slow_objects(folder: Path, picture: UInt8Array) -> list[tuple[str, float, list[float], np.ndarray]]:
    """Class, score, box and mask of the surest (query, class) pairs of one picture, pixel by pixel."""
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    height, width = picture.shape[:2]
    scale = SHORT_SIDE / min(height, width)
    new_height, new_width = (SHORT_SIDE, int(width * scale)) if height <= width else (int(height * scale), SHORT_SIDE)
    cv2 = pytest.importorskip("cv2", reason="OpenCV, which resizes GenEval's pictures, comes with the extra `rewards`")
    resized = cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_LINEAR).astype(float)
    pixels = (resized - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    rows, columns = (-(-length // 32) * 32 for length in (new_height, new_width))
    padded = np.zeros((rows, columns, 3))
    padded[:new_height, :new_width] = pixels
    is_picture = np.zeros((rows, columns))
    is_picture[:new_height, :new_width] = 1
    with torch.no_grad():
        output = model(
            pixel_values=torch.tensor(padded.transpose(2, 0, 1)[None], dtype=torch.float32),
            pixel_mask=torch.tensor(is_picture[None]).long(),
        )
    found = []
    for query, logits in enumerate(output.class_queries_logits[0]):
        shares = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum()
        mask_logits = output.masks_queries_logits[0, query][None, None]
        big = torch.nn.functional.interpolate(mask_logits, (rows, columns), mode="bilinear", align_corners=False)
        cut = big[:, :, :new_height, :new_width]
        original = torch.nn.functional.interpolate(cut, (height, width), mode="bilinear", align_corners=False)[0, 0]
        sure, total, places = original.numpy(), 0.0, []
        for y in range(height):
            for x in range(width):
                if sure[y, x] > 0:
                    places.append((x, y))
                    total += 1 / (1 + np.exp(-sure[y, x]))
        box = [0.0] * 4
        if places:
            xs, ys = zip(*places, strict=True)
            box = [min(xs), min(ys), max(xs) + 1, max(ys) + 1]
        confidence = total / (len(places) + 1e-6)
        found += [(LABELS[i], float(shares[i] * confidence), box, sure > 0) for i in range(len(LABELS))]
    return sorted(found, key=lambda item: -item[1])


@pytest.mark.parametrize("size", [(40, 60), (50, 50)], ids=str)
def test_objects_are_those_of_one_picture_worked_out_pixel_by_pixel(
    detector_folder: Path, size: tuple[int, int]
) -> None:
    pictures = tiled_pictures(2, height=size[0], width=size[1])
    detector = ObjectDetector(str(detector_folder), "float32", "cpu", SHORT_SIDE)
    num_masks = 0
    for picture, found in zip(pictures, detector(pictures), strict=True):
        expected = slow_objects(detector_folder, picture)
        given = sorted(
            ((name, item) for name, items in found.items() for item in items), key=lambda pair: -pair[1].score
        )
        assert len(given) == len(expected) == 24
        for (name, item), (slow_name, score, box, mask) in zip(given, expected, strict=True):
            assert (name, item.score) == (slow_name, pytest.approx(score, abs=1e-4))
            if score > 1e-3:
                assert item.box == pytest.approx(box, abs=1.0)
                assert item.mask is not None
                assert np.mean(item.mask != mask) < 0.01
                num_masks += bool(0.02 < mask.mean() < 0.98)
    assert num_masks > 4, "masks must be neither empty nor all, or the test could not fail"


def slow_color(folder: Path, picture: UInt8Array, name: str, item: FoundObject) -> tuple[str, float]:
    """The nearest colour, and by how much it is nearer than the next."""
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    vocabulary = PreTrainedTokenizerFast.from_pretrained(folder)
    gray = picture.copy()
    gray[~item.mask] = 0x99
    crop = Image.fromarray(gray).crop(item.box)
    with torch.no_grad():
        seen = model.get_image_features(processor(crop, return_tensors="pt").pixel_values).pooler_output[0]
        cosines = []
        for color in COLORS:
            texts = []
            for template in TEMPLATES:
                ids = vocabulary(template.format(color, name), return_tensors="pt").input_ids
                text = model.get_text_features(ids).pooler_output[0]
                texts.append(text / text.norm())
            mean = sum(texts) / len(texts)
            cosines.append(float(seen @ mean / seen.norm() / mean.norm()))
    ranked = sorted(cosines, reverse=True)
    return COLORS[cosines.index(ranked[0])], ranked[0] - ranked[1]


def test_colours_are_those_of_each_object_by_itself(clip_folder: Path) -> None:
    namer = ColorNamer(str(clip_folder), "float32", "cpu")
    rng = np.random.default_rng(0)
    (picture,) = tiled_pictures(1, height=60, width=80)
    objects = []
    for _ in range(12):
        x, y = rng.integers(0, 40, 2)
        mask = np.zeros(picture.shape[:2], dtype=bool)
        mask[y : y + 20, x : x + 36] = rng.random((20, 36)) < 0.8
        objects.append(FoundObject((float(x), float(y), float(x + 36), float(y + 20)), 0.9, mask))
    given = namer(picture, "cat", objects)
    expected = [slow_color(clip_folder, picture, "cat", item) for item in objects]
    assert [color for color, _ in expected] == given
    assert len(set(given)) > 1, "the objects must differ, or the test could not fail"


@pytest.fixture(scope="module")
def reward(detector_folder: Path, clip_folder: Path) -> GenEvalReward:
    return GenEvalReward("cpu", str(detector_folder), str(clip_folder), short_side=SHORT_SIDE)


def prompt(*include: dict[str, object], **metadata: object) -> Prompt:
    return Prompt("p", "t", metadata={"include": list(include), **metadata})


def test_a_batch_scores_as_its_pictures_one_by_one(reward: GenEvalReward) -> None:
    pictures = tiled_pictures(4, height=40, width=60)
    prompts = [
        prompt({"class": "cat", "count": 1}, {"class": "dog", "count": 2}),
        Prompt("q", "no record"),
        prompt({"class": "kite", "count": 3, "color": "red"}),
        prompt({"class": "oven", "count": 1}, {"class": "cat", "count": 1, "position": ["left of", 0]}),
    ]
    batch = reward.score(pictures, prompts)
    single = [reward.score(pictures[i : i + 1], prompts[i : i + 1])[0] for i in range(4)]
    assert [answer.value for answer in batch] == [  # type: ignore[union-attr]
        None if answer.value is None else pytest.approx(answer.value, abs=1e-6)  # type: ignore[union-attr]
        for answer in single
    ]
    assert not reward.applies_to(prompts[1], {})
    assert reward.applies_to(prompts[0], {})


def test_strict_is_one_or_nought_of_the_same_verdict(
    reward: GenEvalReward, detector_folder: Path, clip_folder: Path
) -> None:
    strict = GenEvalReward("cpu", str(detector_folder), str(clip_folder), strict=True, short_side=SHORT_SIDE)
    pictures, asked = tiled_pictures(6, height=40, width=60), [prompt({"class": "cat", "count": 1})] * 6
    for graded, hard in zip(reward.score(pictures, asked), strict.score(pictures, asked), strict=True):
        assert not isinstance(graded, RewardError)
        assert not isinstance(hard, RewardError)
        assert hard.value == float(hard.parts["correct"])
        assert graded.value == graded.parts["partial"]
        assert hard.parts == graded.parts


def test_a_malformed_record_and_an_unknown_class_cost_their_own_picture(reward: GenEvalReward) -> None:
    answers = reward.score(
        tiled_pictures(3, height=40, width=60),
        [prompt({"class": "cat"}), prompt({"class": "unicorn", "count": 1}), prompt({"class": "cat", "count": 1})],
    )
    assert isinstance(answers[0], RewardError)
    assert isinstance(answers[1], RewardError)
    assert re.search(r"prompt p: metadata: include\[0\]", str(answers[0]))
    assert "knows no 'unicorn'" in str(answers[1])
    assert not isinstance(answers[2], RewardError)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"reward 'geneval' cannot load its model .*nothing"):
        GenEvalReward("cpu", str(tmp_path / "nothing"))
