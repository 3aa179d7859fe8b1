"""The tiny Janus: a checkpoint that transformers loads and draws with, and its tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, JanusForConditionalGeneration, PreTrainedTokenizerBase

from configs.schema import TinyJanusConfig
from learner.warm_start.tiny_janus import (
    ASSISTANT,
    BEGIN_OF_IMAGE,
    SPECIAL_TOKENS,
    USER,
    build_tiny_janus,
    collect_words,
    save_pretrained_model,
    save_random_tiny_janus,
)
from rollout.prompts import Conversation
from rollout.shapes.world import VOCABULARY

CONFIG = TinyJanusConfig(hidden_size=64, num_layers=2, num_codes=16, image_size=16, patch_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_pretrained_model(*build_tiny_janus(CONFIG, VOCABULARY), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("patch_size", [2, 4, 8, 16])
def test_a_patch_of_any_size_becomes_one_image_token(patch_size: int):
    config = TinyJanusConfig(hidden_size=32, num_layers=1, image_size=32, patch_size=patch_size)
    model, _ = build_tiny_janus(config, ["red"])
    num_tokens = (32 // patch_size) ** 2
    pictures = torch.zeros(2, 3, 32, 32)
    assert model.model.vqmodel.encode(pictures).image_tokens.shape == (2 * num_tokens,)
    assert model.decode_image_tokens(torch.zeros(2, num_tokens, dtype=torch.long)).shape == (2, 32, 32, 3)


def test_every_weight_survives_saving_and_loading(folder: Path):
    built, _ = build_tiny_janus(CONFIG, VOCABULARY)
    loaded = JanusForConditionalGeneration.from_pretrained(folder).state_dict()
    expected = built.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    heads = [
        build_tiny_janus(CONFIG.model_copy(update={"seed": seed}), ["red"])[0].lm_head.weight for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_transformers_own_generate_writes_and_draws(folder: Path):
    model = JanusForConditionalGeneration.from_pretrained(folder)
    conversation = Conversation.from_pretrained(str(folder))
    prompt = torch.from_numpy(conversation.image_prompt("a red star", "red star top left"))[None].long()
    torch.manual_seed(0)
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), generation_mode="image", do_sample=True, guidance_scale=2.0
    )
    assert tokens.shape == (1, 16)
    assert tokens.min() >= 0
    assert tokens.max() < CONFIG.num_codes
    written = model.generate(prompt[:, :-1], attention_mask=torch.ones_like(prompt[:, :-1]), max_length=20)
    assert written.shape[1] <= 20


def test_every_word_of_the_shapes_world_is_one_token_and_comes_back(tokenizer: PreTrainedTokenizerBase):
    for word in VOCABULARY:
        parts = word.replace("-", " - ")  # "star-shaped" is three
        ids = tokenizer.encode(word, add_special_tokens=False)
        assert len(ids) == len(parts.split()), word
        assert tokenizer.unk_token_id not in ids, word
        assert tokenizer.decode(ids) == parts


def test_capital_letters_and_missing_spaces_make_no_difference(tokenizer: PreTrainedTokenizerBase):
    spaced = tokenizer.encode("a red star . blue cross", add_special_tokens=False)
    assert tokenizer.encode("A red Star. Blue cross", add_special_tokens=False) == spaced


def test_an_unknown_word_is_the_unknown_token(tokenizer: PreTrainedTokenizerBase):
    ids = tokenizer.encode("a red zebra", add_special_tokens=False)
    assert ids[-1] == tokenizer.unk_token_id
    assert ids.count(tokenizer.unk_token_id) == 1


def test_the_chat_template_puts_each_turn_behind_its_role(tokenizer: PreTrainedTokenizerBase):
    turns = [{"role": "user", "content": "red star"}, {"role": "assistant", "content": "top left"}]
    words = [tokenizer.bos_token, USER, "red", "star", ASSISTANT, "top", "left", tokenizer.eos_token]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(text, add_special_tokens=False)) == words
    asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode(asked, add_special_tokens=False)) == words[:5]


def test_contents_may_be_lists_of_parts(tokenizer: PreTrainedTokenizerBase):
    parts = [{"type": "text", "text": "red "}, {"type": "image"}, {"type": "text", "text": "star"}]
    as_parts = tokenizer.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    as_text = tokenizer.apply_chat_template([{"role": "user", "content": "red star"}], tokenize=False)
    assert as_parts == as_text


def test_special_tokens_are_single_ids_that_decoding_can_skip(tokenizer: PreTrainedTokenizerBase):
    for token in SPECIAL_TOKENS:
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1, token
    text = f"{USER}red star{BEGIN_OF_IMAGE}"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True) == "red star"


def test_a_tiny_policy_is_asked_in_few_tokens(folder: Path):
    conversation = Conversation.from_pretrained(str(folder))
    assert len(conversation.semantic_prompt("a red star")) == len(["a", "red", "star"]) + 3


def test_collected_words_are_those_the_tokenizer_splits():
    assert collect_words(["A red star.", "red; BLUE"]) == [".", ";", "a", "blue", "red", "star"]


def test_a_scaled_random_model_is_far_from_uniform(tmp_path: Path):
    model = save_random_tiny_janus(tmp_path, CONFIG, VOCABULARY)
    tokens = torch.arange(10)[None]
    probabilities = model(input_ids=tokens).logits.softmax(-1)
    assert probabilities.max() > 3 / probabilities.shape[-1]
