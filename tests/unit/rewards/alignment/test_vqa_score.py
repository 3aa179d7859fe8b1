"""rewards/alignment/vqa_score.py, against Qwen2.5-VL and Qwen3-VL asked about one picture without padding."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from configs.errors import ConfigError, ModelError
from rewards.alignment import VqaScoreReward
from rewards.alignment.vqa_score import AFTER_PICTURE, BEFORE_PICTURE, QUESTION, SYSTEM
from rollout.records import Prompt, UInt8Array
from tests.pictures import tiled_pictures

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEXTS = ("a red star", "a blue circle and a red star", "a red star", "no star")
PLAIN = set(re.findall(r"\w+|[^\w\s]+", " ".join(["Yes", "No", QUESTION, *SYSTEM.values(), AFTER_PICTURE, *TEXTS])))
WORDS = ("[PAD]", "[UNK]", *SPECIAL, "user", *sorted(PLAIN))
IDS = {word: i for i, word in enumerate(WORDS)}
TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
TOKEN_IDS = {
    "image_token_id": IDS["<|image_pad|>"],
    "video_token_id": IDS["<|video_pad|>"],
    "vision_start_token_id": IDS["<|vision_start|>"],
    "vision_end_token_id": IDS["<|vision_end|>"],
}


def make_qwen2_5_vl() -> Qwen2_5_VLForConditionalGeneration:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={**vision, "patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1]},
        **TOKEN_IDS,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def make_qwen3_vl() -> Qwen3VLForConditionalGeneration:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0, "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 16, "rope_parameters": rope},
        vision_config={**vision, "patch_size": 8, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        **TOKEN_IDS,
    )
    return Qwen3VLForConditionalGeneration(config)


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(IDS, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", additional_special_tokens=list(SPECIAL)
    )


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = make_qwen2_5_vl() if request.param == "qwen2_5_vl" else make_qwen3_vl()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    Qwen2VLImageProcessorPil(patch_size=8, size=size).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reward(folder: Path) -> VqaScoreReward:
    return VqaScoreReward(device="cpu", model=str(folder))


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(prompt_id=text, text=text) for text in texts]


def slow_score(folder: Path, picture: UInt8Array, text: str) -> float:
    """One picture and the whole softmax, through transformers' own forward pass."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    seen = Qwen2VLImageProcessorPil.from_pretrained(folder)(Image.fromarray(picture), return_tensors="pt")
    _, rows, columns = seen.image_grid_thw[0].tolist()
    encode = tokenizer()
    picture_ids = [IDS["<|vision_start|>"], *[IDS["<|image_pad|>"]] * (rows * columns // 4), IDS["<|vision_end|>"]]
    before = encode(SYSTEM[model.config.model_type] + BEFORE_PICTURE).input_ids
    after = encode(f'Does this figure show "{text}"? Please answer Yes or No.<|im_end|>\n<|im_start|>assistant\n')
    ids = torch.tensor([[*before, *picture_ids, *after.input_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids, mm_token_type_ids=(ids == IDS["<|image_pad|>"]).int(), **seen).logits[0, -1]
    return float(torch.softmax(logits.double(), dim=-1)[IDS["Yes"]])


def test_the_score_is_the_probability_of_yes(reward: VqaScoreReward, folder: Path) -> None:
    pictures = tiled_pictures(4, height=40, width=60)
    expected = [slow_score(folder, picture, text) for picture, text in zip(pictures, TEXTS, strict=True)]
    values = [score.value for score in reward.score(pictures, prompts(*TEXTS))]
    assert values == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 1e-4, "the pictures must differ, or the test could not fail"


def test_a_batch_scores_as_its_pictures_one_by_one(reward: VqaScoreReward) -> None:
    pictures, asked = tiled_pictures(4), prompts(*TEXTS)
    batch = reward.score(pictures, asked)
    single = [reward.score(pictures[i : i + 1], asked[i : i + 1])[0] for i in range(4)]
    assert [score.value for score in batch] == pytest.approx([score.value for score in single], abs=1e-5)
    assert [score.parts["answer"] for score in batch] == [score.parts["answer"] for score in single]


def test_bfloat16_scores_nearly_the_same(reward: VqaScoreReward, folder: Path) -> None:
    half = VqaScoreReward(device="cpu", model=str(folder), dtype="bfloat16")
    pictures, asked = tiled_pictures(4), prompts(*TEXTS)
    exact = np.array([score.value for score in reward.score(pictures, asked)])
    rounded = np.array([score.value for score in half.score(pictures, asked)])
    np.testing.assert_allclose(rounded, exact, atol=0.05)
    assert (rounded != exact).any()


def test_the_question_may_be_another(folder: Path, reward: VqaScoreReward) -> None:
    other = VqaScoreReward(device="cpu", model=str(folder), question="{prompt}? Please answer yes or no.")
    pictures, asked = tiled_pictures(1), prompts(TEXTS[0])
    assert other.score(pictures, asked)[0].value != pytest.approx(reward.score(pictures, asked)[0].value, abs=1e-6)
    with pytest.raises(ConfigError, match=r"question of vqa_score is 'Is it nice\?'; put \{prompt\} into it"):
        VqaScoreReward(device="cpu", model=str(folder), question="Is it nice?")


def test_a_prompt_with_braces_is_asked_as_it_is(reward: VqaScoreReward) -> None:
    (score,) = reward.score(tiled_pictures(1), prompts("a {red} star"))
    assert 0 < score.value < 1


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"reward 'vqa_score' cannot load its model .*nothing"):
        VqaScoreReward(device="cpu", model=str(tmp_path / "nothing"))
