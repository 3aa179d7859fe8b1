"""Faults of an engine, put in on purpose, are found by the parity gate; a correct engine passes.

The engine is a loop of transformers' own model, which samples whole batches without a cache.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import JanusForConditionalGeneration

from configs.errors import LearnerError
from configs.schema import RunConfig, TinyJanusConfig
from learner.janus_policy import JanusPolicy
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.records import Trajectory, TrajectoryBatch
from tests.parity import judge as judge_batch
from tests.records import make_scored_group, make_trajectory

SHAPE = TinyJanusConfig(
    hidden_size=64, num_layers=3, num_heads=2, num_codes=32, image_size=16, patch_size=4, max_positions=64
)
GUIDANCE = 5.0
NUM_IMAGE = 16
NUM_COT = 8
NUM_OLD = 4
"""Image tokens that older weights have sampled, where the batch is stale."""
GROUP_SIZE = 64
NUM_GROUPS = 4
WORKERS = ("rollout-0", "rollout-1")


@dataclass(frozen=True)
class Setting:
    """How an engine samples, and with which weights."""

    weights: str = "right"
    dtype: str = "float32"
    temperature: float = 1.0
    guidance_scale: float = GUIDANCE


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity") / "tiny"
    save_random_tiny_janus(folder, SHAPE, [f"word{index}" for index in range(40)], weight_std=0.1)
    return folder


@functools.cache
def model_of(folder: Path, weights: str, dtype: str) -> JanusForConditionalGeneration:
    """weights: `right`; those of a `next` version; with those of one layer in another's place, `swapped`."""
    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    if weights == "next":
        return after_a_step(model, 2e-3 if dtype == "float32" else 1e-2)
    return swapped_layers(model) if weights == "swapped" else model


def swapped_layers(model: JanusForConditionalGeneration) -> JanusForConditionalGeneration:
    """A sync that gave the weights of one layer to another."""
    model = copy.deepcopy(model)
    layers = model.model.language_model.layers
    layers[1].load_state_dict(layers[0].state_dict())
    return model


