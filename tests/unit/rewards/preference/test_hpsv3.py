"""rewards/preference/hpsv3.py: a small Qwen2-VL with a head, against one picture and all of the authors' input."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLImageProcessorPil, Qwen2VLModel

from configs.errors import ModelError
from rewards.preference import Hpsv3Reward
from rewards.preference.hpsv3 import BEFORE_PICTURE, INSTRUCTION, NUM_PIXELS
from rollout.records import Prompt, UInt8Array
from tests.pictures import tiled_pictures

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEXTS = ("a red star", "a blue circle and a red star", "a red star", "no star")
PLAIN = sorted(set(re.findall(r"\w+|[^\w\s]+", f"{BEFORE_PICTURE} {INSTRUCTION} {' '.join(TEXTS)} END")))
WORDS = ("[PAD]", "[UNK]", *SPECIAL, *[word for word in PLAIN if word not in SPECIAL])
IDS = {word: i for i, word in enumerate(WORDS)}
REWARD_ID = len(WORDS)
PATCH = 56
"""Large, so that a picture of the published size is few tokens."""
HEAD = {"0": (32, 24), "3": (24, 16), "5": (16, 2)}


def config(num_tokens: int) -> Qwen2VLConfig:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    return Qwen2VLConfig(
        text_config={
            "vocab_size": num_tokens,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 1024,
            "initializer_range": 0.3,
            "rope_parameters": rope,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": PATCH,
        },
        image_token_id=IDS["<|image_pad|>"],
        video_token_id=IDS["<|video_pad|>"],
        vision_start_token_id=IDS["<|vision_start|>"],
        vision_end_token_id=IDS["<|vision_end|>"],
    )


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(IDS, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", additional_special_tokens=list(SPECIAL)
    )


def old_name(name: str) -> str:
    """Name in the authors' checkpoint of a weight of Qwen2VLModel."""
    return f"model.{name.removeprefix('language_model.')}" if name.startswith("language_model.") else name


@pytest.fixture(scope="module")
def qwen() -> Qwen2VLModel:
    torch.manual_seed(0)
    model = Qwen2VLModel(config(len(WORDS) + 1)).eval()
    torch.nn.init.normal_(model.visual.merger.mlp[2].weight, std=0.5)
    return model


@pytest.fixture(scope="module")
def weights(qwen: Qwen2VLModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = {old_name(name): tensor.contiguous() for name, tensor in qwen.state_dict().items()}
    found["lm_head.weight"] = torch.randn(len(WORDS) + 1, 32, generator=generator)
    for number, (inner, outer) in HEAD.items():
        found[f"rm_head.{number}.weight"] = torch.randn(outer, inner, generator=generator) / math.sqrt(inner)
        found[f"rm_head.{number}.bias"] = torch.randn(outer, generator=generator)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    path = tmp_path_factory.mktemp("hpsv3")
    config(len(WORDS) + 40).save_pretrained(path)  # the base has more rows than its tokenizer has tokens
    tokenizer().save_pretrained(path)
    Qwen2VLImageProcessorPil(patch_size=PATCH).save_pretrained(path)
    save_file(weights, path / "HPSv3.safetensors")
    return path


@pytest.fixture(scope="module")
def reward(folder: Path) -> Hpsv3Reward:
    return Hpsv3Reward("cpu", model=str(folder / "HPSv3.safetensors"), base=str(folder))


def slow_score(qwen: Qwen2VLModel, weights: dict[str, Tensor], picture: UInt8Array, text: str) -> tuple[float, float]:
    """One picture; with what the authors put behind <|Reward|>, and the head read at that token's place."""
    processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH, size={"shortest_edge": NUM_PIXELS, "longest_edge": NUM_PIXELS}
    )
    seen = processor(Image.fromarray(picture), return_tensors="pt")
    encode = tokenizer()
    num_tokens = int(seen.image_grid_thw.prod()) // 4
    ids = [
        *encode(BEFORE_PICTURE).input_ids,
        *[IDS["<|vision_start|>"], *[IDS["<|image_pad|>"]] * num_tokens, IDS["<|vision_end|>"]],
        *encode(INSTRUCTION.replace("{prompt}", text)).input_ids,
        REWARD_ID,
        *encode("\n\nEND\n<|im_end|>\n<|im_start|>assistant\n").input_ids,
    ]
    token_ids = torch.tensor([ids])
    with torch.no_grad():
        hidden = qwen(
            input_ids=token_ids, mm_token_type_ids=(token_ids == IDS["<|image_pad|>"]).int(), use_cache=False, **seen
        ).last_hidden_state[0, ids.index(REWARD_ID)]
    for number in HEAD:
        hidden = weights[f"rm_head.{number}.weight"] @ hidden + weights[f"rm_head.{number}.bias"]
        hidden = hidden if number == "5" else hidden.clamp(min=0)
    return float(hidden[0]), float(hidden[1])


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(text, text) for text in texts]


