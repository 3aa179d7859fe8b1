"""Adapters beside vLLM's joined and split layers compute what each layer of the checkpoint does with its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.schema import LoraConfig
from rollout.vllm.model.adapters import Adapters, StagedAdapters, _add, _compiled
from rollout.weights.adapters import adapter_change, adapter_names, adapter_shapes

RANK, SCALE, HIDDEN = 3, 2.0, 8
OUTPUTS = {"q_proj": 8, "k_proj": 4, "v_proj": 4, "o_proj": 6}
LORA = LoraConfig(rank=RANK, alpha=RANK * SCALE, targets=("q_proj", "v_proj", "o_proj"))


def weights(seed: int = 0) -> dict[str, Tensor]:
    """Of base and adapters, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, outputs in OUTPUTS.items():
        lora_a, lora_b = adapter_names(name)
        shapes |= {name: (outputs, HIDDEN), lora_a: (RANK, HIDDEN), lora_b: (outputs, RANK)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def rank_of(tp_rank: int, weight: Tensor, sizes: list[int], kv_replicas: int) -> Any:
    """What of a vLLM layer the adapters look at, on one tensor-parallel rank."""
    layer = nn.Module()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    for name, value in {
        "tp_rank": tp_rank,
        "output_partition_sizes": sizes,
        "num_kv_head_replicas": kv_replicas,
    }.items():
        setattr(layer, name, value)
    return layer


def load(layer: Any, own_name: str, given: dict[str, Tensor]) -> Any:
    for original, place in _add(layer, own_name, LORA):
        for name in adapter_names(original):
            place.load(name, given[name])
    return layer


def expected(x: Tensor, name: str, given: dict[str, Tensor]) -> Tensor:
    lora_a, lora_b = (given[factor] for factor in adapter_names(name))
    change = adapter_change(x, lora_a, lora_b, SCALE) if name in LORA.targets else 0
    return nn.functional.linear(x, given[name]) + change


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_a_joined_layer_split_by_outputs(num_ranks: int) -> None:
    """At four ranks there are two for each head of keys and values."""
    given, x = weights(), torch.randn(5, HIDDEN, dtype=torch.float64)
    replicas = max(1, num_ranks // 2)
    for rank in range(num_ranks):
        parts = {}
        for name in ("q_proj", "k_proj", "v_proj"):
            part, of = (rank, num_ranks) if name == "q_proj" else (rank // replicas, num_ranks // replicas)
            parts[name] = slice(part * OUTPUTS[name] // of, (part + 1) * OUTPUTS[name] // of)
        weight = torch.cat([given[name][rows] for name, rows in parts.items()])
        sizes = [rows.stop - rows.start for rows in parts.values()]
        layer = load(rank_of(rank, weight, sizes, replicas), "qkv_proj", given)
        y = layer.quant_method.apply(layer, x)
        torch.testing.assert_close(y, torch.cat([expected(x, name, given)[:, rows] for name, rows in parts.items()], 1))


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_ranks_of_a_layer_split_by_inputs_add_up(num_ranks: int) -> None:
    given, x = weights(), torch.randn(5, HIDDEN, dtype=torch.float64)
    total = torch.zeros(5, OUTPUTS["o_proj"], dtype=torch.float64)
    for rank, columns in enumerate(torch.arange(HIDDEN).chunk(num_ranks)):
        layer = load(rank_of(rank, given["o_proj"][:, columns], [OUTPUTS["o_proj"]], 1), "o_proj", given)
        total += layer.quant_method.apply(layer, x[:, columns])
    torch.testing.assert_close(total, expected(x, "o_proj", given))


def test_a_later_version_takes_the_memory_of_the_one_before() -> None:
    layer = rank_of(0, weights()["o_proj"], [OUTPUTS["o_proj"]], 1)
    ((_, place),) = _add(layer, "o_proj", LORA)
    assert not layer.lora_b.any()
    addresses = layer.lora_a.data_ptr(), layer.lora_b.data_ptr()
    for seed in (1, 2):
        for name in adapter_names("o_proj"):
            place.load(name, weights(seed)[name])
        assert torch.equal(layer.lora_b, weights(seed)["o_proj.lora_B.weight"])
    assert (layer.lora_a.data_ptr(), layer.lora_b.data_ptr()) == addresses
    assert "lora_a" not in layer.state_dict()


def test_staged_adapters_wait_for_the_swap() -> None:
    layer = rank_of(0, weights()["o_proj"], [OUTPUTS["o_proj"]], 1)
    adapters = Adapters(nn.Module(), LORA)
    adapters._places.update(_add(layer, "o_proj", LORA))
    staged, given = StagedAdapters(adapters), weights(1)
    arriving = [(name, given[name].clone()) for name in (*adapter_names("o_proj"), "o_proj")]
    assert [name for name, _ in staged.take(arriving)] == ["o_proj"]
    for _, tensor in arriving:
        tensor.zero_()  # as a slot that is used again
    assert not layer.lora_b.any()
    staged.swap_in()
    assert torch.equal(layer.lora_b, given["o_proj.lora_B.weight"])


def test_under_torch_compile_it_is_one_operation() -> None:
    given, x = weights(), torch.randn(5, HIDDEN, dtype=torch.float64)
    layer = load(rank_of(0, given["o_proj"], [OUTPUTS["o_proj"]], 1), "o_proj", given)
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda rows: layer.quant_method.apply(layer, rows), backend=backend, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected(x, "o_proj", given))
    calls = [node.target for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert [str(target).partition(".default")[0] for target in calls] == ["bicot.adapted_linear"]
    arguments = (x, given["o_proj"], None, layer.lora_a, layer.lora_b, SCALE)
    torch.library.opcheck(_compiled, arguments, test_utils=("test_schema", "test_faketensor"))


def test_shapes_are_of_the_named_layers_of_the_language_model_alone() -> None:
    base = {
        "model.language_model.layers.0.self_attn.q_proj.weight": (8, 4),
        "model.language_model.layers.0.self_attn.k_proj.weight": (2, 4),
        "model.vision_model.layers.0.self_attn.q_proj.weight": (8, 4),
        "lm_head.weight": (9, 4),
    }
    layer = "model.language_model.layers.0.self_attn.q_proj"
    shapes = adapter_shapes(base, LoraConfig(rank=3, targets=("q_proj",)))
    assert shapes == {f"{layer}.lora_A.weight": (3, 4), f"{layer}.lora_B.weight": (8, 3)}
