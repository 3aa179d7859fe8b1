"""How much of the first small changes of a policy with adapters an engine shows: its slope against the learner's.

    learner in bfloat16, some optimizer steps ─► weight buckets ─► engine
    tokens that the engine sampled before ─► their log-probabilities before and after, in both

What the learner's change is, is computed in float32 of the bfloat16 weights and adapters that it holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs.schema import LoraConfig
from learner.float32_pass import computing_in_float32
from learner.janus_policy import JanusPolicy
from learner.lora import adapters_off, merged_weight
from learner.objective.phase_tokens import LogprobRequest, PhaseTokens
from learner.zero import DeepSpeedEngine, OptimizerSettings
from rollout.engine import Engine, SequenceRequest, SequenceResult
from rollout.weights.buckets import pack_bucket


@dataclass(frozen=True)
class Slopes:
    """Regression coefficients, through 0, on the learner's change of each token's log-probability."""

    engine: float
    """Of the engine's change."""
    merged: float
    """Of the change that adapters make once they are merged into bfloat16 weights."""
    num_tokens: int
    learner_change: float
    """Mean |change| in the learner, nats."""
    sent_bytes: int
    """Of the weight update."""
    model_bytes: int
    """Of the language model, which an update without adapters holds."""


def tokens_of(request: SequenceRequest, token_ids: Sequence[int]) -> LogprobRequest:
    """What a policy is asked for the tokens of one sequence."""
    targets = torch.tensor([list(token_ids)])
    prompt = torch.from_numpy(request.prompt_ids).long()[None]
    lengths = torch.tensor([prompt.shape[1]])
    return LogprobRequest(
        PhaseTokens(request.phase, prompt, lengths, targets, torch.ones_like(targets, dtype=torch.bool))
    )


async def measure(
    engine: Engine, folder: Path, lora: LoraConfig, requests: Sequence[SequenceRequest], lr: float, steps: int
) -> Slopes:
    """Of an engine that was started with `folder`, whose weights are bfloat16's, and `lora`. Wants a process group."""
    policy = JanusPolicy.load(str(folder), torch.bfloat16, logprob_chunk_bytes=2**20, lora=lora)
    await engine.update_weights(engine.weight_version + 1, [pack_bucket(policy.named_exported_parameters())])
    before = await asyncio.gather(*map(engine.generate, requests))
    asked = [tokens_of(request, result.token_ids) for request, result in zip(requests, before, strict=True)]
    _train(policy, asked, lr, steps)
    exported = policy.named_exported_parameters()
    await engine.update_weights(engine.weight_version + 1, [pack_bucket(exported)])
    again = [replace(request, request_id=f"{request.request_id}-again") for request in requests]
    after = await asyncio.gather(*map(engine.generate, again))

    with torch.no_grad(), computing_in_float32(policy):
        with adapters_off(policy):
            base = [policy(one)[0][0] for one in asked]
        learner = [policy(one)[0][0] - first for one, first in zip(asked, base, strict=True)]
    _merge(policy)
    with torch.no_grad(), computing_in_float32(policy), adapters_off(policy):
        merged = [policy(one)[0][0] - first for one, first in zip(asked, base, strict=True)]
    shared = [_shared(first, second) for first, second in zip(before, after, strict=True)]
    seen = [
        torch.from_numpy(second.logprobs[:count] - first.logprobs[:count])
        for first, second, count in zip(before, after, shared, strict=True)
    ]
    exact = torch.cat([change[:count] for change, count in zip(learner, shared, strict=True)])
    return Slopes(
        engine=_slope(torch.cat(seen), exact),
        merged=_slope(torch.cat([change[:count] for change, count in zip(merged, shared, strict=True)]), exact),
        num_tokens=len(exact),
        learner_change=float(exact.abs().mean()),
        sent_bytes=sum(tensor.nbytes for _, tensor in exported),
        model_bytes=sum(tensor.nbytes for _, tensor in policy.named_changing_parameters()),
    )


def _train(policy: JanusPolicy, asked: Sequence[LogprobRequest], lr: float, steps: int) -> None:
    """Make every second sequence likelier, and the others less likely."""
    settings = OptimizerSettings(lr=lr, total_steps=steps)
    learner = DeepSpeedEngine(policy, settings, zero_stage=1, dtype=torch.bfloat16, device=torch.device("cpu"))
    for _ in range(steps):
        for number, one in enumerate(asked):
            sign = 1 if number % 2 else -1
            learner.backward(sign * learner(one)[0].mean(), is_last=number == len(asked) - 1)
        assert learner.step().applied
    learner.destroy()


@torch.no_grad()
def _merge(policy: JanusPolicy) -> None:
    for layer in policy.adapters().values():
        layer.base.weight.copy_(merged_weight(layer.base.weight, layer.lora_a, layer.lora_b, layer.scale))


def _shared(first: SequenceResult, second: SequenceResult) -> int:
    """Tokens up to and with the first one that differs in its successor: they have the same context."""
    length = min(len(first.token_ids), len(second.token_ids))
    different = np.flatnonzero(first.token_ids[:length] != second.token_ids[:length])
    return int(different[0]) if len(different) else length


def _slope(changes: Tensor, exact: Tensor) -> float:
    return float((changes.double() * exact.double()).sum() / exact.double().square().sum())
