"""Predicted bytes against those of the real modules; what DeepSpeed and vLLM hold is measured in tests/integration."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, JanusVQVAEConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.janus.modeling_janus import JanusVQVAE

from cluster.planning.known_models import shape_of
from cluster.planning.memory import (
    BUFFER_ELEMENTS,
    GATHERED_ELEMENTS,
    decoder_activations,
    in_turns,
    learner_activations,
    learner_rank,
    rollout_worker,
)
from cluster.planning.model_shape import ModelShape
from cluster.session.gpu_plan import card_of, check_memory, describe_gpu_plan, gpu_loads, stage_advice
from configs.errors import PlacementError
from configs.load import load_config
from configs.schema import RunConfig
from learner.zero import engine as deepspeed_engine
from learner.zero import sharded_module
from tests.unit.cluster.planning.test_model_shape import PRO_7B

ROOT = Path(__file__).resolve().parents[4]


class PeakOfLiveTensors(TorchDispatchMode):
    """Adds up the storages of all tensors that operators have made and that somebody still holds."""

    def __init__(self) -> None:
        super().__init__()
        self._holders: dict[int, set[int]] = {}
        self._sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage().data_ptr()):
                holders = self._holders.setdefault(key, set())
                if id(tensor) not in holders:
                    self._sizes[key] = tensor.untyped_storage().nbytes()
                    holders.add(id(tensor))
                    weakref.finalize(tensor, self._release, key, id(tensor))
        self.peak = max(self.peak, sum(self._sizes.values()))
        return result

    def _release(self, key: int, holder: int) -> None:
        self._holders[key].discard(holder)
        if not self._holders[key]:
            del self._holders[key], self._sizes[key]


@pytest.mark.parametrize(
    ("vq", "patch_size"),
    [
        ({}, 16),  # Janus-Pro's own
        ({"base_channels": 32, "channel_multiplier": [1, 1, 2], "num_res_blocks": 1, "latent_channels": 16}, 4),
        ({"base_channels": 32, "channel_multiplier": [1, 1, 1], "num_res_blocks": 0, "latent_channels": 32}, 4),
        ({"base_channels": 64, "channel_multiplier": [1, 2, 4]}, 4),
        ({"base_channels": 32, "channel_multiplier": [2, 1], "num_res_blocks": 1}, 2),
        ({"base_channels": 32, "channel_multiplier": [1, 4], "num_res_blocks": 1}, 2),
    ],
)
def test_the_decoders_activations_are_predicted_within_one_percent(vq: dict[str, Any], patch_size: int) -> None:
    side, batch_size = 8, 2
    config = JanusVQVAEConfig(num_patches=side, num_embeddings=64, **vq)
    model = JanusVQVAE(config).eval()
    codes = torch.randint(64, (batch_size, side**2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), PeakOfLiveTensors() as measured:
        model.decode(codes)
    image = {"image_size": side * patch_size, "patch_size": patch_size}
    predicted = decoder_activations(ModelShape.of({"vq_config": config.to_dict(), "vision_config": image}), batch_size)
    told = f"{config.base_channels}, {list(config.channel_multiplier)}, {config.num_res_blocks}"
    print(f"| VQ decoder, two pictures: {told} | {predicted:,} | {measured.peak:,} |")
    assert predicted == pytest.approx(measured.peak, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16},  # Janus-Pro-1B
        {"hidden_size": 4096, "num_hidden_layers": 30, "num_attention_heads": 32},  # Janus-Pro-7B
        {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2},
        {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 24},
    ],
)
def test_the_kv_cache_is_as_large_as_that_of_transformers_for_two_streams(
    sizes: dict[str, int], dtype: torch.dtype
) -> None:
    num_streams, num_tokens = 2, 3
    config = LlamaConfig(vocab_size=8, intermediate_size=32, **sizes)
    with torch.device("meta"):  # shapes are all that counts here
        model = LlamaForCausalLM(config)
    cache = DynamicCache(config=config)
    model.to(dtype)(torch.zeros(num_streams, num_tokens, dtype=torch.int64, device="meta"), past_key_values=cache)
    measured = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    shape = ModelShape.of({"text_config": config.to_dict()})
    predicted = num_tokens * shape.text.kv_bytes_per_token(dtype.itemsize, num_streams)
    print(f"| KV cache, three tokens, two streams: {sizes}, {dtype} | {predicted:,} | {measured:,} |")
    assert predicted == measured


@pytest.mark.parametrize(
    ("patterns", "parts"),
    [
        (["model.language_model.*", "lm_head.*"], ("language_model", "lm_head")),
        (["lm_head.*"], ("lm_head",)),
        (["*"], ("drawing",)),
    ],
)
def test_what_does_not_train_has_no_gradient_and_no_optimizer_state(
    patterns: list[str], parts: tuple[str, ...]
) -> None:
    shape = ModelShape.of(PRO_7B.to_dict())
    config = RunConfig.model_validate(
        {
            "model": {"path": "a/b", "dtype": "bfloat16"},
            "data": {"train": "prompts.txt"},
            "rewards": [{"name": "hps"}],
            "learner": {"zero_stage": 1, "trainable": patterns},
        }
    )
    trained = sum(getattr(shape, part) for part in parts)
    needed = learner_rank(config, shape).parts
    assert (needed["gradients"], needed["optimizer"]) == (2 * trained, 12 * trained)
    assert needed["weights"] == 2 * shape.drawing


def config_of_7b(**learner: Any) -> RunConfig:
    settings = {"num_ranks": 4, "gpus_per_rank": 1, "gradient_checkpointing": True, "zero_stage": 2, **learner}
    return RunConfig.model_validate(
        {
            "model": {"path": "a/b", "dtype": "bfloat16"},
            "data": {"train": "prompts.txt"},
            "rewards": [{"name": "hps"}],
            "learner": settings,
            "rollout": {"gpus_per_worker": 1},
        }
    )


def of_7b(**learner: Any) -> dict[str, int]:
    config = config_of_7b(**learner)
    parts = learner_rank(config, ModelShape.of(PRO_7B.to_dict())).parts
    assert parts["activations"] == learner_activations(config, ModelShape.of(PRO_7B.to_dict()))
    return {name: round(size / 2**30, 1) for name, size in parts.items()}


def test_a_rank_of_the_7b_needs_what_a_hand_computation_says() -> None:
    # reviewed by hand for 4 ranks: GiB of bf16 weights, gradients, float32 master and moments, reference
    zero3 = of_7b(zero_stage=3, micro_batch_size=2)
    assert (zero3["weights"], zero3["gradients"], zero3["optimizer"], zero3["reference"]) == (3.4, 3.2, 19.3, 13.1)
    zero2 = of_7b(zero_stage=2, micro_batch_size=8)
    assert (zero2["weights"], zero2["gradients"], zero2["optimizer"], zero2["update"]) == (13.1, 3.2, 19.3, 6.4)


def test_a_sharded_reference_takes_a_rank_its_share_and_what_is_gathered() -> None:
    kinds = ("whole", "sharded", "offloaded")
    assert [of_7b(zero_stage=2, reference=kind)["reference"] for kind in kinds] == [12.9, 4.2, 0.9]
    assert GATHERED_ELEMENTS == sharded_module.GATHERED_ELEMENTS


def test_the_communication_buffer_is_the_one_that_deepspeed_is_given() -> None:
    assert BUFFER_ELEMENTS == deepspeed_engine._BUFFER_ELEMENTS


def test_stage_2_is_recommended_in_place_of_3_where_it_fits() -> None:
    shape, h100 = ModelShape.of(PRO_7B.to_dict()), card_of("h100")
    config = load_config(ROOT / "configs" / "janus_pro_7b_cluster.yaml")
    assert stage_advice(config, shape, h100) is None, "the shipped config is as it should be"
    third = config.model_copy(update={"learner": config.learner.model_copy(update={"zero_stage": 3})})
    advice = stage_advice(third, shape, h100)
    assert advice is not None
    assert "learner.zero_stage: 2 fits as well, in 44.7 GiB a rank" in advice
    assert advice in describe_gpu_plan(third, shape, h100)
    assert stage_advice(third, shape, card_of("rtx4090")) is None, "there it does not"


def in_turns_1b(**fields: Any) -> tuple[RunConfig, ModelShape]:
    shape = shape_of("deepseek-community/Janus-Pro-1B")
    assert shape is not None
    overrides = ["rollout.colocate=true", *(f"{name}={value}" for name, value in fields.items())]
    return load_config(ROOT / "configs" / "janus_pro_1b_1gpu.yaml", overrides), shape


def test_taking_turns_a_gpu_holds_the_larger_of_both_and_never_their_sum() -> None:
    config, shape = in_turns_1b()
    card = card_of("h100")
    need = in_turns(config, shape, card.memory_bytes)
    rank, worker = learner_rank(config, shape), rollout_worker(config, shape, card.memory_bytes)
    assert need.total == max(turn.total for turn in need.turns.values()) < rank.total + worker.total
    learning, drawing = need.turns["learning"].parts, need.turns["drawing"].parts
    assert "KV cache" not in learning
    assert not {"optimizer", "gradients", "activations"} & set(drawing)
    assert (drawing["learner's weights"], drawing["weights"]) == (rank.parts["weights"], worker.parts["weights"])
    assert learning["context"] == drawing["context"] == rank.parts["context"] + worker.parts["context"]
    both = rank.total + worker.total
    (load,) = gpu_loads(config, shape, card)
    (apart,) = gpu_loads(load_config(ROOT / "configs" / "janus_pro_1b_1gpu.yaml"), shape, card)
    assert apart.total - load.total == both - need.total
    plan = describe_gpu_plan(config, shape, card)
    assert "learner-0 + rollout-0, drawing: 34.3: weights 3.2, KV cache" in plan
    assert "learner-0 + rollout-0, learning: 36.8: weights 3.2, gradients" in plan
    assert "18.5 GiB of optimizer state while engines draw, 3.2 GiB of the engine's weights" in plan


@pytest.mark.parametrize(
    ("card", "fields", "remedy"),
    [
        ("h100", {"rollout.gpu_memory_utilization": 0.9}, r"lower rollout\.gpu_memory_utilization \(0\.9\)"),
        ("l40s", {}, "put rewards elsewhere, lower learner.micro_batch_size, or train with learner.lora"),
    ],
)
def test_the_remedy_is_for_the_turn_that_does_not_fit(card: str, fields: dict[str, float], remedy: str) -> None:
    config, shape = in_turns_1b(**fields)
    with pytest.raises(PlacementError, match=remedy):
        check_memory(config, shape, card_of(card))


def test_adapters_are_all_that_is_trained_and_an_engine_holds_them_joined() -> None:
    plain, lora = of_7b(zero_stage=2), of_7b(zero_stage=2, lora={"rank": 32})
    assert (lora["gradients"], lora["embedding"], lora["reference"]) == (0.0, 0.0, 0.0)
    assert lora["weights"] == pytest.approx(plain["weights"] + 0.1, abs=0.11)
    shape = ModelShape.of(PRO_7B.to_dict())
    sizes = [rollout_worker(config_of_7b(lora=lora), shape, None).parts["weights"] for lora in (None, {"rank": 32})]
    text = shape.text
    hidden, inner = text.hidden_size, text.intermediate_size
    joined = 3 * (hidden + 3 * hidden) + (hidden + hidden) + 2 * (hidden + 2 * inner) + (inner + hidden)
    assert sizes[1] - sizes[0] == 2 * text.num_layers * 32 * joined
