"""GroundingDINO: its detections against the model run on one picture, its scores on hand-made boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

from configs.errors import ConfigError, ModelError
from rewards.objects import GroundingDinoReward
from rewards.objects.captions import caption_of
from rewards.objects.detections import Detections, drop_duplicates, score_detections, wanted_nouns
from rewards.rehearsal.tokenizers import save_bert_tokenizer
from rewards.t2i_r1.grounding_dino import T2IR1DetectionRules
from rollout.records import CountInfo, Prompt, SpatialInfo, UInt8Array

# The ids of [CLS], [SEP], "." and "?" in BERT's vocabulary are written into the model.
SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
FILLERS = {f"[unused{i}]": i for i in range(1030) if i not in SPECIAL.values()}
WORDS = {word: 1030 + i for i, word in enumerate(("a", "cat", "dog", "fire", "truck", "hy", "##dra", "##nt", "red"))}
THRESHOLD = 0.4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grounding_dino")
    torch.manual_seed(0)
    swin = {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    bert = {"vocab_size": 1100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = GroundingDinoConfig(
        backbone_config={"model_type": "swin", "out_indices": [2, 3, 4], **swin},
        text_config={"model_type": "bert", "intermediate_size": 64, "max_position_embeddings": 64, **bert},
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=24,
        max_text_len=32,
    )
    model = GroundingDinoForObjectDetection(config)
    # As made, the last layer of the box head is zero, and every box a grid cell.
    torch.nn.init.normal_(model.bbox_embed[0].layers[-1].weight, std=0.5)
    model.save_pretrained(path)
    save_bert_tokenizer(path, SPECIAL | WORDS | FILLERS)
    GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reward(folder: Path) -> GroundingDinoReward:
    return GroundingDinoReward(device="cpu", model=str(folder), box_threshold=THRESHOLD)


def some_pictures(num_pictures: int) -> UInt8Array:
    tiles = np.random.default_rng(1).integers(0, 256, (num_pictures, 5, 8, 3), dtype=np.uint8)
    return tiles.repeat(10, axis=1).repeat(10, axis=2)


def slow_detections(folder: Path, picture: UInt8Array, words: list[list[str]]) -> list[list[tuple[float, ...]]]:
    """Boxes of each noun in one picture: (x0, y0, x1, y1, confidence), most confident first.

    words: the pieces of each noun, whose tokens therefore lie at known places of "[CLS] noun . noun . [SEP]".
    """
    model = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    processor = GroundingDinoImageProcessorPil.from_pretrained(folder)
    ids, places = [101], []
    for pieces in words:
        places.append(range(len(ids), len(ids) + len(pieces)))
        ids += [*(WORDS[piece] for piece in pieces), SPECIAL["."]]
    with torch.no_grad():
        output = model(
            **processor(Image.fromarray(picture), return_tensors="pt"), input_ids=torch.tensor([[*ids, 102]])
        )
    height, width = picture.shape[:2]
    found = []
    for place in places:
        candidates = []
        for logits, (cx, cy, w, h) in zip(output.logits[0], output.pred_boxes[0].tolist(), strict=True):
            confidence = sum(1 / (1 + np.exp(-float(logits[token]))) for token in place) / len(place)
            if confidence > THRESHOLD:
                corners = (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
                candidates.append((*corners, confidence))
        kept: list[tuple[float, ...]] = []
        for candidate in sorted(candidates, key=lambda c: -c[4]):
            if all(overlap(candidate, other) <= 0.5 for other in kept):
                kept.append(candidate)
        found.append(kept)
    return found


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_detections_are_those_of_the_model_run_on_one_picture(reward: GroundingDinoReward, folder: Path) -> None:
    pictures = some_pictures(3)
    nouns = [["cat", "fire hydrant"], ["a red fire truck"], ["dog", "cat", "truck"]]
    pieces = [
        [["cat"], ["fire", "hy", "##dra", "##nt"]],
        [["a", "red", "fire", "truck"]],
        [["dog"], ["cat"], ["truck"]],
    ]
    num_boxes = 0
    detected = reward.detect(reward.prepare(pictures, ()), [caption_of(names) for names in nouns])
    for picture, words, names, found in zip(pictures, pieces, nouns, detected, strict=True):
        expected = slow_detections(folder, picture, words)
        height, width = picture.shape[:2]
        for name, boxes in zip(names, expected, strict=True):
            objects = drop_duplicates(found[name], width, height, max_iou=0.5)
            joined = np.column_stack([objects.boxes, objects.confidences])
            np.testing.assert_allclose(joined, np.reshape(boxes, (-1, 5)), atol=1e-3, rtol=1e-4)
            num_boxes += len(boxes)
    assert num_boxes > 10, "the model must find boxes, or the test could not fail"


def test_a_batch_scores_as_its_pictures_one_by_one(reward: GroundingDinoReward) -> None:
    pictures = some_pictures(4)
    prompts = [
        Prompt("a", "t", nouns=("cat", "fire hydrant")),
        Prompt("b", "t", spatial_info=SpatialInfo("cat", "dog", "on the left of")),
        Prompt("c", "t", numeracy_info=(CountInfo("truck", 3), CountInfo("cat", 2))),
        Prompt("d", "t", spatial_info=SpatialInfo("a red fire truck", "dog", "next to")),
    ]
    batch = reward.score(pictures, prompts)
    single = [reward.score(pictures[i : i + 1], prompts[i : i + 1])[0] for i in range(4)]
    assert [score.value for score in batch] == pytest.approx([score.value for score in single], abs=1e-5)
    assert batch[2].parts["found"] == single[2].parts["found"]


def test_t2i_r1_compat_scores_the_same_boxes_by_its_own_rules(reward: GroundingDinoReward, folder: Path) -> None:
    compat = GroundingDinoReward(device="cpu", model=str(folder), box_threshold=THRESHOLD, t2i_r1_compat=True)
    pictures = some_pictures(3)
    counted = Prompt("b", "t", "numeracy", nouns=("cat",), numeracy_info=(CountInfo("cat", 1),))
    prompts = [Prompt("a", "joy"), counted, Prompt("c", "t", nouns=("a red truck", "cat"))]
    rules = T2IR1DetectionRules(0.5)
    expected = [rules.score(prompts[0], {}, 1, 1)]
    for i in (1, 2):
        caption = rules.caption(prompts[i])
        assert caption is not None
        (candidates,) = reward.detect(reward.prepare(pictures[i : i + 1], ()), [caption])
        expected.append(rules.score(prompts[i], candidates, 1, 1))
    scores = compat.score(pictures, prompts)
    assert [score.value for score in scores] == pytest.approx([score.value for score in expected], abs=1e-5)
    assert scores[0].value == 1.0
    assert not reward.score(pictures[:1], prompts[:1])[0].applicable


def test_a_prompt_without_nouns_is_not_scored(reward: GroundingDinoReward) -> None:
    plain, scored = reward.score(some_pictures(2), [Prompt("a", "joy"), Prompt("b", "a cat", nouns=("cat",))])
    assert not plain.applicable
    assert scored.applicable


def test_a_relation_that_boxes_cannot_tell_is_scored_by_presence() -> None:
    prompt = Prompt("a", "t", nouns=("cat",), spatial_info=SpatialInfo("cat", "dog", "behind"))
    assert wanted_nouns(prompt) == ["cat", "dog"]
    assert score_detections(prompt, found(cat=[LEFT], dog=[RIGHT])).value == 1.0
    assert score_detections(prompt, found(cat=[LEFT], dog=[])).value == 0.5


def test_nouns_are_normalised_and_looked_for_once() -> None:
    assert wanted_nouns(Prompt("a", "t", nouns=("Cat", "cat", " fire  truck.", ""))) == ["cat", "fire truck"]


def found(**boxes: list[list[float]]) -> dict[str, Detections]:
    return {
        noun: Detections(np.array(rows, dtype=np.float32).reshape(-1, 4), np.linspace(0.9, 0.5, len(rows)))
        for noun, rows in boxes.items()
    }


LEFT, MIDDLE, RIGHT = [10.0, 40.0, 30.0, 60.0], [40.0, 40.0, 60.0, 60.0], [70.0, 40.0, 90.0, 60.0]


def test_presence_is_the_share_of_nouns_that_are_there() -> None:
    prompt = Prompt("a", "t", nouns=("cat", "dog"))
    assert score_detections(prompt, found(cat=[LEFT], dog=[RIGHT])).value == 1.0
    half = score_detections(prompt, found(cat=[LEFT, MIDDLE], dog=[]))
    assert half.value == 0.5
    assert (half.parts["found"], half.parts["missing"]) == (["cat"], ["dog"])
    assert half.parts["boxes"]["cat"] == [LEFT, MIDDLE]


@pytest.mark.parametrize(
    ("cat", "dog", "value"), [([LEFT], [RIGHT], 1.0), ([RIGHT], [LEFT], 0.4), ([LEFT], [], 0.2), ([], [], 0.0)]
)
def test_a_relation_counts_six_tenths_and_each_object_two(
    cat: list[list[float]], dog: list[list[float]], value: float
) -> None:
    prompt = Prompt("a", "t", spatial_info=SpatialInfo("cat", "dog", "on the left of"))
    assert score_detections(prompt, found(cat=cat, dog=dog)).value == pytest.approx(value)


def test_a_relation_is_read_off_the_most_confident_boxes() -> None:
    prompt = Prompt("a", "t", spatial_info=SpatialInfo("cat", "dog", "left of"))
    assert score_detections(prompt, found(cat=[RIGHT, LEFT], dog=[MIDDLE])).value == pytest.approx(0.4)


def test_two_objects_of_one_name_may_stand_in_either_order() -> None:
    prompt = Prompt("a", "t", spatial_info=SpatialInfo("cat", "cat", "left of"))
    assert score_detections(prompt, found(cat=[RIGHT, LEFT])).value == pytest.approx(1.0)
    assert score_detections(prompt, found(cat=[LEFT])).value == pytest.approx(0.2)


def test_a_count_that_is_nearly_right_earns_nearly_all() -> None:
    prompt = Prompt("a", "t", numeracy_info=(CountInfo("cat", 3), CountInfo("dog", 1)))
    right = score_detections(prompt, found(cat=[LEFT, MIDDLE, RIGHT], dog=[LEFT]))
    assert right.value == 1.0
    assert right.parts["cat"] == "3 of 3"
    assert score_detections(prompt, found(cat=[LEFT, MIDDLE], dog=[LEFT])).value == pytest.approx((2 / 3 + 1) / 2)
    assert score_detections(prompt, found(cat=[], dog=[LEFT, RIGHT])).value == 0.0


def test_nouns_beyond_the_models_text_length_cost_only_their_own_prompt(reward: GroundingDinoReward) -> None:
    short, long = Prompt("a", "t", nouns=("cat",)), Prompt("b", "t", nouns=("fire truck " * 20,))
    pictures = some_pictures(2)
    alone, too_long = reward.score(pictures[:1], [short])[0], reward.score(pictures, [short, long])
    assert too_long[0].value == pytest.approx(alone.value)
    assert not too_long[1].applicable
    assert "more than 32 tokens" in too_long[1].parts["not applicable"]


def test_a_noun_of_which_the_tokenizer_makes_nothing_is_not_there(reward: GroundingDinoReward) -> None:
    (score,) = reward.score(some_pictures(1), [Prompt("a", "t", nouns=("\u200b",))])
    assert (score.value, score.parts["missing"]) == (0.0, ["\u200b"])


def test_a_threshold_outside_its_range_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"box_threshold of grounding_dino is 1\.5"):
        GroundingDinoReward(device="cpu", model=str(folder), box_threshold=1.5)
    with pytest.raises(ConfigError, match="max_iou of grounding_dino is 0"):
        GroundingDinoReward(device="cpu", model=str(folder), max_iou=0)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"reward 'grounding_dino' cannot load its model .*nothing"):
        GroundingDinoReward(device="cpu", model=str(tmp_path / "nothing"))
