"""rewards/alignment/git_vqa.py, against GIT asked one question at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, GitConfig, GitForCausalLM

from configs.errors import ModelError
from rewards.alignment import GitVqaReward
from rewards.rehearsal.tokenizers import save_bert_tokenizer
from rollout.records import CountInfo, Prompt, SpatialInfo, UInt8Array
from tests.pictures import tiled_pictures

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "yes", "no", "?", "a", "red", "green", "apple", "bench", "shiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("git")
    torch.manual_seed(0)
    config = GitConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.15,
        bos_token_id=2,
        eos_token_id=3,
    )
    GitForCausalLM(config).save_pretrained(path)
    save_bert_tokenizer(path, {word: i for i, word in enumerate(WORDS)})
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def reward(folder: Path) -> GitVqaReward:
    return GitVqaReward(device="cpu", model=str(folder))


def prompt(*attr_nouns: str) -> Prompt:
    return Prompt(prompt_id="p", text=" and ".join(attr_nouns), attr_nouns=attr_nouns)


PROMPTS = [
    prompt("a red apple", "a shiny green bench"),
    prompt("a green bench"),
    prompt("a bench", "a shiny red apple"),
    prompt("apple", "bench", "a red red red apple"),
]


def slow_score(folder: Path, picture: UInt8Array, prompt: Prompt) -> float:
    """One picture, one question at a time, through the whole softmax, as GIT's own example does it."""
    model = GitForCausalLM.from_pretrained(folder).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    pixels = processor(Image.fromarray(picture), return_tensors="pt").pixel_values
    answers = []
    for noun in prompt.attr_nouns:
        ids = [WORDS.index(word) for word in ("[CLS]", *noun.split(), "?")]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -1]
        p = torch.softmax(logits.double(), dim=-1)
        answers.append(float(p[WORDS.index("yes")] / (p[WORDS.index("yes")] + p[WORDS.index("no")])))
    return sum(answers) / len(answers)


def test_the_score_is_the_mean_share_of_yes_over_the_questions(reward: GitVqaReward, folder: Path) -> None:
    pictures = tiled_pictures(4)
    expected = [slow_score(folder, picture, prompt) for picture, prompt in zip(pictures, PROMPTS, strict=True)]
    assert [score.value for score in reward.score(pictures, PROMPTS)] == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 1e-2, "the pictures must differ, or the test could not fail"


def test_a_batch_scores_as_its_pictures_one_by_one(reward: GitVqaReward) -> None:
    pictures = tiled_pictures(4)
    batch = [score.value for score in reward.score(pictures, PROMPTS)]
    single = [reward.score(pictures[i : i + 1], PROMPTS[i : i + 1])[0].value for i in range(4)]
    assert batch == pytest.approx(single, abs=1e-5)


def test_t2i_r1_compat_adds_a_nought_where_the_default_does_not_apply(folder: Path, reward: GitVqaReward) -> None:
    relation = SpatialInfo("apple", "bench", "left of")
    prompts = [
        Prompt("a", "t", "spatial", nouns=("apple", "bench"), spatial_info=relation),
        PROMPTS[1],
        Prompt("c", "t", "numeracy", nouns=("a",), numeracy_info=(CountInfo("a", 2),)),
    ]
    default = reward.score(tiled_pictures(3), prompts)
    compat = GitVqaReward(device="cpu", model=str(folder), t2i_r1_compat=True).score(tiled_pictures(3), prompts)
    assert [score.applicable for score in default] == [False, True, False]
    assert [score.applicable for score in compat] == [True, True, True]
    assert [score.value for score in compat] == [0.0, default[1].value, 0.0]


def test_each_question_goes_to_its_own_picture(reward: GitVqaReward) -> None:
    pictures, same = tiled_pictures(2), prompt("a red apple", "a bench")
    first, second = reward.score(pictures, [same, same])
    assert first.parts != second.parts
    assert reward.score(pictures[::-1], [same, same])[0].parts == pytest.approx(second.parts, abs=1e-5)


def test_the_parts_hold_every_question_with_its_answer(reward: GitVqaReward) -> None:
    (score,) = reward.score(tiled_pictures(1), PROMPTS[:1])
    assert list(score.parts) == ["a red apple?", "a shiny green bench?"]
    assert score.value == pytest.approx(math.fsum(score.parts.values()) / 2)


def test_a_prompt_without_attributes_is_asked_for_its_nouns(reward: GitVqaReward, folder: Path) -> None:
    pictures = tiled_pictures(2)
    where = SpatialInfo("apple", "bench", "left of")
    nouns = Prompt("a", "t", "complex", nouns=("apple", "bench"), spatial_info=where)
    by_nouns, nothing = reward.score(pictures, [nouns, prompt()])
    assert list(by_nouns.parts) == ["apple?", "bench?"]
    assert by_nouns.value == pytest.approx(slow_score(folder, pictures[0], prompt("apple", "bench")), abs=1e-5)
    assert not nothing.applicable


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"reward 'git_vqa' cannot load its model .*nothing"):
        GitVqaReward(device="cpu", model=str(tmp_path / "nothing"))


def test_a_tokenizer_that_cannot_say_yes_is_refused(folder: Path, tmp_path: Path) -> None:
    GitForCausalLM.from_pretrained(folder).save_pretrained(tmp_path)
    CLIPImageProcessorPil.from_pretrained(folder).save_pretrained(tmp_path)
    save_bert_tokenizer(tmp_path, {"oui" if word == "yes" else word: i for i, word in enumerate(WORDS)})
    with pytest.raises(ModelError, match="no single token for 'yes'"):
        GitVqaReward(device="cpu", model=str(tmp_path))