def after_a_step(model: JanusForConditionalGeneration, size: float) -> JanusForConditionalGeneration:
    """The weights of the next version: each has moved by `size` one way or the other, as Adam's first step does."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            parameter.add_(size * signs.to(parameter.dtype))
    return model


@torch.no_grad()
def sample(model: JanusForConditionalGeneration, context: Tensor, phase: str, setting: Setting, seed: int):
    """Tokens [B, N] and their recorded log-probabilities: conditional, at temperature 1."""
    generator = torch.Generator().manual_seed(seed)
    embed, special = model.get_input_embeddings(), model.generation_config
    kept = (context == special.bos_token_id) | (context == special.generation_kwargs["boi_token_id"])
    streams = torch.cat([context, context.masked_fill(~kept, special.pad_token_id)]) if phase == "image" else context
    inputs, tokens, logprobs = embed(streams), [], []
    for _ in range(NUM_IMAGE if phase == "image" else NUM_COT):
        hidden = model.model.language_model(inputs_embeds=inputs).last_hidden_state[:, -1]
        if phase == "image":
            conditional, unconditional = model.model.generation_head(hidden).float().chunk(2)
            mixed = unconditional + setting.guidance_scale * (conditional - unconditional)
        else:
            conditional = mixed = model.lm_head(hidden).float()
        drawn = torch.multinomial((mixed / setting.temperature).softmax(-1), 1, generator=generator)
        tokens.append(drawn)
        logprobs.append(conditional.log_softmax(-1).gather(1, drawn))
        both = drawn.repeat(len(streams) // len(context), 1)
        step = model.prepare_embeddings_for_image_generation(both) if phase == "image" else embed(both)
        inputs = torch.cat([inputs, step], 1)
    return torch.cat(tokens, 1).numpy().astype(np.int32), torch.cat(logprobs, 1).numpy()


@functools.cache
def sampled(folder: Path, setting: Setting, seed: int):
    """Contexts, tokens and log-probabilities of both phases, of one worker."""
    model, rng = model_of(folder, setting.weights, setting.dtype), np.random.default_rng(seed)
    size, special = GROUP_SIZE * NUM_GROUPS // 2, model.generation_config
    words = rng.integers(9, 40, (size, 6))
    cot = np.concatenate([np.full((size, 1), special.bos_token_id), words], 1)
    image = np.concatenate([cot, np.full((size, 1), special.generation_kwargs["boi_token_id"])], 1)
    return {
        phase: (context, *sample(model, torch.from_numpy(context), phase, setting, seed))
        for phase, context in (("cot", cot), ("image", image))
    }


def roll(folder: Path, setting: Setting, version: int, staleness: int, seed: int) -> list[Trajectory]:
    """Of one worker, whose engine says that its weights are `version`. With staleness, all but the pictures' ends are
    of older weights, and were recorded as such."""
    both, noise = sampled(folder, setting, seed), np.random.default_rng(seed).normal(0, 1, NUM_IMAGE)
    (cot_context, cots, cot_logprobs), (image_context, codes, image_logprobs) = both["cot"], both["image"]
    image_versions = np.where(np.arange(NUM_IMAGE) < NUM_OLD, version - staleness, version).astype(np.int32)
    # What older weights gave must not be compared.
    cot_noise, image_noise = noise[:NUM_COT] * (staleness > 0), noise * (image_versions < version)
    return [
        replace(
            make_trajectory(),
            semantic_prompt_ids=cot_context[row].astype(np.int32),
            cot_ids=cots[row],
            cot_logprobs=(cot_logprobs[row] + cot_noise).astype(np.float32),
            image_prompt_ids=image_context[row].astype(np.int32),
            image_ids=codes[row],
            image_logprobs=(image_logprobs[row] + image_noise).astype(np.float32),
            guidance_scale=setting.guidance_scale,
            cot_versions=np.full(NUM_COT, version - staleness, np.int32),
            image_versions=image_versions,
        )
        for row in range(len(cots))
    ]


def batch_of(folder: Path, sound: Setting, suspect: Setting, version: int, staleness: int) -> TrajectoryBatch:
    """Two groups of one worker, and two of the other."""
    rolled = (roll(folder, sound, version, staleness, 10), roll(folder, suspect, version, staleness, 20))
    groups = []
    for sequence in range(NUM_GROUPS):
        own = rolled[sequence % 2][sequence // 2 * GROUP_SIZE :][:GROUP_SIZE]
        group = make_scored_group(sequence, [0.0, 1.0] * (GROUP_SIZE // 2))
        rollout = replace(group.rollout, trajectories=tuple(own), worker_id=WORKERS[sequence % 2])
        groups.append(replace(group, rollout=rollout))
    return TrajectoryBatch(0, tuple(groups))


def config_of(folder: Path, dtype: str, **algorithm: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"path": str(folder), "dtype": dtype},
            "data": {"train": "shapes:train"},
            "rewards": [{"name": "shapes"}],
            "algorithm": {"groups_per_step": NUM_GROUPS, "group_size": GROUP_SIZE, **algorithm},
            "rollout": {"guidance_scale": GUIDANCE, "max_cot_tokens": NUM_COT},
            "learner": {"micro_batch_size": GROUP_SIZE, "zero_stage": 1},
        }
    )


def judge(folder: Path, sound: Setting, suspect: Setting, version: int, staleness: int) -> dict[str, float]:
    """The gate's metrics of a batch of two workers, as a learner with the first one's weights sees it first; it raises
    what the gate raises."""
    config, batch = config_of(folder, sound.dtype), batch_of(folder, sound, suspect, version, staleness)
    policy = JanusPolicy(
        copy.deepcopy(model_of(folder, sound.weights, sound.dtype)),
        special_ids=JanusCheckpoint(folder).special_ids,
        logprob_chunk_bytes=2**20,
    )
    return judge_batch(config, policy, batch, version)


CASES = pytest.mark.parametrize(
    ("dtype", "staleness"), [("float32", 0), ("float32", 1), ("float32", 4), ("bfloat16", 1)]
)


@CASES
def test_a_correct_engine_passes_at_every_staleness(folder: Path, dtype: str, staleness: int) -> None:
    right = Setting(dtype=dtype)
    metrics = judge(folder, right, right, staleness + 1, staleness)
    assert 0 < metrics["parity/mean_abs/image"] < metrics["parity/limit/image"] / 2
    assert metrics["parity/guidance_scale"] == pytest.approx(GUIDANCE, rel=0.05)
    assert metrics["parity/temperature/image"] == pytest.approx(1.0, rel=0.05)
    assert ("parity/mean_abs/cot" in metrics) == (staleness == 0)


@pytest.mark.proof
def test_a_correct_engine_of_24_layers_passes_in_bfloat16_and_a_layer_in_anothers_place_does_not(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """As many layers as Janus-Pro-1B has: rounding adds up, and the limit with it."""
    deep = tmp_path_factory.mktemp("parity") / "deep"
    shape = SHAPE.model_copy(update={"num_layers": 24})
    save_random_tiny_janus(deep, shape, [f"word{index}" for index in range(40)], weight_std=0.1)
    metrics = judge(deep, Setting(dtype="bfloat16"), Setting(dtype="bfloat16"), 0, 0)
    for phase in ("cot", "image"):
        assert 0 < metrics[f"parity/mean_abs/{phase}"] < metrics[f"parity/limit/{phase}"] / 2
    with pytest.raises(LearnerError, match="differ: worker rollout-1 by"):
        judge(deep, Setting(dtype="bfloat16"), Setting("swapped", "bfloat16"), 0, 0)


@CASES
def test_an_engine_that_missed_a_version_is_found_and_named(folder: Path, dtype: str, staleness: int) -> None:
    with pytest.raises(LearnerError, match="differ: worker rollout-1 by") as caught:
        judge(folder, Setting("next", dtype), Setting("right", dtype), staleness + 1, staleness)
    assert "rollout-0" not in str(caught.value)


@CASES
def test_weights_of_another_layer_are_found(folder: Path, dtype: str, staleness: int) -> None:
    with pytest.raises(LearnerError, match="differ: worker rollout-1 by"):
        judge(folder, Setting("right", dtype), Setting("swapped", dtype), staleness, staleness)


@CASES
@pytest.mark.parametrize(
    ("temperature", "scale", "message"),
    [
        (0.9, 1.0, r"of worker rollout-1 show a temperature of the image tokens of 0\.[89]"),
        (1.0, 1.1, r"of worker rollout-1 show a .*guidance scale of 5\.[3-7]"),
        (1.0, 0.9, r"of worker rollout-1 show a .*guidance scale of 4\.[3-7]"),
    ],
)
def test_another_temperature_or_guidance_is_found_in_the_tokens_though_the_log_probabilities_agree(
    folder: Path, dtype: str, staleness: int, temperature: float, scale: float, message: str
) -> None:
    wrong = Setting("right", dtype, temperature, scale * GUIDANCE)
    with pytest.raises(LearnerError, match=message) as caught:
        judge(folder, Setting("right", dtype), wrong, staleness, staleness)
    assert "differ" not in str(caught.value)
    assert "rollout-0" not in str(caught.value)
