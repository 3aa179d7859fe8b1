"""The learner on one and two DeepSpeed ranks, against a plain loop of transformers' model and torch's AdamW."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, JanusForConditionalGeneration

from configs.schema import RunConfig, TinyJanusConfig
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.prompts import Conversation
from rollout.prompts.conversation import ConversationFormat
from rollout.records import ScoredGroup, Trajectory, TrajectoryBatch
from rollout.weights.adapters import adapter_names
from tests.integration.learner_ranks import Job, JobResult, all_equal, run_jobs
from tests.records import asked_tokens, make_request, make_scored_group

pytestmark = pytest.mark.timeout(600)

ADAPTED = ("q_proj.weight", "down_proj.weight")
LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "down_proj"]}
SOME = ["model.language_model.layers.1.*", "model.generation_head.proj_out.*"]
"""Patterns of parameters to train in place of the whole language model."""
VARIANTS = {
    "policy_loss": "gspo",
    "loss_normalization": "sequence",
    "advantage_normalization": "batch",
    "reward_normalization": "group",
    "old_logprobs": "recompute",
    "mismatch_correction": "icepop",
    "mismatch_low": 0.95,
    "mismatch_high": 1.05,
    "cot_weight": 0.5,
    "kl_coef_image": 0.0,
    "entropy_coef": 0.01,
}
LANGUAGE_MODEL = ("model.language_model.", "lm_head.")
LAYERS = "model.language_model.layers."
NO_STATE, NO_MODEL = "no-state", "no-model"
"""Checkpoints that a rank cannot write."""
NUM_STEPS = 3
GROUP_SIZE = 4
LR = 1e-3
KL_COEF = 0.05
CLIP = 0.2
SHAPE = TinyJanusConfig(
    hidden_size=128, num_layers=2, num_heads=2, num_codes=96, image_size=16, patch_size=4, max_positions=64
)
"""Large enough that ZeRO-3 partitions its matrices and both heads."""


@dataclass(frozen=True)
class PlainRun:
    """What the plain loop saw."""

    losses: list[float]
    grad_norms: list[float]
    weights: list[dict[str, Tensor]]
    """After each step."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_random_tiny_janus(folder, SHAPE, [f"word{index}" for index in range(80)], weight_std=0.04)
    ConversationFormat("plan", "draw {prompt}").save(folder)
    return folder


def trajectory_logprobs(
    model: JanusForConditionalGeneration, trajectory: Trajectory, guided: bool = False
) -> tuple[Tensor, Tensor]:
    """[N_cot] and [N_image] by transformers' own forward: one unpadded sequence, all logits."""
    prompt, cot = (torch.from_numpy(ids).long()[None] for ids in (trajectory.semantic_prompt_ids, trajectory.cot_ids))
    logits = model(input_ids=torch.cat([prompt, cot], 1)).logits[0, prompt.shape[1] - 1 : -1]
    cot_logprobs = logits.log_softmax(-1).gather(-1, cot[0][:, None])[:, 0]
    prompt, codes = (torch.from_numpy(ids).long()[None] for ids in (trajectory.image_prompt_ids, trajectory.image_ids))
    logits = _image_logits(model, prompt, codes)
    if guided:
        special = model.generation_config
        kept = (prompt == special.bos_token_id) | (prompt == special.generation_kwargs["boi_token_id"])
        unconditional = _image_logits(model, prompt.masked_fill(~kept, special.pad_token_id), codes)
        logits = unconditional + trajectory.guidance_scale * (logits - unconditional)
    return cot_logprobs, logits.log_softmax(-1).gather(-1, codes[0][:, None])[:, 0]


def _image_logits(model: JanusForConditionalGeneration, prompt: Tensor, codes: Tensor) -> Tensor:
    """[N_image, num_codes] of one stream."""
    inputs = torch.cat([model.get_input_embeddings()(prompt), model.prepare_embeddings_for_image_generation(codes)], 1)
    return model.model.generation_head(model.model(inputs_embeds=inputs).last_hidden_state[0, prompt.shape[1] - 1 : -1])


@pytest.fixture(scope="module")
def batches(folder: Path) -> list[TrajectoryBatch]:
    """Ragged random tokens, with behaviour log-probabilities near the starting policy's."""
    model = JanusForConditionalGeneration.from_pretrained(folder)
    return [_random_batch(model, step) for step in range(NUM_STEPS)]


@pytest.fixture(scope="module")
def guided_batches(folder: Path) -> list[TrajectoryBatch]:
    """The same tokens, with behaviour log-probabilities near those of the guided mix."""
    model = JanusForConditionalGeneration.from_pretrained(folder)
    return [_random_batch(model, step, guided=True) for step in range(NUM_STEPS)]


@pytest.fixture(scope="module")
def exact_batch(folder: Path) -> TrajectoryBatch:
    """With the starting policy's own log-probabilities, as an engine without a fault records them."""
    return _random_batch(JanusForConditionalGeneration.from_pretrained(folder), step=0, noise=0.0)


def naive_batch(folder: Path) -> TrajectoryBatch:
    """With the log-probabilities of the guided mix, as an engine without a fault records them."""
    return _random_batch(JanusForConditionalGeneration.from_pretrained(folder), step=0, guided=True, noise=0.0)


