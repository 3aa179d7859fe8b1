"""Tokens a second of `LearnerWorker`, against a plain loop of transformers' model and torch's AdamW: the same batch,
the same loss."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import JanusForConditionalGeneration

from cluster.benchmarks.models import make_model, shapes_config
from cluster.benchmarks.report import Scope, Table, ratio, spread
from configs.local.ports import free_port
from configs.schema import RunConfig, TinyJanusConfig
from learner.batch import PlanSettings, plan_step
from learner.janus_policy import load_janus
from learner.micro_batch import PhaseBatch
from learner.objective import LossSettings, bicot_grpo_terms
from learner.objective.loss import TokenTensors
from learner.objective.phase_tokens import PhaseTokens
from learner.worker import LearnerWorker
from learner.zero import OptimizerSettings
from rollout.prompts import Conversation
from rollout.records import GroupRequest, GroupRollout, ScoredGroup, Trajectory, TrajectoryBatch
from rollout.shapes import load_split

_NUM_WARM_UPS = 2
"""Rounds that make the optimizers' states, and in which the parity gate looks at more: until it has compared two
versions of the learner's own."""
NO_VERSION = -1
"""Of tokens that no weights of the learner's have sampled."""


@dataclass(frozen=True, slots=True)
class Case:
    """How many ranks learn, and what DeepSpeed shards over them."""

    num_ranks: int
    zero_stage: int


CASES = (Case(num_ranks=1, zero_stage=0), Case(num_ranks=2, zero_stage=2))


def measure_speed(scope: Scope) -> Table:
    """Each case in processes of its own, a rank each."""
    num_groups = scope.pick(quick=4, full=16)
    rows = []
    with tempfile.TemporaryDirectory(prefix="bicot-bench-") as directory:
        folder, size = make_model(Path(directory), "tiny", TinyJanusConfig())
        for case in CASES:
            speeds = _speeds(case, folder, scope, num_groups)
            rows += [
                (
                    size,
                    f"{case.num_ranks} rank{'s' if case.num_ranks > 1 else ''}, ZeRO {case.zero_stage}",
                    policy,
                    spread(speeds[policy]),
                    spread(speeds["plain"]),
                    ratio(speeds[policy], speeds["plain"]),
                )
                for policy in ("conditional", "guided")
            ]
    return Table(
        "Learner: tokens a second",
        f"`LearnerWorker` (DeepSpeed, float32) against transformers' model with torch's AdamW: the same batch of "
        f"{num_groups} groups of 8, the same micro-batches, reference and loss, {scope.num_threads} thread(s) a rank. "
        "With one rank the losses of the two are checked to agree at every step. With two, each process runs a plain "
        "loop in turn with its rank, on the rank's half of the batch, which exchanges nothing: what is below 1 is what "
        "ranks pay for learning together. With `algorithm.policy: guided` pictures pass twice, under policy and "
        "reference; the plain loop is conditional in all rows.",
        ("model", "ranks", "algorithm.policy", "bicot's learner", "plain loop", "bicot / plain"),
        tuple(rows),
    )


def _speeds(case: Case, folder: str, scope: Scope, num_groups: int) -> dict[str, list[float]]:
    """Tokens a second of all ranks together, by what is measured, a round each."""
    port = free_port()
    with ProcessPoolExecutor(case.num_ranks, mp_context=multiprocessing.get_context("spawn")) as ranks:
        numbers = range(case.num_ranks)
        work = [ranks.submit(_measure_rank, case, rank, port, folder, scope, num_groups) for rank in numbers]
        speeds, *_ = [result.result() for result in work]
    return speeds


def _measure_rank(
    case: Case, rank: int, port: int, folder: str, scope: Scope, num_groups: int
) -> dict[str, list[float]]:
    num_rounds = scope.pick(quick=2, full=5) + _NUM_WARM_UPS
    overrides = [
        f"algorithm.groups_per_step={num_groups}",
        f"learner.threads_per_rank={scope.num_threads}",
        f"learner.num_ranks={case.num_ranks}",
        "learner.micro_batch_size=16",
        f"learner.zero_stage={case.zero_stage}",
        f"run.steps={num_rounds}",
        *unlimited_parity(),
    ]
    config = shapes_config(folder, overrides)
    guided = start_worker(folder, shapes_config(folder, [*overrides, "algorithm.policy=guided"]), rank, port)
    ours, plain = start_worker(folder, config, rank, port), PlainLearner(folder, config, rank)
    batches = [make_batch(folder, config, version) for version in (*range(_NUM_WARM_UPS), NO_VERSION)]
    batch = batches[-1]
    num_tokens = plan_step(batch, PlanSettings.of(config, 1), 0).num_tokens
    speeds: dict[str, list[float]] = {"guided": [], "conditional": [], "plain": []}
    for number in range(num_rounds):
        batch, is_own = batches[min(number, _NUM_WARM_UPS)], number < _NUM_WARM_UPS
        reported: dict[str, float] = {}
        for name, train in (
            ("guided", partial(guided.train_step, batch)),
            ("conditional", partial(ours.train_step, batch)),
            ("plain", partial(plain.train_step, batch, is_own)),
        ):
            dist.barrier()
            started_s = time.perf_counter()
            result = train()
            dist.barrier()
            if number >= _NUM_WARM_UPS:
                speeds[name].append(num_tokens / (time.perf_counter() - started_s))
            reported[name] = result if isinstance(result, float) else result.metrics["loss"]
        losses = reported["conditional"], reported["plain"]
        if case.num_ranks == 1 and not np.isclose(*losses, rtol=1e-3, atol=1e-4):
            raise RuntimeError(f"the two learners differ: losses {losses[0]} and {losses[1]}")
    return speeds  # the two share a process group, which ends with the process


