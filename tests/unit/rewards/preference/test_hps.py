"""rewards/preference/hps.py and rewards/loading/open_clip.py, against open_clip's own arithmetic on a small model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from configs.errors import ConfigError, ModelError
from rewards.loading.open_clip import clean_text, convert_state_dict, infer_config
from rewards.preference import HPSReward
from rewards.preference.hps import CLIP_MEAN, CLIP_STD, preprocess
from rollout.records import Prompt, UInt8Array

WORDS = ("<|startoftext|>", "<unk>", "a", "red", "blue", "star", "circle", "and", "<|endoftext|>")
VISION_WIDTH, TEXT_WIDTH, EMBEDDING, NUM_LAYERS = 160, 128, 24, 2
PATCH, SIZE, CONTEXT = 14, 56, 8


def save_tokenizer(folder: Path) -> None:
    ids = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{WORDS[0]} $A {WORDS[-1]}", special_tokens=[(WORDS[0], 0), (WORDS[-1], ids[WORDS[-1]])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=WORDS[0], eos_token=WORDS[-1], pad_token=WORDS[-1], unk_token="<unk>"
    ).save_pretrained(folder)


def random_layer(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.ln_1.weight": (width,),
        f"{prefix}.ln_1.bias": (width,),
        f"{prefix}.attn.in_proj_weight": (3 * width, width),
        f"{prefix}.attn.in_proj_bias": (3 * width,),
        f"{prefix}.attn.out_proj.weight": (width, width),
        f"{prefix}.attn.out_proj.bias": (width,),
        f"{prefix}.ln_2.weight": (width,),
        f"{prefix}.ln_2.bias": (width,),
        f"{prefix}.mlp.c_fc.weight": (2 * width, width),
        f"{prefix}.mlp.c_fc.bias": (2 * width,),
        f"{prefix}.mlp.c_proj.weight": (width, 2 * width),
        f"{prefix}.mlp.c_proj.bias": (width,),
    }


def open_clip_weights() -> dict[str, Tensor]:
    """A random checkpoint with the names and shapes of open_clip's ViT-H/14, made small."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "positional_embedding": (CONTEXT, TEXT_WIDTH),
        "text_projection": (TEXT_WIDTH, EMBEDDING),
        "token_embedding.weight": (len(WORDS), TEXT_WIDTH),
        "ln_final.weight": (TEXT_WIDTH,),
        "ln_final.bias": (TEXT_WIDTH,),
        "visual.class_embedding": (VISION_WIDTH,),
        "visual.positional_embedding": ((SIZE // PATCH) ** 2 + 1, VISION_WIDTH),
        "visual.proj": (VISION_WIDTH, EMBEDDING),
        "visual.conv1.weight": (VISION_WIDTH, 3, PATCH, PATCH),
        "visual.ln_pre.weight": (VISION_WIDTH,),
        "visual.ln_pre.bias": (VISION_WIDTH,),
        "visual.ln_post.weight": (VISION_WIDTH,),
        "visual.ln_post.bias": (VISION_WIDTH,),
    }
    for i in range(NUM_LAYERS):
        shapes |= random_layer(f"transformer.resblocks.{i}", TEXT_WIDTH)
        shapes |= random_layer(f"visual.transformer.resblocks.{i}", VISION_WIDTH)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) / 8 for name, shape in shapes.items()}


def layer_norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def tower(weights: dict[str, Tensor], prefix: str, x: Tensor, head_size: int, causal: bool) -> Tensor:
    """open_clip's residual attention blocks on one sequence [length, width]."""
    length, width = x.shape
    mask = torch.full((length, length), -math.inf).triu(1) if causal else torch.zeros(length, length)
    for i in range(NUM_LAYERS):
        block = f"{prefix}transformer.resblocks.{i}"
        normed = layer_norm(weights, f"{block}.ln_1", x)
        qkv = normed @ weights[f"{block}.attn.in_proj_weight"].T + weights[f"{block}.attn.in_proj_bias"]
        q, k, v = (part.view(length, -1, head_size).transpose(0, 1) for part in qkv.chunk(3, dim=-1))
        attended = (q @ k.transpose(1, 2) / math.sqrt(head_size) + mask).softmax(dim=-1) @ v
        joined = attended.transpose(0, 1).reshape(length, width)
        x = x + joined @ weights[f"{block}.attn.out_proj.weight"].T + weights[f"{block}.attn.out_proj.bias"]
        normed = layer_norm(weights, f"{block}.ln_2", x)
        hidden = functional.gelu(normed @ weights[f"{block}.mlp.c_fc.weight"].T + weights[f"{block}.mlp.c_fc.bias"])
        x = x + hidden @ weights[f"{block}.mlp.c_proj.weight"].T + weights[f"{block}.mlp.c_proj.bias"]
    return x


