"""Folders written for a trained model, held against transformers' own: the starting model, loaded again, with the
trained weights put into it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import JanusForConditionalGeneration

from configs.errors import LearnerError
from configs.schema import LoraConfig, TinyJanusConfig
from learner.export import PretrainedWriter
from learner.janus_policy import JanusPolicy, load_janus
from learner.lora import PeftFormat
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.prompts.conversation import ConversationFormat
from rollout.weights.adapters import adapter_names

SHAPE = TinyJanusConfig(hidden_size=32, num_layers=1, num_codes=8, image_size=8, max_positions=64)
FORMAT = ConversationFormat("plan", "draw {prompt}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_random_tiny_janus(folder, SHAPE, ["red", "star"])
    return folder


def make_writer(folder: Path, lora: LoraConfig | None = None) -> tuple[JanusPolicy, PretrainedWriter]:
    janus = load_janus(str(folder), torch.float32)
    policy = JanusPolicy.load(str(folder), torch.float32, logprob_chunk_bytes=2**20, lora=lora, janus=janus)
    peft = None if lora is None else PeftFormat(lora, str(folder))
    return policy, PretrainedWriter(janus, policy, folder, FORMAT, peft)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_folder_is_what_transformers_writes_of_the_model_loaded_again(
    folder: Path, tmp_path: Path, lora: LoraConfig | None
) -> None:
    policy, writer = make_writer(folder, lora)
    changed = {
        name: torch.randn_like(parameter, requires_grad=False) for name, parameter in policy.named_exported_parameters()
    }
    again = JanusForConditionalGeneration.from_pretrained(folder)
    weights, start = dict(changed), again.state_dict()
    for module, layer in policy.adapters().items():
        lora_a, lora_b = (weights.pop(name) for name in adapter_names(module))
        weights[f"{module}.weight"] = start[f"{module}.weight"] + layer.scale * (lora_b @ lora_a)
    assert not again.load_state_dict(weights, strict=False).unexpected_keys
    again.save_pretrained(tmp_path / "transformers")
    for name in ("first", "second"):  # what the writer holds is good for any number of folders
        writer.write(changed, tmp_path / name)
        for file in (tmp_path / "transformers").iterdir():
            assert (tmp_path / name / file.name).read_bytes() == file.read_bytes(), file.name
        assert ConversationFormat.load(tmp_path / name) == FORMAT
        assert (tmp_path / name / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
        assert (tmp_path / name / "adapter").exists() == (lora is not None)


def test_the_policy_keeps_the_weights_that_the_writer_lets_go(folder: Path) -> None:
    policy, writer = make_writer(folder)
    start = load_janus(str(folder), torch.float32).state_dict()
    assert all(torch.equal(tensor, start[name]) for name, tensor in policy.named_changing_parameters())
    held = sum(parameter.numel() for parameter in writer._janus.parameters())
    assert held == sum(tensor.numel() for tensor in start.values()) - sum(
        parameter.numel() for _, parameter in policy.named_changing_parameters()
    )


def test_tied_weights_are_both_written_with_what_was_trained(folder: Path, tmp_path: Path) -> None:
    tied = JanusForConditionalGeneration.from_pretrained(folder)
    tied.lm_head.weight = tied.model.language_model.embed_tokens.weight
    policy = JanusPolicy.load(
        str(folder), torch.float32, logprob_chunk_bytes=2**20, trainable=["model.language_model.*"], janus=tied
    )
    changed = {name: torch.full_like(parameter, 0.5) for name, parameter in policy.named_changing_parameters()}
    assert "lm_head.weight" not in changed
    PretrainedWriter(tied, policy, folder, FORMAT).write(changed, tmp_path / "out")
    loaded = JanusForConditionalGeneration.from_pretrained(tmp_path / "out", tie_word_embeddings=True)
    assert loaded.lm_head.weight.unique().tolist() == [0.5]
    assert loaded.model.language_model.embed_tokens.weight.unique().tolist() == [0.5]


def test_weights_that_the_starting_model_lacks_or_needs_are_named_and_nothing_is_written(
    folder: Path, tmp_path: Path
) -> None:
    policy, writer = make_writer(folder)
    changed = dict(policy.named_changing_parameters())
    strange = {**changed, "lm_head.lora_a": torch.zeros(2, 2)}
    with pytest.raises(LearnerError, match=r"/tiny: lm_head\.lora_a is either trained and not a weight of it"):
        writer.write(strange, tmp_path / "out")
    del changed["lm_head.weight"]
    with pytest.raises(LearnerError, match=r"lm_head\.weight"):
        writer.write(changed, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