def _random_batch(
    model: JanusForConditionalGeneration, step: int, guided: bool = False, noise: float = 0.1
) -> TrajectoryBatch:
    rng = np.random.default_rng(step)
    groups = []
    for sequence in (2 * step, 2 * step + 1):
        group = make_scored_group(sequence, rng.random(GROUP_SIZE).round(2).tolist())
        prompt = " ".join(f"word{number}" for number in rng.integers(80, size=rng.integers(1, 6)))
        trajectories = tuple(_random_trajectory(model, prompt, rng, step, guided, noise) for _ in range(GROUP_SIZE))
        request = make_request(sequence, GROUP_SIZE, prompt)
        groups.append(replace(group, rollout=replace(group.rollout, request=request, trajectories=trajectories)))
    return TrajectoryBatch(step, tuple(groups))


def _random_trajectory(
    model: JanusForConditionalGeneration, prompt: str, rng: np.random.Generator, step: int, guided: bool, noise: float
) -> Trajectory:
    conversation = Conversation.from_pretrained(model.name_or_path)
    cot_ids = rng.integers(9, 80, rng.integers(1, 9)).astype(np.int32)
    ids = {
        **asked_tokens(conversation, prompt, cot_ids),
        "image_ids": rng.integers(0, SHAPE.num_codes, 16).astype(np.int32),
    }
    empty = np.zeros(0, np.float32)
    older = max(0, step - 1)
    versions = np.full(16, step, np.int32)
    versions[:9] = older  # new weights came while the picture was drawn
    trajectory = Trajectory(
        **ids,
        cot_logprobs=empty,
        image_logprobs=empty,
        cot_text="",
        guidance_scale=2.0,
        seed=0,
        cot_versions=np.full(len(ids["cot_ids"]), older, np.int32),
        image_versions=versions,
    )
    with torch.no_grad():
        cot, image = trajectory_logprobs(model, trajectory, guided)
    noisy = [(values.numpy() + rng.normal(0, noise, len(values))).astype(np.float32) for values in (cot, image)]
    return replace(trajectory, cot_logprobs=noisy[0], image_logprobs=noisy[1])


@pytest.fixture(scope="module")
def plain(folder: Path, batches: list[TrajectoryBatch]) -> PlainRun:
    return train_plainly(folder, batches)


def train_plainly(
    folder: Path,
    batches: list[TrajectoryBatch],
    *,
    guided: bool = False,
    num_mini_batches: int = 1,
    num_updates: int = 1,
    recompute: bool = False,
) -> PlainRun:
    """The same training, written down as the paper states it: one trajectory and one token at a time."""
    model = JanusForConditionalGeneration.from_pretrained(folder)
    reference = JanusForConditionalGeneration.from_pretrained(folder)
    trained = {name: p for name, p in model.named_parameters() if name.startswith(LANGUAGE_MODEL)}
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, weight_decay=0.0)
    run = PlainRun([], [], [])
    for batch in batches:
        if recompute:
            batch = _with_logprobs_of(model, batch, guided=guided)
        else:
            batch = _with_logprobs_of(model, batch, batch.step, guided)
        losses, grad_norms = [], []
        size = len(batch.groups) // num_mini_batches
        for start in [*range(0, len(batch.groups), size)] * num_updates:
            loss = _plain_batch_loss(model, reference, batch.groups[start : start + size], guided)
            optimizer.zero_grad()
            loss.backward()
            grad_norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)))
            optimizer.step()
            losses.append(float(loss.detach()))
        run.losses.append(sum(losses) / len(losses))
        run.grad_norms.append(sum(grad_norms) / len(grad_norms))
        run.weights.append({name: parameter.detach().clone() for name, parameter in trained.items()})
    return run


@torch.no_grad()
def _with_logprobs_of(
    model: JanusForConditionalGeneration, batch: TrajectoryBatch, version: int | None = None, guided: bool = False
) -> TrajectoryBatch:
    """The batch as if `model` had sampled it, or those of its tokens that are of this version."""
    groups = []
    for group in batch.groups:
        trajectories = []
        for old in group.rollout.trajectories:
            cot, image = (logprobs.numpy() for logprobs in trajectory_logprobs(model, old, guided))
            if version is not None:
                cot = np.where(old.cot_versions == version, cot, old.cot_logprobs)
                image = np.where(old.image_versions == version, image, old.image_logprobs)
            trajectories.append(replace(old, cot_logprobs=cot, image_logprobs=image))
        groups.append(replace(group, rollout=replace(group.rollout, trajectories=tuple(trajectories))))
    return replace(batch, groups=tuple(groups))


def _plain_batch_loss(
    model: JanusForConditionalGeneration,
    reference: JanusForConditionalGeneration,
    groups: Sequence[ScoredGroup],
    guided: bool,
) -> Tensor:
    loss = torch.zeros(())
    for group in groups:
        advantages = (group.rewards - group.rewards.mean()) / (group.rewards.std(ddof=1) + 1e-4)
        for trajectory, advantage in zip(group.rollout.trajectories, advantages, strict=True):
            loss = loss + _plain_loss(model, reference, trajectory, float(advantage), guided)
    return loss / sum(t.num_tokens() for group in groups for t in group.rollout.trajectories)