def test_the_score_is_the_heads_mean_at_the_reward_token(
    reward: Hpsv3Reward, qwen: Qwen2VLModel, weights: dict[str, Tensor]
) -> None:
    pictures = tiled_pictures(4, height=40, width=60)
    expected = [slow_score(qwen, weights, picture, text) for picture, text in zip(pictures, TEXTS, strict=True)]
    scores = reward.score(pictures, prompts(*TEXTS))
    assert [score.value for score in scores] == pytest.approx([mean for mean, _ in expected], abs=1e-4)
    assert [score.parts["uncertainty"] for score in scores] == pytest.approx(
        [second for _, second in expected], abs=1e-4
    )
    assert np.ptp([mean for mean, _ in expected]) > 1e-2, "the pictures must differ, or the test could not fail"


def test_a_batch_scores_as_its_pictures_one_by_one(reward: Hpsv3Reward) -> None:
    pictures = tiled_pictures(4, height=50, width=30)
    batch = [score.value for score in reward.score(pictures, prompts(*TEXTS))]
    single = [reward.score(pictures[i : i + 1], prompts(TEXTS[i]))[0].value for i in range(4)]
    assert batch == pytest.approx(single, abs=1e-5)


def test_newer_names_and_a_pickle_under_model_load_the_same(
    reward: Hpsv3Reward, folder: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    newer = {}
    for name, tensor in weights.items():
        if name.startswith("model."):
            newer[f"model.language_model.{name.removeprefix('model.')}"] = tensor
        else:
            newer[f"model.{name}" if name.startswith("visual.") else name] = tensor
    torch.save({"model": newer}, tmp_path / "HPSv3.pth")
    other = Hpsv3Reward("cpu", model=str(tmp_path / "HPSv3.pth"), base=str(folder))
    pictures, asked = tiled_pictures(2), prompts(*TEXTS[:2])
    assert other.score(pictures, asked) == reward.score(pictures, asked)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rm_head.3.bias", r"lacks 'rm_head\.3\.bias'"),
        ("model.embed_tokens.weight", "lacks 'language_model.embed_tokens.weight'"),
        ("visual.patch_embed.proj.weight", "lacks 1 weights, the first is visual.patch_embed.proj.weight"),
    ],
)
def test_a_checkpoint_with_a_weight_missing_is_refused(
    folder: Path, weights: dict[str, Tensor], tmp_path: Path, name: str, message: str
) -> None:
    save_file({key: tensor for key, tensor in weights.items() if key != name}, tmp_path / "HPSv3.safetensors")
    with pytest.raises(ModelError, match=message):
        Hpsv3Reward("cpu", model=str(tmp_path / "HPSv3.safetensors"), base=str(folder))


def test_a_checkpoint_that_does_not_know_the_reward_token_is_refused(
    folder: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    cut = weights | {"model.embed_tokens.weight": weights["model.embed_tokens.weight"][:-1].clone()}
    save_file(cut, tmp_path / "HPSv3.safetensors")
    with pytest.raises(
        ModelError, match=rf"it knows {len(WORDS)} tokens, and <\|Reward\|> would be number {REWARD_ID}"
    ):
        Hpsv3Reward("cpu", model=str(tmp_path / "HPSv3.safetensors"), base=str(folder))


def test_a_file_that_is_no_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "HPSv3.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="is no safetensors file"):
        Hpsv3Reward("cpu", model=str(tmp_path / "HPSv3.safetensors"), base=str(folder))
