"""rewards/alignment/orm.py and rewards/loading/llava_qwen.py, against LLaVA run on one picture."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from configs.errors import ConfigError, ModelError
from rewards.alignment import OrmReward
from rewards.alignment.orm import BEFORE_PICTURE, QUESTION
from rewards.loading.llava_qwen import convert_config
from rewards.pictures.input import pad_to_square
from rollout.records import Prompt, UInt8Array
from tests.pictures import tiled_pictures

CHAT_TOKENS = ("<|im_start|>", "<|im_end|>")
TEXTS = ("a red star", "a blue circle and a red star", "a red star", "no star")
PLAIN_WORDS = set(re.findall(r"\w+|[^\w\s]", f"yes no {BEFORE_PICTURE} {QUESTION} {' '.join(TEXTS)}"))
WORDS = ("[UNK]", "[PAD]", "<image>", *CHAT_TOKENS, *sorted(PLAIN_WORDS))
PATCH, SIZE, NUM_VISION_LAYERS = 8, 32, 3
TEXT_CONFIG = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", additional_special_tokens=list(CHAT_TOKENS)
    )


def vision_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=NUM_VISION_LAYERS,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
    )


def original_name(name: str) -> str:
    """Name in a llava_qwen checkpoint of a weight of transformers' class."""
    for new, old in (
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.language_model.", "model."),
    ):
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    vision = vision_config().to_dict() | {"num_hidden_layers": NUM_VISION_LAYERS - 1, "vision_use_head": False}
    text = {"model_type": "qwen2", "initializer_range": 0.2, **TEXT_CONFIG}
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=WORDS.index("<image>"),
        video_token_index=len(WORDS) - 1,
        image_grid_pinpoints=[[SIZE, SIZE], [SIZE, 2 * SIZE], [2 * SIZE, SIZE]],
        vision_aspect_ratio="pad",
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    for linear in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        torch.nn.init.normal_(linear.weight, std=0.5)
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def llava_qwen_folder(hf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, as LLaVA-NeXT saves it."""
    path, tower = tmp_path_factory.mktemp("llava_qwen"), tmp_path_factory.mktemp("siglip")
    vision_config().save_pretrained(tower)
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(hf_folder)
    weights = {original_name(name): tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "llava_qwen",
        "architectures": ["LlavaQwenForCausalLM"],
        "mm_vision_tower": str(tower),
        "mm_projector_type": "mlp2x_gelu",
        **TEXT_CONFIG,
    }
    (path / "config.json").write_text(json.dumps(config))
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reward(hf_folder: Path) -> OrmReward:
    return OrmReward(device="cpu", model=str(hf_folder))


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(prompt_id=text, text=text) for text in texts]


def see(picture: UInt8Array) -> Tensor:
    """Pixels in -1..1, [1, 3, SIZE, SIZE], as SigLIP wants them."""
    resized = Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 127.5 - 1


def slow_score(folder: Path, picture: UInt8Array, text: str, temperature: float = 0.3) -> float:
    """One picture, no padding: tower without its last norm, projector, newline, language model, two logits."""
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder).eval()
    parts = model.model
    encode = tokenizer()
    with torch.no_grad():
        hidden = parts.vision_tower.embeddings(see(picture))
        for layer in parts.vision_tower.encoder.layers:
            hidden = layer(hidden, attention_mask=None)
        projector = parts.multi_modal_projector
        patches = projector.linear_2(torch.nn.functional.gelu(projector.linear_1(hidden[0])))
        embed = model.get_input_embeddings()
        before = embed(torch.tensor(encode(BEFORE_PICTURE).input_ids))
        after = embed(torch.tensor(encode(QUESTION.format(prompt=text)).input_ids))
        row = torch.cat([before, patches, parts.image_newline[None], after])
        logits = model.lm_head(parts.language_model(inputs_embeds=row[None]).last_hidden_state[0, -1]).double()
    yes, no = (math.exp(float(logits[WORDS.index(word)]) / temperature) for word in ("yes", "no"))
    return yes / (yes + no)


def test_the_score_is_the_probability_of_yes_against_no(reward: OrmReward, hf_folder: Path) -> None:
    pictures = tiled_pictures(4)
    expected = [slow_score(hf_folder, picture, text) for picture, text in zip(pictures, TEXTS, strict=True)]
    scores = reward.score(pictures, prompts(*TEXTS))
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-5)
    assert [score.parts["answer"] for score in scores] == ["yes" if value > 0.5 else "no" for value in expected]
    assert np.ptp(expected) > 1e-2, "the pictures must differ, or the test could not fail"


def test_t2i_r1_compat_gives_nought_for_a_reply_that_is_neither_yes_nor_no(reward: OrmReward, hf_folder: Path) -> None:
    compat = OrmReward(device="cpu", model=str(hf_folder), temperature=3.0, t2i_r1_compat=True)
    pictures, asked = tiled_pictures(40), prompts(*TEXTS[:1] * 40)
    scores = compat.score(pictures, asked)
    answers = {score.parts["answer"] for score in scores}
    assert compat.is_random
    assert len(answers) > 3, "a model of random weights says anything"
    assert all(score.value == 0 for score in scores if score.parts["answer"] not in ("yes", "no"))
    assert [score.value for score in compat.score(pictures, asked)] != [score.value for score in scores]
    assert not reward.is_random


def test_a_checkpoint_that_wants_tiles_is_seen_as_a_square_when_asked_so(
    reward: OrmReward, hf_folder: Path, tmp_path: Path
) -> None:
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(hf_folder)
    model.config.vision_aspect_ratio = "anyres_max_9"
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    pictures, asked = tiled_pictures(2, height=30, width=50), prompts(*TEXTS[:2])
    as_square = reward.score(pictures, asked)
    padded = OrmReward(device="cpu", model=str(tmp_path), view="pad").score(pictures, asked)
    in_tiles = OrmReward(device="cpu", model=str(tmp_path)).score(pictures, asked)
    assert [score.value for score in padded] == pytest.approx([score.value for score in as_square], abs=1e-6)
    assert [score.value for score in in_tiles] != pytest.approx([score.value for score in as_square], abs=1e-3)
    with pytest.raises(ConfigError, match=r"view of orm is 'square'; set it to checkpoint or pad"):
        OrmReward(device="cpu", model=str(tmp_path), view="square")


def test_tiles_score_as_in_transformers_own_forward_pass(hf_folder: Path, tmp_path: Path) -> None:
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(hf_folder).eval()
    model.config.vision_aspect_ratio = "anyres_max_9"
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    pictures, encode = tiled_pictures(3, height=30, width=50), tokenizer()
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        image_grid_pinpoints=model.config.image_grid_pinpoints,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    expected = []
    for picture, text in zip(pictures, TEXTS, strict=False):
        inputs = processor(Image.fromarray(picture), return_tensors="pt")
        with torch.no_grad():
            num_image_tokens = len(model.get_image_features(**inputs).pooler_output[0])
            ids = [
                *encode(BEFORE_PICTURE).input_ids,
                *[WORDS.index("<image>")] * num_image_tokens,
                *encode(QUESTION.format(prompt=text)).input_ids,
            ]
            logits = model(input_ids=torch.tensor([ids]), **inputs).logits[0, -1]
        expected.append(float(torch.sigmoid((logits[WORDS.index("yes")] - logits[WORDS.index("no")]) / 0.3)))
    assert num_image_tokens > (SIZE // PATCH) ** 2 + 1
    scores = OrmReward(device="cpu", model=str(tmp_path)).score(pictures, prompts(*TEXTS[:3]))
    assert [score.value for score in scores] == pytest.approx(expected, abs=1e-5)


def test_the_score_is_that_of_transformers_own_forward_pass(reward: OrmReward, hf_folder: Path) -> None:
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(hf_folder).eval()
    picture, encode = tiled_pictures(1)[0], tokenizer()
    num_image_tokens = (SIZE // PATCH) ** 2 + 1
    ids = [
        *encode(BEFORE_PICTURE).input_ids,
        *[WORDS.index("<image>")] * num_image_tokens,
        *encode(QUESTION.format(prompt=TEXTS[0])).input_ids,
    ]
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([ids]),
            pixel_values=see(picture)[None],
            image_sizes=torch.tensor([[SIZE, SIZE]]),
            # Anything but one picture a prompt: transformers then takes it whole, without crops.
            batch_num_images=torch.tensor([2]),
        ).logits[0, -1]
    gap = logits[WORDS.index("yes")] - logits[WORDS.index("no")]
    (score,) = reward.score(picture[None], prompts(TEXTS[0]))
    assert score.value == pytest.approx(float(torch.sigmoid(gap / 0.3)), abs=1e-5)


def test_a_batch_scores_as_its_pictures_one_by_one(reward: OrmReward) -> None:
    pictures = tiled_pictures(4, height=30, width=50)
    batch = reward.score(pictures, prompts(*TEXTS))
    single = [reward.score(pictures[i : i + 1], prompts(TEXTS[i]))[0] for i in range(4)]
    assert [score.value for score in batch] == pytest.approx([score.value for score in single], abs=1e-5)


def test_a_llava_qwen_checkpoint_scores_as_its_transformers_twin(reward: OrmReward, llava_qwen_folder: Path) -> None:
    pictures = tiled_pictures(2)
    converted = OrmReward(device="cpu", model=str(llava_qwen_folder)).score(pictures, prompts(*TEXTS[:2]))
    expected = reward.score(pictures, prompts(*TEXTS[:2]))
    assert [score.value for score in converted] == pytest.approx([score.value for score in expected], abs=1e-6)


def test_the_usual_vision_tower_needs_no_other_repository() -> None:
    config = convert_config({"mm_vision_tower": "google/siglip-so400m-patch14-384", **TEXT_CONFIG})
    vision = config.vision_config
    assert (vision.num_hidden_layers, vision.image_size, vision.patch_size, vision.hidden_size) == (26, 384, 14, 1152)
    assert not vision.vision_use_head
    assert config.text_config.rope_parameters["rope_theta"] == 1000000.0


@pytest.mark.parametrize(("field", "value"), [("mm_projector_type", "linear"), ("mm_patch_merge_type", "flat")])
def test_a_variant_that_transformers_cannot_hold_is_refused(field: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is '{value}'"):
        convert_config({field: value, "mm_vision_tower": "google/siglip-so400m-patch14-384"})


def test_a_checkpoint_that_squashes_pictures_is_refused(llava_qwen_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(llava_qwen_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"image_aspect_ratio": "square"}))
    with pytest.raises(ModelError, match="image_aspect_ratio is 'square'"):
        OrmReward(device="cpu", model=str(tmp_path))


def test_tile_sizes_are_read_as_llava_next_writes_them() -> None:
    tower = "google/siglip-so400m-patch14-384"
    config = convert_config({"mm_vision_tower": tower, "image_grid_pinpoints": "(1x1),...,(2x3)", **TEXT_CONFIG})
    expected = [[384, 384], [384, 768], [384, 1152], [768, 384], [768, 768], [768, 1152]]
    assert config.image_grid_pinpoints == expected


def test_a_lower_temperature_makes_the_answer_surer(hf_folder: Path) -> None:
    pictures, asked = tiled_pictures(4), prompts(*TEXTS)
    sure = OrmReward(device="cpu", model=str(hf_folder), temperature=0.1).score(pictures, asked)
    unsure = OrmReward(device="cpu", model=str(hf_folder), temperature=1.0).score(pictures, asked)
    assert all(abs(a.value - 0.5) > abs(b.value - 0.5) for a, b in zip(sure, unsure, strict=True))


def test_padding_puts_the_picture_in_the_middle_of_a_gray_square() -> None:
    square = pad_to_square(np.zeros((1, 2, 5, 3), np.uint8), 127)[0, :, :, 0]
    assert square.shape == (5, 5)
    assert square[:, 0].tolist() == [127, 0, 0, 127, 127]


def test_a_checkpoint_with_a_weight_missing_is_refused(llava_qwen_folder: Path, tmp_path: Path) -> None:
    model = LlavaOnevisionForConditionalGeneration(
        convert_config(json.loads((llava_qwen_folder / "config.json").read_text()))
    )
    weights = {original_name(name): tensor.contiguous() for name, tensor in model.state_dict().items()}
    del weights["model.mm_projector.0.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((llava_qwen_folder / "config.json").read_text())
    with pytest.raises(ModelError, match=r"lacks 1 weights, the first is .*linear_1\.bias"):
        OrmReward(device="cpu", model=str(tmp_path))


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"reward 'orm' cannot load its model .*nothing"):
        OrmReward(device="cpu", model=str(tmp_path / "nothing"))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature of orm"):
        OrmReward(device="cpu", temperature=temperature)
