"""Supervised fine-tuning (SFT) of both phases on given plans and pictures: cross-entropy with teacher forcing.

    TokenizedExamples ─► global batches (same on every rank) ─► this rank's share, in micro-batches
                                                                        │
          engine.step() ◄─ engine.backward(-log p(plan)), engine.backward(-w log p(picture)) ◄─┘

Some pictures of every batch are trained without their prompt (prompt dropout for classifier-free guidance,
arXiv:2207.12598, algorithm 1), so that the policy can be sampled with guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import WarmStartConfig
from learner.objective.phase_tokens import LogprobRequest, PhaseTokens
from rollout.records import Int32Array, derive_seed


class TrainingEngine(Protocol):
    """The methods of `learner.zero.engine.DeepSpeedEngine` that this loop calls."""

    def __call__(self, request: LogprobRequest) -> tuple[Tensor, Tensor]: ...

    def backward(self, loss: Tensor, *, is_last: bool) -> None: ...

    def step(self) -> object: ...


@dataclass(frozen=True, slots=True)
class TokenizedExamples:
    """N examples as token ids. All sequences of tuples have length N."""

    semantic_prompts: tuple[Int32Array, ...]
    """int32 [N_semantic_prompt] each."""
    plans: tuple[Int32Array, ...]
    """int32 [N_plan] each, with EOS."""
    image_prompts: tuple[Int32Array, ...]
    """int32 [N_image_prompt] each, to begin-of-image."""
    image_ids: NDArray[np.int64]
    """int64 [N, N_image]: VQ codes."""

    def __len__(self) -> int:
        return len(self.plans)


@dataclass(frozen=True, slots=True)
class Shard:
    """This process's rank among `num_ranks`, its model's device, and the number of examples a forward pass."""

    rank: int
    num_ranks: int
    device: torch.device
    micro_batch_size: int


def train_supervised(
    engine: TrainingEngine,
    examples: TokenizedExamples,
    config: WarmStartConfig,
    shard: Shard,
    report: Callable[[int, int, dict[str, float]], None],
) -> None:
    """Make `config.steps` optimizer steps. Every rank calls it; the batches do not depend on how many there are.

    report(step, total_steps, metrics) gets the mean negative log-probability of a plan token and of
    an image token, in nats, over this rank's share of the batch.
    """
    batches = iterate_batches(len(examples), config.batch_size, derive_seed(config.seed, "batches"))
    dropout = np.random.default_rng(derive_seed(config.seed, "unconditional dropout"))
    for step in range(config.steps):
        batch = next(batches)
        unconditional = dropout.random(len(batch)) < config.unconditional_dropout
        metrics = _accumulate_gradients(engine, examples, batch, unconditional, config.image_loss_weight, shard)
        engine.step()
        report(step + 1, config.steps, metrics)


def iterate_batches(num_examples: int, batch_size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """An endless stream of index arrays int64 [batch_size]: shuffled epochs one after the other, without a gap."""
    rng = np.random.default_rng(seed)
    pending = np.empty(0, np.int64)
    while True:
        while len(pending) < batch_size:
            pending = np.concatenate([pending, rng.permutation(num_examples)])
        yield pending[:batch_size]
        pending = pending[batch_size:]


def _accumulate_gradients(
    engine: TrainingEngine,
    examples: TokenizedExamples,
    batch: NDArray[np.int64],
    unconditional: NDArray[np.bool_],
    image_loss_weight: float,
    shard: Shard,
) -> dict[str, float]:
    """Gradients of this rank's share of the batch's loss. It is divided by the tokens of the whole batch, so that the
    gradients of all ranks add up."""
    plan_weight = 1 / sum(len(examples.plans[index]) for index in batch)
    image_weight = image_loss_weight / examples.image_ids[batch].size
    own = np.arange(shard.rank, len(batch), shard.num_ranks)
    parts = [own[start : start + shard.micro_batch_size] for start in range(0, len(own), shard.micro_batch_size)]
    # Under ZeRO-3 all ranks must pass equal shapes, so every part is padded to the whole batch's lengths.
    lengths = _Lengths.of(examples, batch)
    plan_sum = image_sum = torch.zeros((), device=shard.device)
    for number, part in enumerate(parts):
        cot, image = (phase.to(shard.device) for phase in _phases(examples, batch[part], lengths))
        cot_logprobs, _ = engine(LogprobRequest(cot))
        cot_nll = -cot_logprobs.masked_fill(~cot.target_mask, 0.0).sum()
        engine.backward(plan_weight * cot_nll, is_last=False)
        dropped = torch.from_numpy(unconditional[part]).to(shard.device)
        image_logprobs, _ = engine(LogprobRequest(image, unconditional_rows=dropped))
        image_nll = -image_logprobs.sum()
        engine.backward(image_weight * image_nll, is_last=number == len(parts) - 1)
        plan_sum, image_sum = plan_sum + cot_nll.detach(), image_sum + image_nll.detach()
    return {
        "plan_nll": plan_sum.item() / sum(len(examples.plans[index]) for index in batch[own]),
        "image_nll": image_sum.item() / examples.image_ids[batch[own]].size,
    }


@dataclass(frozen=True, slots=True)
class _Lengths:
    """Longest sequences of a batch, tokens."""

    semantic_prompt: int
    plan: int
    image_prompt: int

    @classmethod
    def of(cls, examples: TokenizedExamples, batch: NDArray[np.int64]) -> _Lengths:
        return cls(
            max(len(examples.semantic_prompts[index]) for index in batch),
            max(len(examples.plans[index]) for index in batch),
            max(len(examples.image_prompts[index]) for index in batch),
        )


def _phases(
    examples: TokenizedExamples, indices: NDArray[np.int64], lengths: _Lengths
) -> tuple[PhaseTokens, PhaseTokens]:
    semantic_ids, semantic_lengths = _pad(examples.semantic_prompts, indices, lengths.semantic_prompt)
    plan_ids, plan_lengths = _pad(examples.plans, indices, lengths.plan)
    prompt_ids, prompt_lengths = _pad(examples.image_prompts, indices, lengths.image_prompt)
    image_ids = torch.from_numpy(examples.image_ids[indices])
    plan_mask = torch.arange(lengths.plan) < plan_lengths[:, None]
    cot = PhaseTokens("cot", semantic_ids, semantic_lengths, plan_ids, plan_mask)
    image = PhaseTokens("image", prompt_ids, prompt_lengths, image_ids, torch.ones_like(image_ids, dtype=torch.bool))
    return cot, image


def _pad(sequences: Sequence[Int32Array], indices: NDArray[np.int64], width: int) -> tuple[Tensor, Tensor]:
    """The chosen sequences right padded with 0: ids int64 [B, width] and lengths int64 [B]."""
    chosen = [sequences[index] for index in indices]
    padded = torch.zeros(len(chosen), width, dtype=torch.int64)
    for row, sequence in enumerate(chosen):
        padded[row, : len(sequence)] = torch.from_numpy(sequence)
    return padded, torch.tensor([len(sequence) for sequence in chosen])