def _plain_loss(
    model: JanusForConditionalGeneration,
    reference: JanusForConditionalGeneration,
    trajectory: Trajectory,
    advantage: float,
    guided: bool,
) -> Tensor:
    with torch.no_grad():
        fixed = trajectory_logprobs(reference, trajectory, guided)
    loss = torch.zeros(())
    behaviours = (trajectory.cot_logprobs, trajectory.image_logprobs)
    for current, base, behaviour in zip(trajectory_logprobs(model, trajectory, guided), fixed, behaviours, strict=True):
        for p, r, q in zip(current, base, behaviour, strict=True):
            ratio = (p - float(q)).exp()
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
            loss = loss - (surrogate - KL_COEF * ((r - p).exp() - (r - p) - 1))
    return loss


def make_config(
    folder: Path,
    dtype: str = "float32",
    *,
    algorithm: Mapping[str, object] | None = None,
    parity: float | None = 1.0,
    rollout: Mapping[str, object] | None = None,
    **learner: object,
) -> RunConfig:
    """parity: the gate's limit; the batches' behaviour log-probabilities are noisy on purpose, and no policy has
    sampled their tokens."""
    return RunConfig.model_validate(
        {
            "run": {"steps": NUM_STEPS},
            "model": {"path": str(folder), "dtype": dtype},
            "data": {"train": "shapes:train"},
            "rewards": [{"name": "shapes"}],
            "algorithm": {
                "groups_per_step": 2,
                "group_size": GROUP_SIZE,
                "kl_coef": KL_COEF,
                "clip_ratio_low": CLIP,
                "clip_ratio_high": CLIP,
                **(algorithm or {}),
            },
            "learner": {"micro_batch_size": 2, "lr": LR, "logprob_chunk_mb": 1, **learner},
            "rollout": rollout or {},
            "weight_sync": {"bucket_mb": 1},
            "parity": {"max_abs": parity, "max_sampling_error": 1e9},
        }
    )


def spoil(batch: TrajectoryBatch) -> TrajectoryBatch:
    """One behaviour log-probability of minus infinity: an infinite ratio, which the clip hides from the loss."""
    group = batch.groups[1]
    broken = group.rollout.trajectories[2]
    broken = replace(broken, image_logprobs=np.where(np.arange(16) == 3, -np.inf, broken.image_logprobs))
    trajectories = (*group.rollout.trajectories[:2], broken, *group.rollout.trajectories[3:])
    return replace(
        batch, groups=(batch.groups[0], replace(group, rollout=replace(group.rollout, trajectories=trajectories)))
    )


def updating_config(folder: Path, **learner: object) -> RunConfig:
    """Four optimizer updates a batch, against log-probabilities of the learner's own."""
    algorithm = {"old_logprobs": "recompute"}
    return make_config(folder, algorithm=algorithm, mini_batches=2, updates_per_batch=2, **learner)


def jobs_on_one_rank(
    folder: Path,
    batches: list[TrajectoryBatch],
    guided_batches: list[TrajectoryBatch],
    exact_batch: TrajectoryBatch,
    directory: Path,
) -> list[Job]:
    first, second, third = batches
    checkpoint, deeper = directory / "checkpoint-1", directory / "deeper"
    save_random_tiny_janus(deeper, SHAPE.model_copy(update={"num_layers": 3}), [f"word{index}" for index in range(80)])
    ConversationFormat("plan", "draw {prompt}").save(deeper)
    zero1 = make_config(folder, zero_stage=1)
    return [
        *(Job(f"zero{stage}", make_config(folder, zero_stage=stage), batches, broadcasts=True) for stage in range(4)),
        *(Job(f"micro{size}", make_config(folder, micro_batch_size=size), batches) for size in (1, 8)),
        Job("until checkpoint", zero1, [first, second], checkpoint_to=checkpoint, batches_while_writing=[third]),
        Job("after checkpoint", zero1, [third], load_from=checkpoint / "state", checkpoint_to=directory / "saved"),
        Job("offloaded", zero1, [first, second], checkpoint_to=directory / "offloaded", offloads=True),
        Job("after offloaded", zero1, [third], load_from=directory / "offloaded" / "state"),
        Job("offloaded2", make_config(folder, zero_stage=2), batches, offloads=True),
        Job("bfloat16 offloaded", make_config(folder, "bfloat16", zero_stage=2), batches, offloads=True),
        Job("offloaded0", make_config(folder, zero_stage=0), [first], offloads=True),
        Job("other stage", make_config(folder, zero_stage=2), [third], load_from=checkpoint / "state"),
        Job("fewer ranks", make_config(folder, zero_stage=0), [third], load_from=directory / "checkpoint-2" / "state"),
        Job("other model", make_config(deeper, zero_stage=1), [third], load_from=checkpoint / "state"),
        Job("other roles", make_config(folder, rollout={"roles": ["User", "Assistant"]}), [first]),
        Job("no checkpoint", zero1, [third], load_from=directory / "nothing"),
        *(
            Job(f"spoiled{stage}", make_config(folder, zero_stage=stage), [first, spoil(second), third])
            for stage in (0, 2, 3)
        ),
        Job("bfloat16", make_config(folder, dtype="bfloat16", zero_stage=2), batches, broadcasts=True),
        Job("repeated", make_config(folder), [first] * 6),
        Job("guided", make_config(folder, algorithm={"policy": "guided"}), guided_batches),
        Job("updates", updating_config(folder), batches),
        Job("exact", make_config(folder, parity=None), [exact_batch]),
        Job("not exact", make_config(folder, parity=None), [first]),
        Job("naive", make_config(folder, parity=None, algorithm={"old_logprobs": "guided"}), [naive_batch(folder)]),
        Job("variants", make_config(folder, algorithm=VARIANTS, mini_batches=2, updates_per_batch=2), batches),
        Job(
            "some",
            make_config(folder, zero_stage=2, trainable=SOME, gradient_checkpointing=True),
            [first],
            checkpoint_to=directory / "some",
        ),
        Job(
            "lora",
            make_config(folder, lora=LORA, rollout={"image_prompt": "verbatim"}),
            batches,
            checkpoint_to=directory / "lora",
        ),
        Job("lora half", make_config(folder, lora=LORA), batches[:2], checkpoint_to=directory / "lora-2"),
        Job("lora resumed", make_config(folder, lora=LORA), batches[2:], load_from=directory / "lora-2" / "state"),
        Job("semantic", make_config(folder, algorithm={"optimize": "semantic"}), [first]),
        *(
            Job(f"image{stage}", make_config(folder, zero_stage=stage, algorithm={"optimize": "image"}), [first])
            for stage in (0, 3)
        ),
    ]


