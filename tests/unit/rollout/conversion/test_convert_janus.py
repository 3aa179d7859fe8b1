"""rollout.convert_janus, against what the authors' own code computed (tests/data/janus_original)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, JanusForConditionalGeneration

from learner.warm_start.vq_training import encode_pixels
from rollout.conversion.configs import original_config
from rollout.conversion.folders import KEPT, UNUSED_WEIGHTS
from rollout.conversion.names import to_hugging_face, to_original
from rollout.conversion.weights import read_weights
from rollout.convert_janus import main
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.prompts import Conversation
from tests.original_janus import DATA, LAYOUT, RECORD, TRAINED, draw_greedily, original_tensors, write_original


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authors") / "janus"
    write_original(folder)
    return folder


@pytest.fixture(scope="module")
def converted(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "janus"
    assert main([str(original), str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in bfloat16 as it was once trained and converted back, and now converted again."""
    folder = tmp_path_factory.mktemp("trained")
    tensors = write_original(folder / "authors", dtype=torch.bfloat16)
    tensors |= load_file(DATA / "trained.safetensors")
    save_file(tensors, folder / "authors" / "model.safetensors")
    assert main([str(folder / "authors"), str(folder / "janus")]) == 0
    return folder / "janus"


@pytest.fixture(scope="module")
def model(converted: Path) -> JanusForConditionalGeneration:
    loaded = JanusForConditionalGeneration.from_pretrained(converted, dtype=torch.float32)
    return loaded.eval()


@torch.inference_mode()
def image_logits(model: JanusForConditionalGeneration, embeddings: torch.Tensor) -> torch.Tensor:
    """float32 [B, num_codes] behind the last position; embeddings: float32 [B, N, D]."""
    hidden = model.model.language_model(inputs_embeds=embeddings).last_hidden_state[:, -1]
    logits: torch.Tensor = model.model.generation_head(hidden)
    return logits


@pytest.mark.parametrize("case", RECORD["prompts"], ids=["long", "short"])
def test_text_and_image_logits_are_the_authors(model: JanusForConditionalGeneration, case: dict) -> None:
    ids = torch.tensor([case["prompt_ids"]])
    with torch.inference_mode():
        text = model.lm_head(model.model.language_model(input_ids=ids).last_hidden_state[0, -1])
    np.testing.assert_allclose(text.numpy(), case["text_logits"], atol=2e-5)
    both = ids.repeat(2, 1)
    both[1, 1:-1] = 0  # the padding token, as in the authors' loop
    logits = image_logits(model, model.get_input_embeddings()(both))
    np.testing.assert_allclose(logits[0].numpy(), case["first_conditional"], atol=2e-5)
    np.testing.assert_allclose(logits[1].numpy(), case["first_unconditional"], atol=2e-5)


@pytest.mark.parametrize("case", RECORD["prompts"], ids=["long", "short"])
def test_the_converted_model_draws_the_authors_pictures(model: JanusForConditionalGeneration, case: dict) -> None:
    ids = torch.tensor([case["prompt_ids"]]).repeat(2, 1)
    ids[1, 1:-1] = 0
    embeddings = model.get_input_embeddings()(ids)
    codes: list[int] = []
    with torch.inference_mode():
        for _ in range(64):
            conditional, unconditional = image_logits(model, embeddings)
            codes.append(int((unconditional + 5 * (conditional - unconditional)).argmax()))
            drawn = model.prepare_embeddings_for_image_generation(torch.tensor([[codes[-1]], [codes[-1]]]))
            embeddings = torch.cat([embeddings, drawn.reshape(2, 1, -1)], dim=1)
        pixels = model.model.vqmodel.decode(torch.tensor([codes]))[0]
    assert codes == case["codes"]
    picture = ((pixels.permute(1, 2, 0) + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)
    difference = picture.reshape(-1).int() - torch.tensor(case["picture"], dtype=torch.int32)
    assert int(difference.abs().max()) <= 1  # a value at a rounding edge


@pytest.mark.parametrize("case", TRAINED["prompts"], ids=["long", "short"])
async def test_a_trained_checkpoint_draws_here_what_the_authors_code_draws_from_it(
    trained: Path, case: dict[str, Any]
) -> None:
    codes, picture = await draw_greedily(trained, case["prompt_ids"])
    assert codes == case["codes"]
    before = next(each for each in RECORD["prompts"] if each["prompt_ids"] == case["prompt_ids"])
    assert codes != before["codes"], "training changed it"
    difference = picture.reshape(-1).astype(int) - np.array(case["picture"])
    assert abs(difference).max() <= 1  # a value at a rounding edge


def test_what_the_converted_model_sees_is_what_the_authors_sees(model: JanusForConditionalGeneration) -> None:
    picture = torch.from_numpy(np.random.default_rng(7).standard_normal((1, 3, 32, 32), dtype=np.float32))
    with torch.inference_mode():
        features = model.model.aligner(model.model.vision_model(picture).last_hidden_state)[0]
        codes = encode_pixels(model.model.vqmodel, picture).flatten()
    np.testing.assert_allclose(features[::16].numpy(), RECORD["vision_features"], atol=1e-4)
    assert codes.tolist() == RECORD["encoded_codes"]


@pytest.mark.parametrize("roles", ["<|User|>,<|Assistant|>", "User,Assistant"])
def test_the_chat_template_renders_what_the_authors_code_renders(original: Path, tmp_path: Path, roles: str) -> None:
    assert main([str(original), str(tmp_path / "hf"), "--roles", roles]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    cases = [case for case in RECORD["chat"] if case["roles"] == roles.split(",")]
    assert len(cases) == 8
    for case in cases:
        messages = [{"role": "user", "content": case["user"]}]
        if case["answer"]:
            messages.append({"role": "assistant", "content": case["answer"]})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not case["answer"])
        system = case["system"] + "\n\n" if case["system"] else ""
        assert system + text.removeprefix(tokenizer.bos_token) == case["text"]


def test_bicot_reads_the_special_ids_and_the_template_of_a_converted_folder(converted: Path) -> None:
    ids = JanusCheckpoint(converted).special_ids
    assert (ids.pad, ids.bos, ids.eos, ids.begin_of_image) == (0, 1, 2, 4)
    conversation = Conversation.from_pretrained(str(converted))
    prompt = conversation.image_prompt("word1 word2", "word3")
    assert prompt[0] == 1
    assert prompt[-1] == 4


@pytest.mark.parametrize(
    ("pickled", "shard_size", "dtype"),
    [(False, "5GB", torch.float32), (True, "5GB", torch.bfloat16), (True, "4MB", torch.float32)],
)
def test_a_checkpoint_comes_back_bit_for_bit(
    tmp_path: Path, pickled: bool, shard_size: str, dtype: torch.dtype
) -> None:
    tensors = write_original(tmp_path / "authors", pickled=pickled, shard_size=shard_size, dtype=dtype)
    assert main([str(tmp_path / "authors"), str(tmp_path / "hf"), "--max-shard-size", "3MB"]) == 0
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists()
    assert main([str(tmp_path / "hf"), str(tmp_path / "back")]) == 0
    back = read_weights(tmp_path / "back")
    assert back.keys() == tensors.keys()
    assert all(back[name].dtype == dtype and torch.equal(back[name], tensors[name]) for name in tensors)
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "authors" / name).read_bytes()