def unlimited_parity() -> list[str]:
    """Overrides for a batch that is made up."""
    return ["parity.max_abs=1000", "parity.max_sampling_error=1e9", "parity.every_steps=1000000"]


def start_worker(folder: str, config: RunConfig, rank: int = 0, port: int | None = None) -> LearnerWorker:
    """A rank in this process; port: at which the ranks meet."""
    return LearnerWorker.start(config, folder, rank, master_address="127.0.0.1", master_port=port or free_port())


class PlainLearner:
    """The loop that one would write first: all logits at once, no DeepSpeed, no chunks; on a rank's share of a batch,
    by itself."""

    def __init__(self, folder: str, config: RunConfig, rank: int) -> None:
        self._config = config
        self._rank = rank
        self._policy = load_janus(folder, torch.float32)
        self._reference = load_janus(folder, torch.float32).requires_grad_(False)
        self._policy.requires_grad_(False)
        self._trained = [*self._policy.model.language_model.parameters(), *self._policy.lm_head.parameters()]
        for parameter in self._trained:
            parameter.requires_grad_(True)
        learner = config.learner
        self._settings = OptimizerSettings.of(learner, config.run.steps)
        self._optimizer = torch.optim.AdamW(self._trained, betas=learner.betas, weight_decay=learner.weight_decay)
        self._num_steps = 0

    def train_step(self, batch: TrajectoryBatch, is_own: bool) -> float:
        """One optimizer step; returns this rank's share of the loss, which is a mean over the tokens of all.

        is_own: its tokens count as sampled by the weights as they are, so that their ratio is 1.
        """
        plan = plan_step(batch, PlanSettings.of(self._config, self._config.learner.num_ranks), self._rank)
        total = 0.0
        for micro_batch in plan.mini_batches[0].micro_batches:
            for phase in micro_batch.phases:
                loss = self._loss(phase, is_own) / plan.num_tokens
                loss.backward()
                total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._trained, self._settings.max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.learning_rate(self._num_steps)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._num_steps += 1
        return total

    def _loss(self, phase: PhaseBatch, is_own: bool) -> Tensor:
        with torch.no_grad():
            reference_logprobs = plain_logprobs(self._reference, phase.tokens)
        logprobs = plain_logprobs(self._policy, phase.tokens)
        tokens = TokenTensors(
            logprobs,
            phase.behaviour_logprobs,
            phase.advantages,
            phase.tokens.target_mask,
            reference_logprobs=reference_logprobs,
            old_logprobs=logprobs.detach() if is_own else None,
        )
        return bicot_grpo_terms(tokens, LossSettings.of(self._config.algorithm, phase.tokens.phase)).loss


def plain_logprobs(model: JanusForConditionalGeneration, tokens: PhaseTokens) -> Tensor:
    """[B, N], nats: of the targets, behind contexts that are padded on the left, with an attention mask."""
    is_text = tokens.phase == "cot"
    width = tokens.context_ids.shape[1]
    # From right to left padding: roll each row by what it lacks.
    places = (torch.arange(width) - (width - tokens.context_lengths)[:, None]) % width
    context_mask = torch.arange(width) >= (width - tokens.context_lengths)[:, None]
    embed = model.get_input_embeddings()
    context = embed(tokens.context_ids.gather(1, places))
    targets = tokens.target_ids
    drawn = embed(targets) if is_text else model.prepare_embeddings_for_image_generation(targets)
    mask = torch.cat([context_mask, tokens.target_mask], dim=1)
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([context, drawn], dim=1),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state[:, width - 1 : -1]
    logits = model.lm_head(hidden) if is_text else model.model.generation_head(hidden)
    return logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def make_batch(folder: str, config: RunConfig, version: int = NO_VERSION) -> TrajectoryBatch:
    """Random trajectories of the shapes world's shape: plans of 10 to 48 tokens, pictures of 64. version: that they
    count as sampled by."""
    rng = np.random.default_rng(0)
    conversation = Conversation.from_pretrained(folder)
    checkpoint, size = conversation.checkpoint, config.algorithm.group_size
    vocabulary = len(conversation.tokenizer)

    def trajectory(text: str) -> Trajectory:
        num_cot, num_image = int(rng.integers(10, config.rollout.max_cot_tokens + 1)), checkpoint.num_image_tokens
        cot_ids = rng.integers(vocabulary // 2, vocabulary, num_cot).astype(np.int32)
        return Trajectory(
            semantic_prompt_ids=conversation.semantic_prompt(text),
            cot_ids=cot_ids,
            cot_logprobs=np.full(num_cot, -np.log(vocabulary), np.float32),
            image_prompt_ids=conversation.image_prompt(text, conversation.decode_cot(cot_ids)),
            image_ids=rng.integers(0, checkpoint.num_codes, num_image).astype(np.int32),
            image_logprobs=np.full(num_image, -np.log(checkpoint.num_codes), np.float32),
            cot_text="",
            guidance_scale=config.rollout.guidance_scale,
            seed=0,
            cot_versions=np.full(num_cot, version, np.int32),
            image_versions=np.full(num_image, version, np.int32),
        )

    groups = []
    for sequence, prompt in enumerate(load_split("train", config.algorithm.groups_per_step)):
        request = GroupRequest(sequence, 0, prompt, size, images_per_cot=1, seed=sequence)
        trajectories = tuple(trajectory(prompt.text) for _ in range(size))
        rewards = rng.random(size).astype(np.float32)
        rollout = GroupRollout(request, trajectories, "bench", started_s=0.0, finished_s=0.0)
        groups.append(ScoredGroup(rollout, rewards, {"random": rewards}, ("",) * size, scored_s=0.0))
    return TrajectoryBatch(0, tuple(groups))