def jobs_on_two_ranks(
    folder: Path, batches: list[TrajectoryBatch], guided_batches: list[TrajectoryBatch], directory: Path
) -> list[Job]:
    first, second, third = batches
    checkpoint = directory / "checkpoint-2"
    zero1, zero3 = (make_config(folder, zero_stage=stage, num_ranks=2) for stage in (1, 3))
    return [
        *(Job(f"zero{stage}", make_config(folder, zero_stage=stage, num_ranks=2), batches) for stage in (0, 2)),
        Job("offloaded2", make_config(folder, zero_stage=2, num_ranks=2), batches, offloads=True),
        Job(
            "zero3",
            make_config(folder, zero_stage=3, num_ranks=2, gradient_checkpointing=True),
            batches,
            broadcasts=True,
        ),
        Job("until checkpoint", zero3, [first, second], checkpoint_to=checkpoint, batches_while_writing=[third]),
        Job("after checkpoint", zero3, [third], load_from=checkpoint / "state", checkpoint_to=directory / "saved-2"),
        Job("spoiled3", zero3, [first, spoil(second), third]),
        *(
            Job(how, make_config(folder, zero_stage=2, num_ranks=2, reference=how), batches[:2])
            for how in ("sharded", "offloaded")
        ),
        Job("guided", make_config(folder, zero_stage=3, num_ranks=2, algorithm={"policy": "guided"}), guided_batches),
        Job("lora", make_config(folder, zero_stage=3, num_ranks=2, gradient_checkpointing=True, lora=LORA), batches),
        Job("updates", updating_config(folder, zero_stage=3, num_ranks=2, gradient_checkpointing=True), batches),
        *(Job(name, zero1, [], checkpoint_to=directory / name) for name in (NO_STATE, NO_MODEL, "whole")),
    ]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For checkpoints; in two of their folders something is in the way of what one rank writes."""
    directory = tmp_path_factory.mktemp("learner")
    # A folder in the place of the second rank's file, which is the only one that cannot write.
    (directory / NO_STATE / "state" / "rank_00001.safetensors").mkdir(parents=True)
    (directory / NO_MODEL).mkdir()
    (directory / NO_MODEL / ".model.new").write_text("in the place of the folder that is written, and then renamed")
    return directory


@pytest.fixture(scope="module")
def results(
    folder: Path,
    batches: list[TrajectoryBatch],
    guided_batches: list[TrajectoryBatch],
    exact_batch: TrajectoryBatch,
    directory: Path,
) -> dict[int, Mapping[str, JobResult]]:
    """Results by number of ranks and name of the job."""
    two_ranks = run_jobs(jobs_on_two_ranks(folder, batches, guided_batches, directory), 2, directory)
    one_rank = run_jobs(jobs_on_one_rank(folder, batches, guided_batches, exact_batch, directory), 1, directory)
    return {1: one_rank, 2: two_ranks}


@pytest.mark.parametrize(
    ("num_ranks", "job"),
    [
        *((1, name) for name in ("zero0", "zero1", "zero2", "zero3", "micro1", "micro8")),
        *((2, name) for name in ("zero0", "zero2", "zero3")),
    ],
)
def test_losses_gradient_norms_and_weights_equal_a_plain_loop(
    results: dict[int, Mapping[str, JobResult]], plain: PlainRun, folder: Path, num_ranks: int, job: str
) -> None:
    """Losses within 1e-5, gradient norms within 1e-4 of themselves, and each weight's change since the start within
    1 % of its norm: Adam divides by the gradient, so an element whose gradient is all but 0 may go either way."""
    assert_same_training(results[num_ranks][job], plain, folder)


def assert_same_training(result: JobResult, plain: PlainRun, folder: Path) -> None:
    start = dict(JanusForConditionalGeneration.from_pretrained(folder).named_parameters())
    assert [report.metrics["loss"] for report in result.reports] == pytest.approx(plain.losses, abs=1e-5)
    assert [report.metrics["grad_norm"] for report in result.reports] == pytest.approx(plain.grad_norms, rel=1e-4)
    assert [report.weight_version for report in result.reports] == [1, 2, 3]
    for weights, expected in zip(result.weights, plain.weights, strict=True):
        assert weights.keys() == expected.keys()
        for name, tensor in weights.items():
            change = (expected[name] - start[name]).norm()
            assert (tensor - expected[name]).norm() <= 0.01 * change, name


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_guided_policy_trains_as_a_plain_loop_through_both_streams(
    results: dict[int, Mapping[str, JobResult]],
    guided_batches: list[TrajectoryBatch],
    folder: Path,
    num_ranks: int,
) -> None:
    assert_same_training(results[num_ranks]["guided"], train_plainly(folder, guided_batches, guided=True), folder)


def test_mini_batches_and_several_updates_are_those_of_a_plain_loop_and_make_one_version_a_batch(
    results: dict[int, Mapping[str, JobResult]], batches: list[TrajectoryBatch], folder: Path
) -> None:
    plain = train_plainly(folder, batches, num_mini_batches=2, num_updates=2, recompute=True)
    for num_ranks in (1, 2):
        result = results[num_ranks]["updates"]
        assert_same_training(result, plain, folder)
        assert [report.metrics["lr"] for report in result.reports] == [LR] * 3
        assert result.reports[0].metrics["ratio/max"] > 1.0


@pytest.mark.parametrize("how", ["sharded", "offloaded"])
def test_a_reference_that_is_sharded_gives_what_a_whole_one_gives(
    results: dict[int, Mapping[str, JobResult]], how: str
) -> None:
    sharded, whole = results[2][how], results[2]["zero2"]
    assert sharded.error is None
    for number in range(2):
        assert sharded.reports[number].metrics["kl"] == whole.reports[number].metrics["kl"]
        assert all_equal(sharded.weights[number], whole.weights[number])
    assert whole.reports[1].metrics["kl"] > 0


def test_the_parity_gate_reads_next_to_nothing_where_engine_and_learner_agree(
    results: dict[int, Mapping[str, JobResult]],
) -> None:
    metrics = results[1]["exact"].reports[0].metrics
    for phase in ("cot", "image"):
        assert metrics[f"parity/mean_abs/{phase}"] <= 1e-4
        assert metrics[f"parity/max_abs/{phase}"] <= 1e-3
        assert metrics[f"parity/kl/{phase}"] <= 1e-6


def test_the_parity_gate_ends_a_run_whose_engine_and_learner_disagree_before_it_learns(
    results: dict[int, Mapping[str, JobResult]],
) -> None:
    error = results[1]["not exact"].error
    assert error is not None
    assert "parity gate, weight version 0" in error
    assert "(allowed: 0.001)" in error
    assert "raise parity.max_abs" in error
    assert not results[1]["not exact"].reports


def test_a_batch_that_was_asked_with_other_roles_ends_the_run_before_it_learns(
    results: dict[int, Mapping[str, JobResult]],
) -> None:
    error = results[1]["other roles"].error
    assert error is not None
    assert "prompts were asked in other tokens than the learner's: worker rollout-0" in error
    assert not results[1]["other roles"].reports


@pytest.mark.parametrize(("num_ranks", "job"), [(1, "zero0"), (1, "bfloat16"), (1, "guided"), (2, "zero3")])
def test_a_token_of_the_learners_own_version_has_a_ratio_of_exactly_one(
    results: dict[int, Mapping[str, JobResult]], num_ranks: int, job: str
) -> None:
    """The recorded log-probabilities are off by 0.1 nats on average. At step 0 the learner's weights sampled all
    tokens, at step 2 a few of each picture's."""
    first, _, last = (report.metrics for report in results[num_ranks][job].reports)
    assert first["ratio/min"] == first["ratio/max"] == 1.0
    assert last["ratio/min"] < 0.95
    assert last["ratio/max"] > 1.05


