"""Adapters against the weights they stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import JanusForConditionalGeneration

from configs.errors import ModelError
from configs.schema import LoraConfig, TinyJanusConfig
from learner.janus_policy import JanusPolicy
from learner.lora import PeftFormat, adapters_off, checkpoint_names, merged_weight
from learner.objective.phase_tokens import LogprobRequest, PhaseTokens
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.weights.adapters import (
    LoraLinear,
    adapter_change,
    adapter_names,
    add_adapters,
    named_adapters,
    rounded_sum,
)

CHUNK_BYTES = 2**12
"""Some tens of entries of a vocabulary at once."""


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(5, 7, bias=False), nn.Linear(7, 3, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(torch.tanh(self.up_proj(x)))


@pytest.fixture
def layers() -> TwoLayers:
    torch.manual_seed(0)
    return TwoLayers().double()


def trained(layers: TwoLayers) -> TwoLayers:
    """With adapters that have moved away from their start."""
    add_adapters(layers, LoraConfig(rank=2, alpha=6.0, targets=("up_proj", "down_proj")))
    with torch.no_grad():
        for layer in named_adapters(layers).values():
            layer.lora_b.normal_()
    return layers


def test_a_policy_starts_as_its_base(layers: TwoLayers) -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    before = layers(x)
    add_adapters(layers, LoraConfig(rank=2, targets=("up_proj",)))
    assert torch.equal(layers(x), before)
    assert [name for name, parameter in layers.named_parameters() if parameter.requires_grad] == [
        "up_proj.lora_a", "up_proj.lora_b", "down_proj.weight", "down_proj.bias",
    ]  # fmt: skip


def test_values_and_gradients_are_those_of_the_merged_weights(layers: TwoLayers) -> None:
    """The gradient of a factor is the merged weight's, by the chain rule: s Bᵀ dW and s dW Aᵀ."""
    layers = trained(layers)
    x = torch.randn(4, 5, dtype=torch.float64)
    output = layers(x)
    output.square().sum().backward()
    plain = TwoLayers().double()
    adapters = named_adapters(layers)
    with torch.no_grad():
        plain.down_proj.bias.copy_(layers.down_proj.base.bias)
        for name, layer in adapters.items():
            merged = merged_weight(layer.base.weight, layer.lora_a, layer.lora_b, layer.scale)
            plain.get_parameter(f"{name}.weight").copy_(merged)
    expected = plain(x)
    expected.square().sum().backward()
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)
    for name, layer in adapters.items():
        gradient = plain.get_parameter(f"{name}.weight").grad
        assert gradient is not None
        torch.testing.assert_close(layer.lora_a.grad, 3.0 * layer.lora_b.T @ gradient, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(layer.lora_b.grad, 3.0 * gradient @ layer.lora_a.T, rtol=1e-10, atol=1e-12)
        assert layer.base.weight.grad is None


def test_with_adapters_off_the_base_answers_and_they_come_back_after_an_error(layers: TwoLayers) -> None:
    x = torch.randn(4, 5, dtype=torch.float64)
    base = layers(x)
    layers = trained(layers)
    changed = layers(x)
    assert not torch.allclose(changed, base)
    with adapters_off(layers):
        assert torch.equal(layers(x), base)
    with pytest.raises(RuntimeError, match="no luck"), adapters_off(layers):
        raise RuntimeError("no luck")
    assert torch.equal(layers(x), changed)


def test_every_rank_starts_with_the_same_adapters_and_leaves_the_generator_alone(layers: TwoLayers) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    starts = []
    for seed in (1, 2):
        other = TwoLayers()
        torch.manual_seed(seed)
        add_adapters(other, LoraConfig(rank=2, targets=("up_proj",)))
        assert seed != 1 or torch.equal(torch.rand(1), expected)
        starts.append(named_adapters(other)["up_proj"].lora_a)
    assert torch.equal(*starts)


def test_merging_is_exact_up_to_the_rounding_of_the_weight() -> None:
    weight, lora_a, lora_b = (torch.randn(*shape).bfloat16() for shape in ((6, 4), (2, 4), (6, 2)))
    merged = merged_weight(weight, lora_a, lora_b, 0.5)
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged, (weight.float() + 0.5 * lora_b.float() @ lora_a.float()).bfloat16())


def test_a_target_that_no_layer_has_is_refused_by_name(layers: TwoLayers) -> None:
    with pytest.raises(ModelError, match=r"no linear layer named 'q_proj'"):
        add_adapters(layers, LoraConfig(targets=("up_proj", "q_proj")))


def test_a_policy_with_adapters_trains_them_alone_and_keeps_the_checkpoints_names(tmp_path: Path) -> None:
    shape = TinyJanusConfig(
        hidden_size=64, num_layers=2, num_heads=2, num_codes=32, image_size=16, patch_size=4, max_positions=64
    )
    save_random_tiny_janus(tmp_path / "tiny", shape, ["red", "star"])
    plain = JanusPolicy.load(str(tmp_path / "tiny"), torch.float32, logprob_chunk_bytes=CHUNK_BYTES)
    policy = JanusPolicy.load(
        str(tmp_path / "tiny"), torch.float32, logprob_chunk_bytes=CHUNK_BYTES, lora=LoraConfig(rank=2)
    )
    assert {name.rpartition(".")[2] for name, _ in policy.named_trainable_parameters()} == {"lora_a", "lora_b"}
    assert len(policy.adapters()) == 2 * 7
    assert all(isinstance(layer, LoraLinear) for layer in policy.adapters().values())
    language_model = [name for name, _ in plain.named_changing_parameters() if name.startswith("model.language_model.")]
    assert [name for name, _ in policy.named_changing_parameters()] == language_model
    assert {f"{name}.weight" for name in policy.adapters()} <= set(language_model)
    exported = [name for name, _ in policy.named_exported_parameters()]
    assert exported == [name for module in policy.adapters() for name in adapter_names(module)]
    assert plain.named_exported_parameters() == plain.named_changing_parameters()


