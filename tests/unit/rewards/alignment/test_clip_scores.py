"""Rewards on CLIP embeddings (clip_scores.py, aesthetic.py), against CLIP's definition worked out for one picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from configs.errors import ModelError
from rewards.alignment import ClipScoreReward, PickScoreReward
from rewards.loading.score_head import PUBLISHED_NUMBERS, build_head
from rewards.preference import AestheticReward
from rollout.records import Prompt, UInt8Array
from tests.pictures import slow_clip_pixels, tiled_pictures

PREFIX = ("A", "photo", "depicts")
WORDS = ("<s>", "[UNK]", "a", "red", "blue", "star", "circle", "and", *PREFIX, "</s>")
SIZE, PATCH, WIDTH, NUM_HEADS, EMBEDDING = 32, 8, 32, 2, 24
HEAD_WIDTHS = (EMBEDDING, 20, 16, 12, 8, 1)
TEXTS = ["a red star", "a blue circle and a red star", "blue", "a red star"]


def head_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for number, width, next_width in zip(PUBLISHED_NUMBERS, HEAD_WIDTHS[:-1], HEAD_WIDTHS[1:], strict=True):
        weights[f"layers.{number}.weight"] = torch.randn(next_width, width, generator=generator)
        weights[f"layers.{number}.bias"] = torch.randn(next_width, generator=generator)
    return weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    shared = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": NUM_HEADS}
    clip = CLIPModel(
        CLIPConfig(
            projection_dim=EMBEDDING,
            vision_config={"image_size": SIZE, "patch_size": PATCH, "projection_dim": EMBEDDING, **shared},
            text_config={
                "vocab_size": len(WORDS),
                "max_position_embeddings": 12,
                "projection_dim": EMBEDDING,
                "eos_token_id": len(WORDS) - 1,
                **shared,
            },
        )
    )
    for name, parameter in clip.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
        elif "bias" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    clip.save_pretrained(path)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 0), ("</s>", len(WORDS) - 1)]
    words.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="</s>", unk_token="[UNK]").save_pretrained(path)
    CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
    ).save_pretrained(path)
    torch.save(head_weights(), path / "head.pth")
    return path


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(prompt_id=text, text=text) for text in texts]


def norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def blocks(weights: dict[str, Tensor], tower: str, x: Tensor, causal: bool) -> Tensor:
    """CLIP's residual attention blocks on one sequence [length, width], with the quick GELU of OpenAI's."""
    length = len(x)
    mask = torch.full((length, length), -math.inf).triu(1) if causal else torch.zeros(length, length)
    for i in range(2):
        layer = f"{tower}.encoder.layers.{i}"
        normed = norm(weights, f"{layer}.layer_norm1", x)
        q, k, v = (
            linear(weights, f"{layer}.self_attn.{letter}_proj", normed).view(length, NUM_HEADS, -1).transpose(0, 1)
            for letter in "qkv"
        )
        attended = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + mask).softmax(dim=-1) @ v
        x = x + linear(weights, f"{layer}.self_attn.out_proj", attended.transpose(0, 1).reshape(length, -1))
        hidden = linear(weights, f"{layer}.mlp.fc1", norm(weights, f"{layer}.layer_norm2", x))
        x = x + linear(weights, f"{layer}.mlp.fc2", hidden * torch.sigmoid(1.702 * hidden))
    return x


def slow_picture_embedding(weights: dict[str, Tensor], picture: UInt8Array) -> Tensor:
    """Unit embedding [e] of one picture: shorter side to SIZE, middle square, ViT, projection."""
    pixels = slow_clip_pixels(picture, SIZE)
    tower = "vision_model"
    patches = functional.conv2d(
        pixels[None], weights[f"{tower}.embeddings.patch_embedding.weight"], stride=PATCH
    )[0].flatten(1).T  # fmt: skip
    x = torch.cat([weights[f"{tower}.embeddings.class_embedding"][None], patches])
    x = norm(weights, f"{tower}.pre_layrnorm", x + weights[f"{tower}.embeddings.position_embedding.weight"])
    pooled = norm(weights, f"{tower}.post_layernorm", blocks(weights, tower, x, causal=False)[0])
    embedded = pooled @ weights["visual_projection.weight"].T
    return embedded / embedded.norm()


def slow_cosine(weights: dict[str, Tensor], picture: UInt8Array, words: list[str]) -> float:
    ids = [0, *(WORDS.index(word) for word in words), len(WORDS) - 1]
    x = weights["text_model.embeddings.token_embedding.weight"][ids]
    x = x + weights["text_model.embeddings.position_embedding.weight"][: len(ids)]
    last = norm(weights, "text_model.final_layer_norm", blocks(weights, "text_model", x, causal=True))[-1]
    embedded = last @ weights["text_projection.weight"].T
    return float(slow_picture_embedding(weights, picture) @ (embedded / embedded.norm()))


@pytest.fixture(scope="module")
def weights(folder: Path) -> dict[str, Tensor]:
    return CLIPModel.from_pretrained(folder).state_dict()


def test_pick_score_is_the_cosine_times_the_models_own_scale(folder: Path, weights: dict[str, Tensor]) -> None:
    reward = PickScoreReward(device="cpu", model=str(folder), processor=None)
    pictures = tiled_pictures(4, height=40, width=60)
    cosines = [slow_cosine(weights, picture, text.split()) for picture, text in zip(pictures, TEXTS, strict=True)]
    scale = math.exp(float(weights["logit_scale"]))
    scores = reward.score(pictures, prompts(*TEXTS))
    assert [score.value for score in scores] == pytest.approx(
        [scale * cosine for cosine in cosines], rel=1e-5, abs=1e-5
    )
    assert [score.parts["cosine"] for score in scores] == pytest.approx(cosines, abs=1e-5)
    assert np.ptp(cosines) > 1e-2, "the pictures must differ, or the test could not fail"
    assert scale > 10


def test_clip_score_is_two_and_a_half_cosines_of_the_prefixed_text_and_never_negative(
    folder: Path, weights: dict[str, Tensor]
) -> None:
    reward = ClipScoreReward(device="cpu", model=str(folder))
    pictures = tiled_pictures(8)
    texts = [*TEXTS, "star", "circle circle", "red", "and"]
    cosines = [
        slow_cosine(weights, picture, [*PREFIX, *text.split()]) for picture, text in zip(pictures, texts, strict=True)
    ]
    values = [score.value for score in reward.score(pictures, prompts(*texts))]
    assert values == pytest.approx([2.5 * max(cosine, 0.0) for cosine in cosines], abs=1e-5)
    assert min(cosines) < -1e-3 < 1e-3 < max(cosines), "both signs must occur, or the test could not fail"


def test_the_aesthetic_score_is_the_published_head_on_the_unit_embedding(
    folder: Path, weights: dict[str, Tensor]
) -> None:
    reward = AestheticReward(device="cpu", model=str(folder), head=str(folder / "head.pth"))
    pictures, head = tiled_pictures(4, height=60, width=40), head_weights()
    expected = []
    for picture in pictures:
        x = slow_picture_embedding(weights, picture)
        for number in PUBLISHED_NUMBERS:
            x = linear(head, f"layers.{number}", x)
        expected.append(float(x))
    scores = reward.score(pictures, prompts(*TEXTS))
    assert [score.value for score in scores] == pytest.approx(expected, rel=1e-5)
    assert np.ptp(expected) > 1e-1, "the pictures must differ, or the test could not fail"


ClipLike = PickScoreReward | ClipScoreReward | AestheticReward


def make(name: str, folder: Path, dtype: str = "float32") -> ClipLike:
    if name == "pick_score":
        return PickScoreReward(device="cpu", model=str(folder), dtype=dtype, processor=None)
    if name == "clip_score":
        return ClipScoreReward(device="cpu", model=str(folder), dtype=dtype)
    return AestheticReward(device="cpu", model=str(folder), dtype=dtype, head=str(folder / "head.pth"))


@pytest.mark.parametrize("name", ["pick_score", "clip_score", "aesthetic"])
def test_a_batch_scores_as_its_pictures_one_by_one(name: str, folder: Path) -> None:
    reward = make(name, folder)
    pictures, asked = tiled_pictures(4, height=30, width=50), prompts(*TEXTS)
    batch = [score.value for score in reward.score(pictures, asked)]
    single = [reward.score(pictures[i : i + 1], asked[i : i + 1])[0].value for i in range(4)]
    assert batch == pytest.approx(single, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", ["pick_score", "clip_score", "aesthetic"])
def test_bfloat16_scores_nearly_the_same(name: str, folder: Path) -> None:
    pictures, asked = tiled_pictures(4), prompts(*TEXTS)
    exact = np.array([score.value for score in make(name, folder).score(pictures, asked)])
    rounded = np.array([score.value for score in make(name, folder, "bfloat16").score(pictures, asked)])
    np.testing.assert_allclose(rounded, exact, atol=0.2 * np.ptp(exact))
    assert (rounded != exact).any()


def test_the_published_head_keeps_every_number() -> None:
    weights = head_weights()
    layers = list(build_head(weights, prefix=""))
    for number, layer in zip(PUBLISHED_NUMBERS, layers, strict=True):
        assert torch.equal(layer.weight, weights[f"layers.{number}.weight"])
        assert torch.equal(layer.bias, weights[f"layers.{number}.bias"])


def test_a_head_with_a_weight_missing_is_refused(folder: Path, tmp_path: Path) -> None:
    weights = head_weights()
    del weights["layers.6.bias"]
    torch.save(weights, tmp_path / "head.pth")
    with pytest.raises(ModelError, match=r"reward 'aesthetic' cannot load .*head.pth.*lacks 'layers\.6\.bias'"):
        AestheticReward(device="cpu", model=str(folder), head=str(tmp_path / "head.pth"))


def test_a_head_for_another_clip_is_refused(folder: Path, tmp_path: Path) -> None:
    weights = head_weights() | {"layers.0.weight": torch.zeros(HEAD_WIDTHS[1], EMBEDDING + 1)}
    torch.save(weights, tmp_path / "head.pth")
    with pytest.raises(ModelError, match=rf"takes embeddings of {EMBEDDING + 1}, .* gives {EMBEDDING}"):
        AestheticReward(device="cpu", model=str(folder), head=str(tmp_path / "head.pth"))


def test_a_head_file_that_holds_more_than_tensors_is_refused_unread(folder: Path, tmp_path: Path) -> None:
    torch.save({"layers.0.weight": Prompt("p", "t")}, tmp_path / "head.pth")
    with pytest.raises(ModelError, match="UnpicklingError"):
        AestheticReward(device="cpu", model=str(folder), head=str(tmp_path / "head.pth"))


@pytest.mark.parametrize("reward", [PickScoreReward, ClipScoreReward, AestheticReward])
def test_a_missing_model_is_named(reward: type[ClipLike], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot load its model .*nothing"):
        reward(device="cpu", model=str(tmp_path / "nothing"))