def test_the_naive_denominator_of_the_studies_passes_the_gate_and_shows_in_the_ratios(
    results: dict[int, Mapping[str, JobResult]],
) -> None:
    """A guided log-probability under a conditional one: not 1, though nothing has changed yet."""
    naive, exact = (results[1][job].reports[0].metrics for job in ("naive", "exact"))
    assert not any(key.startswith("parity/") for key in naive)
    assert exact["ratio/max"] == exact["ratio/min"] == 1.0
    assert naive["ratio/max"] > 1.1
    assert naive["ratio/min"] < 0.9


def test_only_parameters_whose_names_match_train_and_engines_get_whole_parts(
    results: dict[int, Mapping[str, JobResult]], folder: Path, directory: Path
) -> None:
    start = JanusForConditionalGeneration.from_pretrained(folder).state_dict()
    exported = results[1]["some"].weights[0]
    assert set(exported) == {
        name for name in start if name.startswith(("model.language_model.", "model.generation_head."))
    }
    changed = {name for name, tensor in exported.items() if not torch.equal(tensor, start[name])}
    assert changed == {name for name in start if any(fnmatchcase(name, pattern) for pattern in SOME)}
    saved = JanusForConditionalGeneration.from_pretrained(directory / "some" / "model").state_dict()
    assert all(torch.equal(tensor, exported.get(name, start[name])) for name, tensor in saved.items())