def slope(changes: torch.Tensor, exact: torch.Tensor) -> float:
    """Of the regression of `changes` on `exact`, through 0."""
    return float((changes.double() * exact).sum() / exact.square().sum())


@pytest.mark.parametrize("num_rows", [1, 7, 256])
def test_a_bfloat16_layer_shows_the_first_small_changes_in_full(num_rows: int) -> None:
    """After ten steps at 1e-6; two ways that round before they add are shown beside it, and lose nearly all."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(1024, 512, bias=False, dtype=torch.bfloat16)
    layer.weight.data = (0.02 * torch.randn(512, 1024, generator=generator)).bfloat16()
    module = nn.ModuleDict({"up_proj": layer})
    add_adapters(module, LoraConfig(targets=("up_proj",)))
    adapted = named_adapters(module)["up_proj"]
    adapted.lora_b.data = (1e-5 * torch.randn(512, 32, generator=generator).sign()).bfloat16()
    x = torch.randn(256, 1024, generator=generator).bfloat16()
    with torch.no_grad():
        before = nn.functional.linear(x, adapted.base.weight)
        lora_a, lora_b = adapted.lora_a, adapted.lora_b
        exact = x.double() @ lora_a.double().T @ lora_b.double().T
        after = torch.cat([adapted(rows) for rows in x.split(num_rows)])
        added_later = before + nn.functional.linear(nn.functional.linear(x, lora_a), lora_b)
        merged = nn.functional.linear(x, merged_weight(adapted.base.weight, lora_a, lora_b, 1.0))
        product = x.float() @ adapted.base.weight.float().T
        as_on_a_gpu = rounded_sum(product, adapter_change(x, lora_a, lora_b, 1.0))
    assert slope(after - before, exact) == pytest.approx(1, abs=0.1)
    assert as_on_a_gpu.dtype == torch.bfloat16
    assert slope(as_on_a_gpu - product.bfloat16(), exact) == pytest.approx(1, abs=0.1)
    assert slope(added_later - before, exact) < 0.1
    assert slope(merged - before, exact) < 0.1


def test_names_without_adapters_are_exact_where_a_module_of_the_model_is_called_base() -> None:
    module = nn.ModuleDict({"base": nn.ModuleDict({"base": TwoLayers()}), "plain": TwoLayers()})
    names = [name for name, _ in module.named_parameters()]
    assert checkpoint_names(module) == {name: name for name in names}
    add_adapters(module, LoraConfig(rank=2, targets=("down_proj",)))
    assert sorted(checkpoint_names(module).values()) == sorted(names)
    assert checkpoint_names(module)["base.base.down_proj.base.bias"] == "base.base.down_proj.bias"
    assert not any("lora" in name for name in checkpoint_names(module))


def test_peft_loads_what_is_saved_and_computes_what_the_policy_does(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="only to see that it loads what we write")
    shape = TinyJanusConfig(hidden_size=64, num_layers=2, num_heads=2, num_codes=32, image_size=16, patch_size=4)
    save_random_tiny_janus(tmp_path / "tiny", shape, [f"word{index}" for index in range(40)])
    lora = LoraConfig(rank=2, alpha=6.0, targets=("q_proj", "down_proj"))
    policy = JanusPolicy.load(str(tmp_path / "tiny"), torch.float32, logprob_chunk_bytes=2**20, lora=lora)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in policy.adapters().values():
            layer.lora_b.normal_(generator=generator)
    adapters = {name: parameter.detach() for name, parameter in policy.named_exported_parameters()}
    PeftFormat(lora, str(tmp_path / "tiny")).save(tmp_path / "adapter", adapters)

    context, targets = torch.randint(20, 40, (2, 5), generator=generator), torch.randint(20, 40, (2, 7))
    tokens = PhaseTokens("cot", context, torch.tensor([5, 5]), targets, torch.ones_like(targets, dtype=torch.bool))
    base = JanusForConditionalGeneration.from_pretrained(tmp_path / "tiny", dtype=torch.float32).eval()
    assert peft.PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path == str(tmp_path / "tiny")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert len([name for name, _ in model.named_parameters() if "lora_" in name]) == len(adapters)
    with torch.no_grad():
        logits = model(input_ids=torch.cat([context, targets], 1)).logits[:, 4:-1]
        logprobs, _ = policy(LogprobRequest(tokens))
        with adapters_off(policy):
            unchanged, _ = policy(LogprobRequest(tokens))
    expected = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-4)
    assert (unchanged - expected).abs().max() > 0.1
    with pytest.raises(ModelError, match=r"holds adapters alone.* name the folder above"):
        JanusCheckpoint(tmp_path / "adapter")
