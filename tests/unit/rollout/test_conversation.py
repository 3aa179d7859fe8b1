"""Prompts and CoTs as token ids, for the tiny policy's tokenizer and for one built like Janus-Pro's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from configs.errors import DataError, ModelError
from configs.load import load_config
from configs.schema import TinyJanusConfig
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.prompts import Conversation
from rollout.prompts.conversation import ConversationFormat, PromptTooLong
from rollout.records import Prompt

ROOT = Path(__file__).resolve().parents[3]
T2I_R1_PROMPTS = ROOT / "tests" / "data" / "t2i_r1" / "prompts.json"
T2I_R1_CONFIG = ROOT / "configs" / "t2i_r1.yaml"
WORDS = ["a", "red", "blue", "circle", "square", "top", "left", "plan", "the", "picture"]
MARKERS = ["<bos>", "<eos>", "<pad>", "<begin_of_image>", "<|User|>", "<|Assistant|>"]
# Typed contents and no system role, as in Janus-Pro's template.
TYPED_TEMPLATE = (
    "{% for message in messages %}{{ '<|User|>: ' if message.role == 'user' else '<|Assistant|>: ' }}"
    "{% for part in message.content %}{{ part['text'] }}{% endfor %}"
    "{{ '\n\n' if message.role == 'user' else eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_random_tiny_janus(
        folder, TinyJanusConfig(hidden_size=32, num_layers=1, num_codes=8, image_size=8, patch_size=4), WORDS
    )
    ConversationFormat(system_prompt="", instruction="{prompt}").save(folder)
    return folder


@pytest.fixture(scope="module")
def byte_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer keeps every byte, and whose template sits in the processor's file."""
    folder = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(marker, special=True) for marker in MARKERS[:4]])
    backend.add_tokens([AddedToken(marker, special=False, normalized=False) for marker in (*MARKERS[4:], "ж")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TYPED_TEMPLATE}))
    (folder / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    return folder


def text_of(conversation: Conversation, ids: np.ndarray) -> str:
    return conversation.tokenizer.decode(ids.tolist())


def test_the_semantic_prompt_of_a_janus_template_has_its_system_text_in_front(byte_folder: Path):
    conversation = Conversation.from_pretrained(str(byte_folder), system_prompt="Plan.", instruction="Draw '{prompt}'")
    ids = conversation.semantic_prompt("a {red} cat")
    assert ids.dtype == np.int32
    assert text_of(conversation, ids) == "<bos>Plan.\n\n<|User|>: Draw 'a {red} cat'\n\n<|Assistant|>:"


def test_the_image_prompt_of_a_janus_template_joins_prompt_and_cot_and_opens_a_picture(byte_folder: Path):
    conversation = Conversation.from_pretrained(str(byte_folder))
    ids = conversation.image_prompt("A red cat.", "It sits left.")
    assert text_of(conversation, ids) == "<bos><|User|>: A red cat. It sits left.\n\n<|Assistant|>:<begin_of_image>"
    assert ids[-1] == conversation.boi_id


@pytest.mark.parametrize("case", json.loads(T2I_R1_PROMPTS.read_text()), ids=lambda case: case["answer"])
def test_both_prompts_of_t2i_r1s_config_are_those_of_its_own_code(byte_folder: Path, case: dict[str, str]):
    rollout = load_config(T2I_R1_CONFIG).rollout
    conversation = Conversation.of_run(str(byte_folder), rollout)
    answer = conversation.decode_cot(np.array(conversation.tokenizer.encode(case["answer"]), np.int32))
    semantic, image = conversation.semantic_prompt(case["prompt"]), conversation.image_prompt(case["prompt"], answer)
    assert text_of(conversation, semantic) == "<bos>" + case["semantic"]
    assert text_of(conversation, image) == "<bos>" + case["image"] + "<begin_of_image>"


def test_roles_and_image_prompt_are_stored_and_come_back(byte_folder: Path, tmp_path: Path):
    stored = ConversationFormat("system", "{prompt}", ("User", "Assistant"), "verbatim")
    stored.save(tmp_path)
    assert ConversationFormat.load(tmp_path) == stored
    ConversationFormat("system", "{prompt}").save(tmp_path)
    assert json.loads((tmp_path / "bicot_conversation.json").read_text()).keys() == {"system_prompt", "instruction"}


def test_the_image_prompt_without_a_cot_holds_the_prompt_alone(byte_folder: Path):
    conversation = Conversation.from_pretrained(str(byte_folder))
    ids = conversation.image_prompt("a cat", "")
    assert text_of(conversation, ids) == "<bos><|User|>: a cat\n\n<|Assistant|>:<begin_of_image>"


def test_a_written_cot_reads_as_the_template_writes_an_answer(byte_folder: Path):
    conversation = Conversation.from_pretrained(str(byte_folder))
    ids = conversation.encode_cot("two cats, жук all")
    assert text_of(conversation, ids) == " two cats, жук all<eos>"
    assert conversation.decode_cot(ids) == "two cats, жук all"


@pytest.mark.parametrize("marker", MARKERS)
def test_no_special_token_leaks_from_words_into_a_prompt(byte_folder: Path, marker: str):
    conversation = Conversation.from_pretrained(str(byte_folder), instruction="{prompt}", system_prompt="")
    clean, dirty = f"a{' '}b", f"a{marker}b"
    np.testing.assert_array_equal(conversation.image_prompt(dirty, dirty), conversation.image_prompt(clean, clean))
    np.testing.assert_array_equal(conversation.semantic_prompt(dirty), conversation.semantic_prompt(clean))
    np.testing.assert_array_equal(conversation.encode_cot(dirty), conversation.encode_cot(clean))


def test_special_tokens_that_were_sampled_are_not_in_the_cots_words(tiny_folder: Path):
    conversation = Conversation.from_pretrained(str(tiny_folder))
    words = conversation.encode_cot("red circle")
    sampled = np.insert(words, 1, [conversation.boi_id, conversation.bos_id, conversation.pad_id])
    assert conversation.decode_cot(sampled) == "red circle"


def test_the_tiny_policys_own_template_is_used(tiny_folder: Path):
    conversation = Conversation.from_pretrained(str(tiny_folder))
    tokens = conversation.tokenizer.convert_ids_to_tokens(conversation.semantic_prompt("A red circle").tolist())
    assert tokens == [conversation.tokenizer.bos_token, "<|User|>", "a", "red", "circle", "<|Assistant|>"]
    drawn = conversation.tokenizer.convert_ids_to_tokens(conversation.image_prompt("a circle", "top left").tolist())
    assert drawn[1:] == ["<|User|>", "a", "circle", ".", "top", "left", "<|Assistant|>", "<begin_of_image>"]


def test_the_stored_words_come_back_and_given_ones_win(tiny_folder: Path, tmp_path: Path):
    assert Conversation.from_pretrained(str(tiny_folder)).format == ConversationFormat("", "{prompt}")
    given = Conversation.from_pretrained(str(tiny_folder), instruction="the picture {prompt}")
    assert given.format == ConversationFormat("", "the picture {prompt}")
    given.format.save(tmp_path)
    assert ConversationFormat.load(tmp_path) == given.format


def test_a_broken_format_file_is_named(tmp_path: Path):
    (tmp_path / "bicot_conversation.json").write_text('{"system": "x"}')
    with pytest.raises(ModelError, match=r"bicot_conversation\.json"):
        ConversationFormat.load(tmp_path)


def test_an_instruction_without_its_placeholder_is_refused():
    with pytest.raises(ValueError, match="placeholder"):
        ConversationFormat(instruction="draw it")


def test_a_prompt_that_is_too_long_names_its_tokens_and_the_limit(tiny_folder: Path):
    conversation = Conversation.from_pretrained(str(tiny_folder))
    ids = conversation.semantic_prompt("red " * 50)
    conversation.check_length(ids, 53, "red")
    with pytest.raises(PromptTooLong, match=r"53 tokens .* at most 52"):
        conversation.check_length(ids, 52, "red " * 50)


@pytest.mark.parametrize("prompt", ["a cat", "a cat that sits"])
def test_a_cot_that_does_not_fit_loses_its_end_but_a_prompt_never_does(byte_folder: Path, prompt: str):
    conversation = Conversation.from_pretrained(str(byte_folder))
    alone, whole = (len(conversation.image_prompt(prompt, cot)) for cot in ("", "on a mat"))
    cut = conversation.image_prompt(prompt, "on a mat", max_cot_tokens=whole - alone - 3)
    np.testing.assert_array_equal(cut, conversation.image_prompt(prompt, "on a"))
    nothing = conversation.image_prompt(prompt, "on a mat", max_cot_tokens=0)
    np.testing.assert_array_equal(nothing, conversation.image_prompt(prompt, ""))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("cot", ["on a mat \ufffd", "\ufffd" * 20, "😀" * 9, "on a mat 😀", "<|Us", "é\ufffd"])
def test_a_cot_that_is_cut_within_a_character_gets_shorter_until_it_fits(byte_folder: Path, cot: str):
    conversation = Conversation.from_pretrained(str(byte_folder))
    least, most = (len(conversation.image_prompt("a cat", text)) for text in ("", cot))
    for limit in range(most - least + 1):
        assert len(conversation.image_prompt("a cat", cot, max_cot_tokens=limit)) <= least + limit


def test_a_prompt_of_special_tokens_alone_is_left_out_with_its_reason(byte_folder: Path):
    reason_against = Conversation.from_pretrained(str(byte_folder)).reason_against(500)
    reason = reason_against(Prompt("p:0", "<|User|> <begin_of_image>"))
    assert reason == "prompt '<|User|> <begin_of_image>' is empty but for special tokens of the model"
    assert reason_against(Prompt("p:1", "a cat")) is None


def test_prompts_that_do_not_fit_are_left_out_with_their_reason(tiny_folder: Path):
    reason_against = Conversation.from_pretrained(str(tiny_folder)).reason_against(8)
    assert reason_against(Prompt("p:1", "a red circle")) is None
    reason = reason_against(Prompt("p:2", "a red circle top left the picture"))
    assert reason is not None
    assert "takes 10 tokens" in reason


def test_a_missing_folder_is_named():
    with pytest.raises(ModelError, match="no such folder"):
        Conversation.from_pretrained("./not-here")


def test_a_folder_that_is_no_janus_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        JanusCheckpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "multi_modality"}')
    with pytest.raises(ModelError, match=r"authors' own format; convert it once.*rollout\.convert_janus"):
        JanusCheckpoint(tmp_path)


def test_a_checkpoint_without_a_chat_template_is_refused(byte_folder: Path, tmp_path: Path):
    for file in byte_folder.iterdir():
        if file.name != "chat_template.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="no chat template"):
        Conversation.from_pretrained(str(tmp_path))


def test_words_that_the_tokenizer_reads_as_begin_of_image_are_the_datas_error(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    conversation = Conversation.from_pretrained(str(tiny_folder))
    encode = conversation.tokenizer.encode
    monkeypatch.setattr(
        conversation.tokenizer,
        "encode",
        lambda text, **options: [conversation.boi_id if "star" in text else word for word in encode(text, **options)],
    )
    assert conversation.image_prompt("a circle", "")[-1] == conversation.boi_id
    with pytest.raises(DataError, match=r"prompt 'a star': the tokenizer of .* as begin-of-image"):
        conversation.image_prompt("a star", "")
    reason = conversation.reason_against(64)(Prompt("p:1", "a star"))
    assert reason is not None
    assert "begin-of-image" in reason