def test_adapters_train_with_the_base_as_reference_and_leave_the_learner_alone(
    results: dict[int, Mapping[str, JobResult]], plain: PlainRun, folder: Path, directory: Path
) -> None:
    start = JanusForConditionalGeneration.from_pretrained(folder).state_dict()
    modules = {name.removesuffix(".weight") for name in start if LAYERS in name and name.endswith(ADAPTED)}
    for num_ranks in (1, 2):
        result = results[num_ranks]["lora"]
        assert result.reports[0].metrics["loss"] == pytest.approx(plain.losses[0], abs=1e-5)
        assert result.reports[0].metrics["kl"] == 0.0
        assert result.reports[2].metrics["kl"] > 0.0
        assert result.weights[-1].keys() == {name for module in modules for name in adapter_names(module)}
    # The two ranks went the same way as the one.
    changes, others = (weight_changes(results[num_ranks]["lora"].weights[-1], modules) for num_ranks in (1, 2))
    for name, change in changes.items():
        assert change.any()
        assert (others[name] - change).norm() <= 0.02 * change.norm(), name


def weight_changes(adapters: Mapping[str, torch.Tensor], modules: set[str]) -> dict[str, torch.Tensor]:
    """By name of the weight: alpha / rank B A."""
    pairs = {module: [adapters[name] for name in adapter_names(module)] for module in modules}
    return {f"{module}.weight": 8.0 / 4 * lora_b @ lora_a for module, (lora_a, lora_b) in pairs.items()}


def test_a_resumed_learner_goes_on_with_its_adapters_beside_the_base(
    results: dict[int, Mapping[str, JobResult]],
) -> None:
    assert results[1]["lora resumed"].resumed_step == 2
    assert all_equal(results[1]["lora resumed"].weights[-1], results[1]["lora"].weights[-1])


def test_a_saved_model_has_the_adapters_merged_and_beside_it(
    results: dict[int, Mapping[str, JobResult]], folder: Path, directory: Path
) -> None:
    start = JanusForConditionalGeneration.from_pretrained(folder).state_dict()
    adapters = results[1]["lora"].weights[-1]
    model = directory / "lora" / "model"
    assert ConversationFormat.load(model) == ConversationFormat("plan", "draw {prompt}", None, "verbatim")
    beside = load_file(model / "adapter" / "adapter_model.safetensors")
    assert beside.keys() == {f"base_model.model.{name}" for name in adapters}
    assert all(torch.equal(beside[f"base_model.model.{name}"], tensor) for name, tensor in adapters.items())
    changes = weight_changes(adapters, {name.rpartition(".lora_")[0] for name in adapters})
    saved = JanusForConditionalGeneration.from_pretrained(model).state_dict()
    assert saved.keys() == start.keys()
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, start[name] + changes[name] if name in changes else start[name])


def test_all_variants_together_make_finite_steps_that_change_the_policy(
    results: dict[int, Mapping[str, JobResult]],
) -> None:
    result = results[1]["variants"]
    assert [report.skipped for report in result.reports] == [None] * 3
    assert all(math.isfinite(report.metrics["loss"]) for report in result.reports)
    assert not all_equal(result.weights[0], result.weights[2])
    assert result.reports[0].metrics["mismatch_fraction"] > 0


def test_semantic_training_counts_and_trains_the_cots_tokens_alone(
    results: dict[int, Mapping[str, JobResult]], batches: list[TrajectoryBatch]
) -> None:
    metrics = results[1]["semantic"].reports[0].metrics
    assert metrics["tokens"] == sum(len(t.cot_ids) for group in batches[0].groups for t in group.rollout.trajectories)
    assert math.isfinite(metrics["entropy/cot"])
    assert math.isnan(metrics["entropy/image"])


@pytest.mark.parametrize("job", ["image0", "image3"])
def test_image_training_leaves_the_head_of_the_text_alone(
    results: dict[int, Mapping[str, JobResult]], folder: Path, job: str
) -> None:
    result = results[1][job]
    start = JanusForConditionalGeneration.from_pretrained(folder).state_dict()
    assert result.reports[0].skipped is None
    assert result.reports[0].metrics["tokens"] == 2 * GROUP_SIZE * 16
    changed = {name for name, tensor in result.weights[0].items() if not torch.equal(tensor, start[name])}
    assert "lm_head.weight" not in changed
    assert any("mlp" in name for name in changed)


