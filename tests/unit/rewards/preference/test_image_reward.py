"""rewards/preference/image_reward.py and its conversion, against BLIP's definition worked out for one picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BlipTextModel, BlipVisionModel

from configs.errors import ModelError
from rewards.loading.blip import (
    convert_text,
    convert_vision,
    infer_text_config,
    infer_vision_config,
    split_by_prefix,
)
from rewards.loading.score_head import PUBLISHED_NUMBERS
from rewards.preference import ImageReward
from rewards.preference.image_reward import MAX_TOKENS
from rewards.rehearsal.tokenizers import save_bert_tokenizer
from rollout.records import Prompt, UInt8Array
from tests.pictures import slow_clip_pixels, tiled_pictures

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "star", "circle", "and")
SIZE, PATCH, HEAD_SIZE, NUM_LAYERS = 32, 8, 64, 2
VISION_WIDTH, TEXT_WIDTH = 128, 64
TEXTS = ["a red star", "a blue circle and a red star", "blue", "a red star"]

Shapes = dict[str, tuple[int, ...]]


def dense(name: str, wide: int, narrow: int) -> Shapes:
    return {f"{name}.weight": (narrow, wide), f"{name}.bias": (narrow,)}


def layer_norm_shapes(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def original_shapes() -> Shapes:
    """A small ImageReward.pt, under the authors' names."""
    vision, text = "blip.visual_encoder", "blip.text_encoder"
    shapes: Shapes = {
        f"{vision}.cls_token": (1, 1, VISION_WIDTH),
        f"{vision}.pos_embed": (1, 1 + (SIZE // PATCH) ** 2, VISION_WIDTH),
        f"{vision}.patch_embed.proj.weight": (VISION_WIDTH, 3, PATCH, PATCH),
        f"{vision}.patch_embed.proj.bias": (VISION_WIDTH,),
        **layer_norm_shapes(f"{vision}.norm", VISION_WIDTH),
        f"{text}.embeddings.word_embeddings.weight": (len(WORDS), TEXT_WIDTH),
        f"{text}.embeddings.position_embeddings.weight": (MAX_TOKENS + 5, TEXT_WIDTH),
        **layer_norm_shapes(f"{text}.embeddings.LayerNorm", TEXT_WIDTH),
    }
    for i in range(NUM_LAYERS):
        block, layer = f"{vision}.blocks.{i}", f"{text}.encoder.layer.{i}"
        shapes |= layer_norm_shapes(f"{block}.norm1", VISION_WIDTH) | layer_norm_shapes(f"{block}.norm2", VISION_WIDTH)
        shapes |= dense(f"{block}.attn.qkv", VISION_WIDTH, 3 * VISION_WIDTH)
        shapes |= dense(f"{block}.attn.proj", VISION_WIDTH, VISION_WIDTH)
        shapes |= dense(f"{block}.mlp.fc1", VISION_WIDTH, 96) | dense(f"{block}.mlp.fc2", 96, VISION_WIDTH)
        for attention, width in (("attention", TEXT_WIDTH), ("crossattention", VISION_WIDTH)):
            shapes |= dense(f"{layer}.{attention}.self.query", TEXT_WIDTH, TEXT_WIDTH)
            shapes |= dense(f"{layer}.{attention}.self.key", width, TEXT_WIDTH)
            shapes |= dense(f"{layer}.{attention}.self.value", width, TEXT_WIDTH)
            shapes |= dense(f"{layer}.{attention}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
            shapes |= layer_norm_shapes(f"{layer}.{attention}.output.LayerNorm", TEXT_WIDTH)
        shapes |= dense(f"{layer}.intermediate.dense", TEXT_WIDTH, 80)
        shapes |= dense(f"{layer}.output.dense", 80, TEXT_WIDTH)
        shapes |= layer_norm_shapes(f"{layer}.output.LayerNorm", TEXT_WIDTH)
    widths = (TEXT_WIDTH, 20, 16, 12, 8, 1)
    for number, width, next_width in zip(PUBLISHED_NUMBERS, widths[:-1], widths[1:], strict=True):
        shapes |= dense(f"mlp.layers.{number}", width, next_width)
    return shapes


def original_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in original_shapes().items():
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 4
        weights[name] = torch.randn(shape, generator=generator) / math.sqrt(fan_in)
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(MAX_TOKENS + 5)[None]
    return weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image_reward")
    save_bert_tokenizer(path, {word: i for i, word in enumerate(WORDS)})
    torch.save(original_weights(), path / "model.pt")
    return path


@pytest.fixture(scope="module")
def reward(folder: Path) -> ImageReward:
    return ImageReward(device="cpu", model=str(folder / "model.pt"), tokenizer=str(folder))


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(prompt_id=text, text=text) for text in texts]


def norm(weights: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention without a mask; q, k, v [length, width] in heads of HEAD_SIZE."""
    q, k, v = (x.view(len(x), -1, HEAD_SIZE).transpose(0, 1) for x in (q, k, v))
    mixed = (q @ k.transpose(1, 2) / math.sqrt(HEAD_SIZE)).softmax(dim=-1) @ v
    return mixed.transpose(0, 1).flatten(1)


def slow_patches(weights: dict[str, Tensor], picture: UInt8Array) -> Tensor:
    """timm's ViT on one picture: [1 + N, d]."""
    pixels = slow_clip_pixels(picture, SIZE)
    tower = "blip.visual_encoder"
    kernel, bias = (weights[f"{tower}.patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
    patches = functional.conv2d(pixels[None], kernel, bias, stride=PATCH)[0].flatten(1).T
    x = torch.cat([weights[f"{tower}.cls_token"][0], patches]) + weights[f"{tower}.pos_embed"][0]
    for i in range(NUM_LAYERS):
        block = f"{tower}.blocks.{i}"
        qkv = linear(weights, f"{block}.attn.qkv", norm(weights, f"{block}.norm1", x, 1e-6))
        x = x + linear(weights, f"{block}.attn.proj", attend(*qkv.chunk(3, dim=-1)))
        hidden = functional.gelu(linear(weights, f"{block}.mlp.fc1", norm(weights, f"{block}.norm2", x, 1e-6)))
        x = x + linear(weights, f"{block}.mlp.fc2", hidden)
    return norm(weights, f"{tower}.norm", x, 1e-6)


def slow_score(weights: dict[str, Tensor], picture: UInt8Array, words: list[str]) -> float:
    """BERT with cross-attention on one prompt, without padding, then the head."""
    patches, tower = slow_patches(weights, picture), "blip.text_encoder"
    ids = [2, *(WORDS.index(word) for word in words), 3]
    x = weights[f"{tower}.embeddings.word_embeddings.weight"][ids]
    x = x + weights[f"{tower}.embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(weights, f"{tower}.embeddings.LayerNorm", x, 1e-12)
    for i in range(NUM_LAYERS):
        layer = f"{tower}.encoder.layer.{i}"
        for attention in ("attention", "crossattention"):
            seen = x if attention == "attention" else patches
            q = linear(weights, f"{layer}.{attention}.self.query", x)
            k, v = (linear(weights, f"{layer}.{attention}.self.{kind}", seen) for kind in ("key", "value"))
            mixed = linear(weights, f"{layer}.{attention}.output.dense", attend(q, k, v))
            x = norm(weights, f"{layer}.{attention}.output.LayerNorm", x + mixed, 1e-12)
        hidden = functional.gelu(linear(weights, f"{layer}.intermediate.dense", x))
        x = norm(weights, f"{layer}.output.LayerNorm", x + linear(weights, f"{layer}.output.dense", hidden), 1e-12)
    raw = x[0]
    for number in PUBLISHED_NUMBERS:
        raw = linear(weights, f"mlp.layers.{number}", raw)
    return (float(raw) - 0.16717362830052426) / 1.0333394966054072


def test_the_score_is_the_head_on_blips_own_arithmetic(reward: ImageReward) -> None:
    weights, pictures = original_weights(), tiled_pictures(4, height=40, width=60)
    expected = [slow_score(weights, picture, text.split()) for picture, text in zip(pictures, TEXTS, strict=True)]
    values = [score.value for score in reward.score(pictures, prompts(*TEXTS))]
    assert values == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 1e-2, "the pictures must differ, or the test could not fail"
    assert abs(expected[0] - expected[3]) > 1e-3, "one text on two pictures must differ too"


def test_a_batch_scores_as_its_pictures_one_by_one(reward: ImageReward) -> None:
    pictures, asked = tiled_pictures(4, height=30, width=50), prompts(*TEXTS)
    batch = [score.value for score in reward.score(pictures, asked)]
    single = [reward.score(pictures[i : i + 1], asked[i : i + 1])[0].value for i in range(4)]
    assert batch == pytest.approx(single, abs=1e-5)


def test_bfloat16_scores_nearly_the_same(reward: ImageReward, folder: Path) -> None:
    half = ImageReward(device="cpu", model=str(folder / "model.pt"), tokenizer=str(folder), dtype="bfloat16")
    pictures, asked = tiled_pictures(4), prompts(*TEXTS)
    exact = np.array([score.value for score in reward.score(pictures, asked)])
    rounded = np.array([score.value for score in half.score(pictures, asked)])
    np.testing.assert_allclose(rounded, exact, atol=0.15)
    assert (rounded != exact).any()


def test_a_prompt_is_cut_at_35_tokens(reward: ImageReward) -> None:
    words = ["a", "red", "star", "and"] * 20
    long, cut = " ".join(words), " ".join(words[: MAX_TOKENS - 2])
    pictures = tiled_pictures(2)[[0, 0]]
    first, second = reward.score(pictures, prompts(long, cut))
    assert first.value == pytest.approx(second.value, abs=1e-6)


def test_the_conversion_gives_exactly_the_weights_of_transformers_towers() -> None:
    weights = original_weights()
    vision = convert_vision(split_by_prefix(weights, "blip.visual_encoder."))
    text = convert_text(split_by_prefix(weights, "blip.text_encoder."))
    towers = {
        "vision": (BlipVisionModel(infer_vision_config(vision)), vision),
        "text": (BlipTextModel(infer_text_config(text), add_pooling_layer=False), text),
    }
    for model, converted in towers.values():
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
        assert {name: tensor.shape for name, tensor in converted.items()} == wanted
    original = weights["blip.visual_encoder.blocks.1.attn.qkv.weight"]
    assert torch.equal(vision["encoder.layers.1.self_attn.qkv.weight"], original)


def test_vit_l_16_and_berts_width_are_recognised_by_their_shapes() -> None:
    with torch.device("meta"):
        vision = infer_vision_config(
            {
                "embeddings.patch_embedding.weight": torch.empty(1024, 3, 16, 16),
                "embeddings.position_embedding": torch.empty(1, 197, 1024),
                "encoder.layers.0.mlp.fc1.weight": torch.empty(4096, 1024),
                "encoder.layers.23.mlp.fc1.weight": torch.empty(4096, 1024),
            }
        )
        text = infer_text_config(
            {
                "embeddings.word_embeddings.weight": torch.empty(30524, 768),
                "embeddings.position_embeddings.weight": torch.empty(512, 768),
                "encoder.layer.0.intermediate.dense.weight": torch.empty(3072, 768),
                "encoder.layer.11.intermediate.dense.weight": torch.empty(3072, 768),
                "encoder.layer.0.crossattention.self.key.weight": torch.empty(768, 1024),
            }
        )
    assert (vision.image_size, vision.patch_size, vision.num_hidden_layers, vision.num_attention_heads) == (
        (224, 16, 24, 16)
    )
    assert (text.num_hidden_layers, text.num_attention_heads, text.encoder_hidden_size) == (12, 12, 1024)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blip.visual_encoder.blocks.1.norm2.bias": None}, r"lacks 1 weights.*layers\.1\.layer_norm2\.bias"),
        ({"mlp.layers.7.bias": None}, r"lacks 'mlp\.layers\.7\.bias'"),
        ({"blip.visual_encoder.extra.weight": torch.zeros(1)}, r"'extra\.weight' is no weight of BLIP's vision tower"),
        ({"blip.text_encoder.pooler.dense.weight": torch.zeros(1)}, "that BlipTextModel does not have.*pooler"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    change: dict[str, Tensor | None], message: str, folder: Path, tmp_path: Path
) -> None:
    weights: dict[str, Tensor | None] = {**original_weights(), **change}
    torch.save({name: tensor for name, tensor in weights.items() if tensor is not None}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=message):
        ImageReward(device="cpu", model=str(tmp_path / "model.pt"), tokenizer=str(folder))


def test_a_checkpoint_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=r"holds nothing under blip\.visual_encoder\."):
        ImageReward(device="cpu", model=str(tmp_path / "other.pt"), tokenizer=str(folder))


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"reward 'image_reward' cannot load its model .*nothing"):
        ImageReward(device="cpu", model=str(tmp_path / "nothing"))