def slow_hps(weights: dict[str, Tensor], pixels: Tensor, words: list[str]) -> float:
    """Score of one picture [3, SIZE, SIZE] straight from the definition of CLIP."""
    patches = functional.conv2d(pixels[None], weights["visual.conv1.weight"], stride=PATCH)[0].flatten(1).T
    x = torch.cat([weights["visual.class_embedding"][None], patches]) + weights["visual.positional_embedding"]
    x = tower(weights, "visual.", layer_norm(weights, "visual.ln_pre", x), head_size=80, causal=False)
    picture = layer_norm(weights, "visual.ln_post", x[0]) @ weights["visual.proj"]
    ids = [0, *(WORDS.index(word) for word in words), len(WORDS) - 1]
    x = weights["token_embedding.weight"][ids] + weights["positional_embedding"][: len(ids)]
    x = layer_norm(weights, "ln_final", tower(weights, "", x, head_size=64, causal=True))
    text = x[-1] @ weights["text_projection"]
    return float(picture @ text / (picture.norm() * text.norm()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hps")
    save_tokenizer(path)
    torch.save({"epoch": 1, "state_dict": open_clip_weights()}, path / "checkpoint.pt")
    return path


@pytest.fixture(scope="module")
def reward(folder: Path) -> HPSReward:
    return HPSReward(device="cpu", model=str(folder / "checkpoint.pt"), tokenizer=str(folder))


def some_pictures(num_pictures: int, height: int = SIZE, width: int = SIZE) -> UInt8Array:
    return np.random.default_rng(0).integers(0, 256, (num_pictures, height, width, 3), dtype=np.uint8)


def prompt(text: str) -> Prompt:
    return Prompt(prompt_id=text, text=text)


def test_the_score_is_the_cosine_of_open_clips_own_arithmetic(reward: HPSReward) -> None:
    pictures = some_pictures(3)
    texts = ["a red star", "a blue circle and a star", "a red star"]
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    expected = [
        slow_hps(open_clip_weights(), (torch.from_numpy(picture).permute(2, 0, 1) / 255 - mean) / std, text.split())
        for picture, text in zip(pictures, texts, strict=True)
    ]
    scores = reward.score(pictures, [prompt(text) for text in texts])
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 1e-3, "the pictures must differ, or the test could not fail"


def test_a_batch_scores_as_its_pictures_one_by_one(reward: HPSReward) -> None:
    pictures = some_pictures(4, height=80, width=40)
    prompts = [prompt(text) for text in ("a star", "a red circle and a blue star", "blue", "a star")]
    batch = [score.value for score in reward.score(pictures, prompts)]
    single = [reward.score(pictures[i : i + 1], prompts[i : i + 1])[0].value for i in range(4)]
    assert batch == pytest.approx(single, abs=1e-5)


def test_t2i_r1_compat_gives_the_cosine_in_float16(reward: HPSReward, folder: Path) -> None:
    compat = HPSReward("cpu", str(folder / "checkpoint.pt"), tokenizer=str(folder), t2i_r1_compat=True)
    pictures, prompts = some_pictures(3), [prompt("a red star")] * 3
    exact = [score.value for score in reward.score(pictures, prompts)]
    rounded = [score.value for score in compat.score(pictures, prompts)]
    assert rounded == [float(np.float16(value)) for value in rounded] != exact
    assert rounded == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize(
    "text", ["a “red” star", "a &quot;red&quot; star", "a &amp;quot;red&amp;quot;  star", 'a\n"red" star']
)
def test_a_prompt_is_cleaned_as_open_clip_cleans_it(reward: HPSReward, text: str) -> None:
    pictures = some_pictures(1)
    (plain,), (other,) = (reward.score(pictures, [prompt(words)]) for words in ('a "red" star', "a red star"))
    (given,) = reward.score(pictures, [prompt(text)])
    assert given == plain != other
    assert clean_text("ﬂuﬀy cafÃ©") == "fluffy café"


def test_no_random_model_is_made_before_the_checkpoints(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices, made = [], CLIPModel.__init__

    def watched(self: CLIPModel, config: Any) -> None:
        devices.append(torch.empty(0).device.type)
        made(self, config)

    monkeypatch.setattr(CLIPModel, "__init__", watched)
    HPSReward(device="cpu", model=str(folder / "checkpoint.pt"), tokenizer=str(folder))
    assert devices == ["meta"]


def test_a_prompt_longer_than_the_context_keeps_its_end_token(reward: HPSReward) -> None:
    long, cut = "a red star and a blue circle and a star", "a red star and a blue"
    pictures = some_pictures(1)
    assert reward.score(pictures, [prompt(long)])[0].value == pytest.approx(
        reward.score(pictures, [prompt(cut)])[0].value, abs=1e-6
    )


def test_a_transformers_folder_scores_as_the_checkpoint_it_came_from(reward: HPSReward, tmp_path: Path) -> None:
    weights = convert_state_dict(open_clip_weights())
    clip = CLIPModel(infer_config(weights))
    clip.load_state_dict(weights)
    clip.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    pictures, prompts = some_pictures(2), [prompt("a red star")] * 2
    from_folder = HPSReward(device="cpu", model=str(tmp_path)).score(pictures, prompts)
    assert [s.value for s in from_folder] == pytest.approx([s.value for s in reward.score(pictures, prompts)], abs=1e-6)


def test_the_conversion_gives_exactly_the_weights_of_clip_model() -> None:
    weights = convert_state_dict(open_clip_weights())
    model = CLIPModel(infer_config(weights))
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }


def test_the_conversion_loses_no_number() -> None:
    original = open_clip_weights()
    converted = convert_state_dict(original)
    assert sum(t.numel() for t in converted.values()) == sum(t.numel() for t in original.values())
    layer = "text_model.encoder.layers.1.self_attn"
    joined = torch.cat([converted[f"{layer}.{letter}_proj.weight"] for letter in "qkv"])
    assert torch.equal(joined, original["transformer.resblocks.1.attn.in_proj_weight"])
    assert torch.equal(converted["visual_projection.weight"].T, original["visual.proj"])


def test_vit_h_14_is_recognised_by_its_shapes() -> None:
    with torch.device("meta"):
        shapes: dict[str, Tensor] = {
            "vision_model.embeddings.patch_embedding.weight": torch.empty(1280, 3, 14, 14),
            "vision_model.embeddings.position_embedding.weight": torch.empty(257, 1280),
            "vision_model.encoder.layers.31.mlp.fc1.weight": torch.empty(5120, 1280),
            "vision_model.encoder.layers.0.mlp.fc1.weight": torch.empty(5120, 1280),
            "text_model.embeddings.token_embedding.weight": torch.empty(49408, 1024),
            "text_model.embeddings.position_embedding.weight": torch.empty(77, 1024),
            "text_model.encoder.layers.23.mlp.fc1.weight": torch.empty(4096, 1024),
            "text_model.encoder.layers.0.mlp.fc1.weight": torch.empty(4096, 1024),
            "text_projection.weight": torch.empty(1024, 1024),
        }
    config: CLIPConfig = infer_config(shapes)
    vision, text = config.vision_config, config.text_config
    assert (vision.image_size, vision.patch_size, vision.num_hidden_layers, vision.num_attention_heads) == (
        (224, 14, 32, 16)
    )
    assert (text.num_hidden_layers, text.num_attention_heads, text.max_position_embeddings) == (24, 16, 77)
    assert text.eos_token_id == 49407


def test_preprocessing_fits_the_longer_side_and_pads_with_black_in_the_middle() -> None:
    pictures = torch.full((1, 40, 80, 3), 255, dtype=torch.uint8)
    pixels = preprocess(pictures, 20)[0]
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    restored = pixels * std + mean
    assert pixels.shape == (3, 20, 20)
    assert torch.allclose(restored[:, 5:15], torch.ones(3, 10, 20), atol=1e-5)
    assert torch.allclose(restored[:, :5], torch.zeros(3, 5, 20), atol=1e-5)
    assert torch.allclose(restored[:, 15:], torch.zeros(3, 5, 20), atol=1e-5)


def test_a_checkpoint_with_a_weight_missing_is_refused(folder: Path, tmp_path: Path) -> None:
    weights = open_clip_weights()
    del weights["visual.transformer.resblocks.1.mlp.c_fc.bias"]
    torch.save(weights, tmp_path / "short.pt")
    with pytest.raises(ModelError, match=r"lacks 1 weights.*layers\.1\.mlp\.fc1\.bias"):
        HPSReward(device="cpu", model=str(tmp_path / "short.pt"), tokenizer=str(folder))


def test_a_checkpoint_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    torch.save({"head.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match=r"'head\.weight' is no weight of an open_clip model"):
        HPSReward(device="cpu", model=str(tmp_path / "other.pt"), tokenizer=str(folder))


@pytest.mark.parametrize("name", ["missing.pt", "missing"])
def test_a_missing_model_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"reward 'hps' cannot load its model .*{name}"):
        HPSReward(device="cpu", model=str(tmp_path / name))


def test_an_unknown_dtype_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"options\.dtype: 'int8'"):
        HPSReward(device="cpu", model=str(folder / "checkpoint.pt"), tokenizer=str(folder), dtype="int8")