def test_what_is_exported_trains_and_is_cut_into_buckets(
    results: dict[int, Mapping[str, JobResult]], folder: Path
) -> None:
    result = results[1]["zero0"]
    start = JanusForConditionalGeneration.from_pretrained(folder).state_dict()
    exported = result.weights[-1]
    assert set(exported) == {name for name in start if name.startswith(LANGUAGE_MODEL)}
    # The embedding's pad row and words that no batch holds keep their value; all matrices move.
    assert all(not torch.equal(tensor, start[name]) for name, tensor in exported.items())
    assert result.num_buckets > 1


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_resumed_run_goes_on_bit_exactly(results: dict[int, Mapping[str, JobResult]], num_ranks: int) -> None:
    jobs = results[num_ranks]
    # On two ranks the uninterrupted run recomputes activations, which changes no bit of them.
    whole = jobs["zero1" if num_ranks == 1 else "zero3"]
    resumed = jobs["after checkpoint"]
    assert resumed.resumed_step == 2
    assert resumed.reports[0].weight_version == 3
    assert resumed.reports[0].metrics["loss"] == whole.reports[2].metrics["loss"]
    assert all_equal(resumed.weights[0], whole.weights[2])


def test_a_checkpoint_goes_on_at_another_zero_stage_bit_exactly(results: dict[int, Mapping[str, JobResult]]) -> None:
    resumed, whole = results[1]["other stage"], results[1]["zero1"]
    assert resumed.reports[0].metrics["loss"] == whole.reports[2].metrics["loss"]
    assert all_equal(resumed.weights[0], whole.weights[2])


def test_a_checkpoint_of_two_ranks_goes_on_on_one(results: dict[int, Mapping[str, JobResult]]) -> None:
    """Loss within 1e-5, each weight's step within 1 % of its norm: two ranks add gradients up in another order."""
    resumed, whole = results[1]["fewer ranks"], results[2]["zero3"]
    assert resumed.resumed_step == 2
    assert resumed.reports[0].metrics["loss"] == pytest.approx(whole.reports[2].metrics["loss"], abs=1e-5)
    for name, tensor in resumed.weights[0].items():
        change = (whole.weights[2][name] - whole.weights[1][name]).norm()
        assert (tensor - whole.weights[2][name]).norm() <= 0.01 * change, name


@pytest.mark.parametrize(
    ("num_ranks", "job", "plain"),
    [(1, "offloaded2", "zero2"), (2, "offloaded2", "zero2"), (1, "bfloat16 offloaded", "bfloat16")],
)
def test_an_optimizer_that_waits_in_host_memory_between_steps_makes_the_same_ones(
    results: dict[int, Mapping[str, JobResult]], num_ranks: int, job: str, plain: str
) -> None:
    assert_equal_training(results[num_ranks][job], results[num_ranks][plain])


def test_a_checkpoint_of_an_offloaded_optimizer_is_that_of_one_that_is_not(
    results: dict[int, Mapping[str, JobResult]], directory: Path
) -> None:
    assert_equal_training(results[1]["after offloaded"], results[1]["after checkpoint"])
    file = Path("state") / "rank_00000.safetensors"
    waiting, plain = (load_file(directory / name / file) for name in ("offloaded", "checkpoint-1"))
    assert waiting.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in waiting.items())


def test_a_stage_whose_optimizer_cannot_be_offloaded_is_named(results: dict[int, Mapping[str, JobResult]]) -> None:
    assert results[1]["offloaded0"].error == (
        "the optimizer of learner.zero_stage 0 cannot be offloaded; set it to 1 or 2"
    )


def assert_equal_training(result: JobResult, other: JobResult) -> None:
    """Bit for bit."""
    measured = [
        [{key: report.metrics[key] for key in ("loss", "grad_norm")} for report in each.reports]
        for each in (result, other)
    ]
    assert measured[0] == measured[1]
    assert all(all_equal(mine, theirs) for mine, theirs in zip(result.weights, other.weights, strict=True))


def test_a_checkpoint_of_another_model_is_refused(results: dict[int, Mapping[str, JobResult]]) -> None:
    error = results[1]["other model"].error
    assert error is not None
    assert "do not train the same parameters" in error


def test_a_missing_checkpoint_is_refused(results: dict[int, Mapping[str, JobResult]]) -> None:
    error = results[1]["no checkpoint"].error
    assert error is not None
    assert "cannot resume" in error
    assert "nothing" in error


@pytest.mark.parametrize(("num_ranks", "job"), [(1, "spoiled0"), (1, "spoiled2"), (1, "spoiled3"), (2, "spoiled3")])
def test_a_step_that_is_not_finite_is_skipped_by_name_and_the_next_one_is_made(
    results: dict[int, Mapping[str, JobResult]], num_ranks: int, job: str
) -> None:
    result = results[num_ranks][job]
    assert [report.skipped for report in result.reports] == [None, "non-finite gradient", None]
    assert [report.weight_version for report in result.reports] == [1, 2, 3]
    assert [report.metrics["skipped_steps"] for report in result.reports] == [0, 1, 1]
    assert all_equal(result.weights[0], result.weights[1])
    assert not all_equal(result.weights[1], result.weights[2])
    assert all(bool(tensor.isfinite().all()) for tensor in result.weights[2].values())


