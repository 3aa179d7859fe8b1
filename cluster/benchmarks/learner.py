"""The learner: memory of its log-probabilities, and its speed, each against the plain way.

memory   chunked_logprobs  against  log_softmax over all logits at once       (forward and backward)
speed    LearnerWorker     against  transformers' model and torch's AdamW     (the same batch, the same loss)
"""

from __future__ import annotations

import ctypes
import socket
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration

from cluster.benchmarks.isolation import isolated
from cluster.benchmarks.models import make_model, shapes_config
from cluster.benchmarks.report import Scope, Table, ratio, spread
from configs.schema import LearnerConfig, RunConfig, TinyJanusConfig
from learner.batch import PhaseBatch, PlanSettings, plan_step
from learner.janus_policy import load_janus
from learner.objective import LossSettings, bicot_grpo_terms
from learner.objective.logprobs import chunked_logprobs
from learner.objective.loss import TokenTensors
from learner.objective.phase_tokens import PhaseTokens
from learner.worker import LearnerWorker
from learner.zero import OptimizerSettings
from rollout.prompts import Conversation
from rollout.records import GroupRequest, GroupRollout, ScoredGroup, Trajectory, TrajectoryBatch
from rollout.shapes import load_split

VOCABULARIES = (1_000, 16_000, 100_000)
NUM_POSITIONS = 2_048
WIDTH = 64
MIB = 2**20
_NUM_WARM_UPS = 2
"""Rounds that make the optimizers' states, and in which the parity gate looks at more."""
_M_MMAP_THRESHOLD = -3  # malloc.h
CHUNK_SIZE: int = LearnerConfig.model_fields["logprob_chunk_tokens"].default


def measure(scope: Scope) -> list[Table]:
    """Both tables."""
    return [_measure_memory(), _measure_speed(scope)]


def _measure_memory() -> Table:
    rows = []
    for vocabulary in VOCABULARIES:
        plain = isolated(1, peak_bytes, vocabulary, None, False)
        chunked = isolated(1, peak_bytes, vocabulary, CHUNK_SIZE, False)
        # The gradient of the weight is the optimizer's to ask for, and not the log-probabilities' to save.
        trains = isolated(1, peak_bytes, vocabulary, CHUNK_SIZE, True) - vocabulary * WIDTH * 4
        logits = NUM_POSITIONS * vocabulary * 4
        cells = (f"{size / MIB:,.1f}" for size in (logits, plain, chunked, trains))
        rows.append((f"{vocabulary:,}", *cells, f"{plain / chunked:.1f} ×"))
    return Table(
        "Memory of log-probabilities and their gradient, MiB",
        f"Peak growth of a fresh process's resident memory during forward and backward of {NUM_POSITIONS} positions of "
        f"width {WIDTH} in float32: `log_softmax` over all logits, against `chunked_logprobs` in chunks of "
        f"{CHUNK_SIZE} tokens of the vocabulary. The weight is frozen; in one column it trains, and its gradient, as "
        "large as the weight whatever computes it, is subtracted. What is freed goes back to the system at once here; "
        "glibc would keep some of it for later, up to some tens of MiB, whatever the vocabulary.",
        (
            "vocabulary",
            "one copy of the logits",
            "plain",
            "chunked",
            "chunked, weight trains, less its gradient",
            "plain / chunked",
        ),
        tuple(rows),
    )


def peak_bytes(vocabulary: int, chunk_size: int | None, trains_weight: bool) -> int:
    """By how much resident memory grows at most while log-probabilities and their gradient are computed; in chunks of
    the vocabulary, or plainly where chunk_size is None. Linux with glibc only."""
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 64 * 1024)  # larger blocks are given back when they are freed
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, WIDTH, generator=generator).requires_grad_(trains_weight)
    hidden = torch.randn(NUM_POSITIONS, WIDTH, generator=generator).requires_grad_()
    targets = torch.randint(vocabulary, (NUM_POSITIONS,), generator=generator)
    few = slice(0, 2)
    _logprob_sum(hidden[few], weight, targets[few], chunk_size).backward()  # loads what is loaded at first use
    weight.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from here
    before = _memory_bytes("VmRSS")
    _logprob_sum(hidden, weight, targets, chunk_size).backward()
    return _memory_bytes("VmHWM") - before


def _logprob_sum(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int | None) -> Tensor:
    if chunk_size is not None:
        return chunked_logprobs(hidden, weight, None, targets, chunk_size)[0].sum()
    return torch.nn.functional.linear(hidden, weight).log_softmax(-1).gather(-1, targets[:, None]).sum()