def test_a_trained_folder_takes_what_it_lacks_from_the_checkpoint_it_began_with(
    original: Path, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = tmp_path / "trained"
    JanusForConditionalGeneration.from_pretrained(converted).save_pretrained(trained)
    AutoTokenizer.from_pretrained(converted).save_pretrained(trained)
    assert main([str(trained), str(tmp_path / "back"), "--like", str(original)]) == 0
    assert "left out" not in capsys.readouterr().out
    back, tensors = read_weights(tmp_path / "back"), original_tensors()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    # Without it the authors' code could not build this one's vision tower: only Janus-Pro's own have names there.
    assert main([str(trained), str(tmp_path / "alone")]) == 2
    assert "only Janus-Pro's own vision tower" in capsys.readouterr().err


def test_janus_pros_own_config_comes_back_as_the_authors_write_it() -> None:
    from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

    text = LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=24, num_attention_heads=16,
                       vocab_size=102400, max_position_embeddings=16384)  # fmt: skip
    config = JanusConfig(text_config=text, vision_config=JanusVisionConfig(), vq_config=JanusVQVAEConfig())
    written = original_config(config)
    # As in deepseek-ai/Janus-Pro-1B's config.json.
    assert written["aligner_config"]["params"] == {
        "depth": 2, "input_dim": 1024, "n_embed": 2048, "projector_type": "mlp_gelu",
    }  # fmt: skip
    assert written["gen_head_config"]["params"] == {
        "image_token_embed": 2048, "image_token_size": 16384, "n_embed": 2048,
    }  # fmt: skip
    assert written["gen_vision_config"] == {
        "cls": "VQ-16", "model_type": "gen_vision", "params": {"image_token_size": 16384, "n_embed": 8},
    }  # fmt: skip
    assert written["vision_config"]["params"] == {
        "image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1,
    }  # fmt: skip
    assert written["language_config"]["hidden_size"] == 2048


def test_every_tensor_of_the_authors_has_a_name_in_both_formats() -> None:
    tensors = original_tensors()
    renamed, unused = to_hugging_face(tensors)
    assert {name.split(".")[2] for name in unused} == {"attn_pool", "codebook_used"}
    back = to_original(renamed)
    assert back.keys() | unused.keys() == LAYOUT["names"].keys()


def test_what_is_no_whole_checkpoint_is_refused_by_name(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    tensors = write_original(broken)
    del tensors["gen_embed.weight"]
    save_file(tensors, broken / "model.safetensors")
    assert main([str(broken), str(tmp_path / "hf")]) == 2
    assert "1 tensors are missing (model.generation_embeddings.weight)" in capsys.readouterr().err
    save_file({**tensors, "gen_embed.weight": torch.zeros(4, 8), "extra": torch.zeros(1)}, broken / "model.safetensors")
    assert main([str(broken), str(tmp_path / "hf")]) == 2
    assert "'extra' is none of Janus's" in capsys.readouterr().err
    (broken / "model.safetensors").write_bytes(b"not weights")
    assert main([str(broken), str(tmp_path / "hf")]) == 2
    assert "model.safetensors cannot be read" in capsys.readouterr().err
    (broken / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert main([str(broken), str(tmp_path / "hf")]) == 2
    assert "model_type 'llama', not 'multi_modality'" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()
    assert main([str(original), str(original)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([str(original), str(tmp_path / "x"), "--roles", "User"]) == 2


def test_a_pickle_that_holds_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    write_original(tmp_path / "evil", pickled=True)
    torch.save({"x": Evil()}, tmp_path / "evil" / "pytorch_model.bin")
    assert main([str(tmp_path / "evil"), str(tmp_path / "hf")]) == 2
    assert "pytorch_model.bin cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_training_refuses_the_authors_format_with_the_command_that_converts_it(original: Path) -> None:
    from configs.errors import ModelError

    with pytest.raises(ModelError, match=r"python -m rollout\.convert_janus"):
        JanusCheckpoint(original)


def test_unused_tensors_are_kept_beside_the_weights(converted: Path) -> None:
    assert (converted / KEPT / UNUSED_WEIGHTS).exists()
    assert not any("attn_pool" in name for name in read_weights(converted))
