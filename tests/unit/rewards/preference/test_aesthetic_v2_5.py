"""rewards/preference/aesthetic_v2_5.py: a small SigLIP, against its definition worked out for one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from configs.errors import ModelError
from rewards.preference import AestheticV25Reward
from rollout.records import Prompt, UInt8Array
from tests.pictures import tiled_pictures

WIDTHS = (32, 20, 16, 12, 8, 1)
NUMBERS = (0, 2, 4, 6, 8)
SIDE = 32


def head_weights(width: int = WIDTHS[0]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for number, (inner, outer) in zip(NUMBERS, zip((width, *WIDTHS[1:]), WIDTHS[1:], strict=False), strict=True):
        weights[f"scoring_head.{number}.weight"] = torch.randn(outer, inner, generator=generator)
        weights[f"scoring_head.{number}.bias"] = torch.randn(outer, generator=generator)
    return weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=WIDTHS[0],
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
    )
    SiglipVisionModel(config).save_pretrained(path)
    SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(path)
    torch.save(head_weights(), path / "head.pth")
    return path


def slow_score(folder: Path, picture: UInt8Array) -> float:
    """One picture: patches, layers, the attention pool of SigLIP, and five matrix products in float64."""
    model = SiglipVisionModel.from_pretrained(folder).eval().double()
    resized = np.array(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=float)
    pixels = torch.tensor(resized.transpose(2, 0, 1)[None] / 127.5 - 1)
    tower = getattr(model, "vision_model", model)
    with torch.no_grad():
        hidden = tower.embeddings(pixels)
        for layer in tower.encoder.layers:
            hidden = layer(hidden, attention_mask=None)
        pool = tower.head
        normed = tower.post_layernorm(hidden)
        seen = pool.attention(pool.probe, normed, normed)[0]
        x = (seen + pool.mlp(pool.layernorm(seen)))[0, 0]
    x = x / x.norm()
    for number in NUMBERS:
        weights = {name: tensor.double() for name, tensor in head_weights().items()}
        x = weights[f"scoring_head.{number}.weight"] @ x + weights[f"scoring_head.{number}.bias"]
    return float(x)


@pytest.fixture(scope="module")
def reward(folder: Path) -> AestheticV25Reward:
    return AestheticV25Reward("cpu", head=str(folder / "head.pth"), model=str(folder))


def test_the_score_is_the_published_head_on_the_unit_pooled_embedding(reward: AestheticV25Reward, folder: Path) -> None:
    pictures = tiled_pictures(4, height=40, width=60)
    expected = [slow_score(folder, picture) for picture in pictures]
    values = [score.value for score in reward.score(pictures, [Prompt("p", "t")] * 4)]
    assert values == pytest.approx(expected, rel=1e-4)
    assert np.ptp(expected) > 1e-2, "the pictures must differ, or the test could not fail"


def test_a_batch_scores_as_its_pictures_one_by_one(reward: AestheticV25Reward) -> None:
    pictures, prompts = tiled_pictures(4), [Prompt("p", "t")] * 4
    batch = [score.value for score in reward.score(pictures, prompts)]
    single = [reward.score(pictures[i : i + 1], prompts[:1])[0].value for i in range(4)]
    assert batch == pytest.approx(single, rel=1e-5)


def test_a_head_of_another_width_or_layout_is_refused(folder: Path, tmp_path: Path) -> None:
    torch.save(head_weights(width=31), tmp_path / "narrow.pth")
    with pytest.raises(ModelError, match=r"takes embeddings of 31, .* gives 32"):
        AestheticV25Reward("cpu", head=str(tmp_path / "narrow.pth"), model=str(folder))
    weights = {name.replace("scoring_head", "layers"): tensor for name, tensor in head_weights().items()}
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"reward 'aesthetic_v2_5' cannot load .*lacks 'scoring_head\.0\.weight'"):
        AestheticV25Reward("cpu", head=str(tmp_path / "other.pth"), model=str(folder))
