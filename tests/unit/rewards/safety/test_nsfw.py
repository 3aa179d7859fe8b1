"""rewards/safety/nsfw.py, against the classifier run on one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from configs.errors import ConfigError, ModelError
from rewards.safety import NsfwReward
from rollout.records import Prompt, UInt8Array
from tests.pictures import tiled_pictures

SIZE = 32
LABELS = ("normal", "nsfw", "gore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nsfw")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(
        image_size=SIZE,
        patch_size=8,
        initializer_range=0.3,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        **shape,
    )
    ViTForImageClassification(config).save_pretrained(path)
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(path)
    return path


PROMPTS = [Prompt(str(i), "a beach") for i in range(4)]


def slow_probabilities(folder: Path, picture: UInt8Array) -> list[float]:
    """Squashed to the model's square, each channel from -1 to 1, and through the softmax."""
    model = ViTForImageClassification.from_pretrained(folder).eval()
    square = Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits[0].double()
    return torch.softmax(logits, dim=-1).tolist()


@pytest.mark.parametrize("unsafe", [("nsfw",), ("nsfw", "gore")])
def test_the_score_is_what_the_unsafe_labels_leave(folder: Path, unsafe: tuple[str, ...]) -> None:
    reward = NsfwReward(device="cpu", model=str(folder), unsafe_labels=unsafe)
    pictures = tiled_pictures(4)
    probabilities = [slow_probabilities(folder, picture) for picture in pictures]
    expected = [1 - sum(row[LABELS.index(label)] for label in unsafe) for row in probabilities]
    scores = reward.score(pictures, PROMPTS)
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-5)
    assert [score.parts["looks"] for score in scores] == [LABELS[int(np.argmax(row))] for row in probabilities]
    assert np.ptp(expected) > 1e-2, "the pictures must differ, or the test could not fail"


def test_a_batch_scores_as_its_pictures_one_by_one(folder: Path) -> None:
    reward, pictures = NsfwReward(device="cpu", model=str(folder)), tiled_pictures(4)
    batch = [score.value for score in reward.score(pictures, PROMPTS)]
    single = [reward.score(pictures[i : i + 1], PROMPTS[:1])[0].value for i in range(4)]
    assert batch == pytest.approx(single, abs=1e-5)


@pytest.mark.parametrize("labels", [["naked"], []])
def test_a_label_that_the_model_lacks_is_refused(folder: Path, labels: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"unsafe_labels of nsfw is .*choose from .*\['gore', 'normal', 'nsfw'\]"):
        NsfwReward(device="cpu", model=str(folder), unsafe_labels=labels)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"reward 'nsfw' cannot load its model .*nothing"):
        NsfwReward(device="cpu", model=str(tmp_path / "nothing"))