def _memory_bytes(field: str) -> int:
    """A size of this process, as Linux gives it in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _measure_speed(scope: Scope) -> Table:
    num_groups, num_rounds = scope.pick(quick=4, full=16), scope.pick(quick=2, full=5)
    with tempfile.TemporaryDirectory(prefix="bicot-bench-") as directory:
        folder, size = make_model(Path(directory), "tiny", TinyJanusConfig())
        overrides = [
            f"algorithm.groups_per_step={num_groups}",
            f"learner.threads_per_rank={scope.num_threads}",
            f"run.steps={num_rounds + _NUM_WARM_UPS}",
            "parity.max_abs=1000",  # the batch is made up
            "parity.max_sampling_error=1e9",
            "parity.every_steps=1000000",
        ]
        config = shapes_config(folder, overrides)
        batch = make_batch(folder, config)
        guided = _worker(folder, shapes_config(folder, [*overrides, "algorithm.policy=guided"]))
        ours, plain = _worker(folder, config), PlainLearner(folder, config)
        speeds: dict[str, list[float]] = {"guided": [], "conditional": [], "plain": []}
        for number in range(num_rounds + _NUM_WARM_UPS):
            moments = [time.perf_counter()]
            guided.train_step(batch)
            moments.append(time.perf_counter())
            report = ours.train_step(batch)
            moments.append(time.perf_counter())
            loss, num_tokens = plain.train_step(batch)
            moments.append(time.perf_counter())
            if not np.isclose(report.metrics["loss"], loss, rtol=1e-3, atol=1e-4):
                raise RuntimeError(f"the two learners differ: losses {report.metrics['loss']} and {loss}")
            if number >= _NUM_WARM_UPS:
                for name, started_s, ended_s in zip(speeds, moments, moments[1:], strict=False):
                    speeds[name].append(num_tokens / (ended_s - started_s))
        for worker in (guided, ours):
            worker.close()
    rows = [
        (size, policy, spread(speeds[policy]), spread(speeds["plain"]), ratio(speeds[policy], speeds["plain"]))
        for policy in ("conditional", "guided")
    ]
    return Table(
        "Learner: tokens a second",
        "`LearnerWorker` (DeepSpeed, ZeRO 0, one rank, float32) against transformers' model with torch's AdamW: the "
        f"same batch of {num_groups} groups of 8, the same micro-batches, reference and loss, {scope.num_threads} "
        "thread(s) each. The losses of the two are checked to agree at every step. With `algorithm.policy: guided` "
        "pictures pass twice, under policy and reference; the plain loop is conditional in both rows.",
        ("model", "algorithm.policy", "bicot's learner", "plain loop", "bicot / plain"),
        tuple(rows),
    )


def _worker(folder: str, config: RunConfig) -> LearnerWorker:
    return LearnerWorker.start(config, folder, 0, master_address="127.0.0.1", master_port=_free_port())


class PlainLearner:
    """The loop that one would write first: all logits at once, no DeepSpeed, no chunks."""

    def __init__(self, folder: str, config: RunConfig) -> None:
        self._config = config
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

    def train_step(self, batch: TrajectoryBatch) -> tuple[float, int]:
        """One optimizer step; returns the loss and how many tokens it is the mean of."""
        plan = plan_step(batch, PlanSettings.of(self._config, num_ranks=1), rank=0)
        total = 0.0
        for micro_batch in plan.mini_batches[0].micro_batches:
            for phase in micro_batch.phases:
                loss = self._loss(phase) / plan.num_tokens
                loss.backward()
                total += float(loss)
        torch.nn.utils.clip_grad_norm_(self._trained, self._settings.max_grad_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.learning_rate(self._num_steps)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._num_steps += 1
        return total, plan.num_tokens

    def _loss(self, phase: PhaseBatch) -> Tensor:
        with torch.no_grad():
            reference_logprobs = plain_logprobs(self._reference, phase.tokens)
        tokens = TokenTensors(
            plain_logprobs(self._policy, phase.tokens),
            phase.behaviour_logprobs,
            phase.advantages,
            phase.tokens.target_mask,
            reference_logprobs=reference_logprobs,
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


def make_batch(folder: str, config: RunConfig) -> TrajectoryBatch:
    """Random trajectories of the shapes world's shape: plans of 10 to 48 tokens, pictures of 64."""
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
            cot_versions=np.zeros(num_cot, np.int32),
            image_versions=np.zeros(num_image, np.int32),
        )

    groups = []
    for sequence, prompt in enumerate(load_split("train", config.algorithm.groups_per_step)):
        request = GroupRequest(sequence, 0, prompt, size, images_per_cot=1, seed=sequence)
        trajectories = tuple(trajectory(prompt.text) for _ in range(size))
        rewards = rng.random(size).astype(np.float32)
        rollout = GroupRollout(request, trajectories, "bench", started_s=0.0, finished_s=0.0)
        groups.append(ScoredGroup(rollout, rewards, {"random": rewards}, ("",) * size, scored_s=0.0))
    return TrajectoryBatch(0, tuple(groups))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