@pytest.mark.parametrize("name", ["saved", "saved-2"])
def test_the_saved_folder_is_a_whole_checkpoint_with_the_trained_weights(
    results: dict[int, Mapping[str, JobResult]], directory: Path, folder: Path, name: str
) -> None:
    trained = results[1 if name == "saved" else 2]["after checkpoint"].weights[0]
    model = directory / name / "model"
    saved = JanusForConditionalGeneration.from_pretrained(model).state_dict()
    start = JanusForConditionalGeneration.from_pretrained(folder).state_dict()
    assert saved.keys() == start.keys()
    for key, tensor in saved.items():
        assert torch.equal(tensor, trained.get(key, start[key])), key
    assert AutoTokenizer.from_pretrained(model).chat_template
    assert ConversationFormat.load(model) == ConversationFormat("plan", "draw {prompt}")
    assert {path.name for path in folder.iterdir()} == {path.name for path in model.iterdir()}
    assert {path.name for path in (directory / name).iterdir()} == {"model", "state"}


def test_a_rank_that_cannot_write_leaves_no_other_waiting_and_the_next_checkpoint_is_whole(
    results: dict[int, Mapping[str, JobResult]], directory: Path
) -> None:
    state, model, whole = (results[2][name].faults for name in (NO_STATE, NO_MODEL, "whole"))
    place = f"{directory / NO_STATE}/state"
    assert (state[1] or "").startswith(f"cannot write the learner's state to {place}: rank 1: ")
    assert state[0] is None, "each rank writes for itself"
    assert (model[0] or "").startswith(f"cannot write the model to {directory / NO_MODEL}/model: rank 0: ")
    assert whole == [None, None]
    assert json.loads((directory / "whole" / "state" / "learner.json").read_text())["num_parts"] == 2
    assert (directory / "whole" / "model" / "config.json").is_file()


def test_bfloat16_follows_float32_loosely_and_ships_bfloat16(results: dict[int, Mapping[str, JobResult]]) -> None:
    half, full = results[1]["bfloat16"], results[1]["zero2"]
    losses = [[report.metrics["loss"] for report in result.reports] for result in (half, full)]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    assert {tensor.dtype for tensor in half.weights[-1].values()} == {torch.bfloat16}


def test_training_raises_the_logprob_of_what_scored_high_above_that_of_what_scored_low(
    results: dict[int, Mapping[str, JobResult]], batches: list[TrajectoryBatch], folder: Path
) -> None:
    model = JanusForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        before = _advantage_weighted_logprob(model, batches[0])
        model.load_state_dict(results[1]["repeated"].weights[-1], strict=False)
        after = _advantage_weighted_logprob(model, batches[0])
    assert after > before + 0.05


def _advantage_weighted_logprob(model: JanusForConditionalGeneration, batch: TrajectoryBatch) -> float:
    """Mean over tokens of (reward - the group's mean) x log-probability."""
    total, num_tokens = 0.0, 0
    for group in batch.groups:
        for trajectory, reward in zip(group.rollout.trajectories, group.rewards - group.rewards.mean(), strict=True):
            total += float(reward) * sum(float(values.sum()) for values in trajectory_logprobs(model, trajectory))
            num_tokens += trajectory.num_tokens()
    return total / num_tokens


def test_a_report_holds_every_metric_with_sensible_values(
    results: dict[int, Mapping[str, JobResult]], batches: list[TrajectoryBatch]
) -> None:
    first, second = (report.metrics for report in results[2]["zero2"].reports[:2])
    trajectories = [t for group in batches[0].groups for t in group.rollout.trajectories]
    assert first["kl"] == first["kl/cot"] == first["kl/image"] == 0.0, "the policy starts as its own reference"
    assert second["kl/image"] > 0
    assert first["ratio/min"] == first["ratio/mean"] == first["ratio/max"] == 1.0, "of its own version"
    assert first["clip_fraction"] == 0.0
    assert 0.9 < second["ratio/mean"] < 1.1
    assert second["ratio/min"] < second["ratio/mean"] < second["ratio/max"]
    assert 0 < second["clip_fraction"] < 0.5
    assert second["behaviour_kl"] > 0
    assert 0 < first["entropy/cot"] < math.log(100)
    assert 0 < first["entropy/image"] < math.log(SHAPE.num_codes)
    assert first["cot_length"] == sum(len(t.cot_ids) for t in trajectories) / len(trajectories)
    assert first["tokens"] == sum(t.num_tokens() for t in trajectories)
    assert first["tokens_per_s"] > 0
    assert first["lr"] == LR
    assert (second["staleness/mean"], second["staleness/max"]) == (1.0, 1.0)
    assert first["groups_without_spread"] == 0.0


@pytest.mark.parametrize(
    ("num_ranks", "job"), [(1, "zero0"), (1, "zero2"), (1, "zero3"), (1, "bfloat16"), (2, "zero3")]
)
def test_a_broadcast_brings_the_weights_that_buckets_bring(
    results: dict[int, Mapping[str, JobResult]], num_ranks: int, job: str
) -> None:
    result = results[num_ranks][job]
    assert len(result.received) > 0
    assert all_equal(result.received, result.weights[-1])
