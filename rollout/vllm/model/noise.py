"""Chance by counter: what a row samples depends on its request's seed and on the token's position, on nothing else.

    seed ─► stream ─┐
    position ───────┴─► key ─► noise of column 0, 1, 2, … ─► argmax(logits + Gumbel noise)

No generator is carried from step to step, so batch, preemption, chunks of a prompt and restarts change no token. The
hash is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), and the
maximum of logits plus standard Gumbel noise is a draw from their softmax (Gumbel, 1954).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch


def _as_int64(value: int) -> int:
    """The number with the same 64 bits, as torch, which has no unsigned arithmetic, holds it."""
    return value - 2**64 if value >= 2**63 else value


GOLDEN = _as_int64(0x9E3779B97F4A7C15)
_STEP = _as_int64(0xD1342543DE82EF95)
"""From one position's key to the next; another one than columns are told apart by."""
FIRST, SECOND = _as_int64(0xBF58476D1CE4E5B9), _as_int64(0x94D049BB133111EB)
LARGEST = 1 - 2**-24
"""The largest float32 below 1."""


def streams(seeds: torch.Tensor) -> torch.Tensor:
    """int64 [n] from seeds int64 [n]: what is to be known of a request before its first token."""
    return _mix(seeds * GOLDEN)


def keys(request_streams: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """int64 [n]: one key a token, from `streams` and the token's place in its sequence, both int64 [n]."""
    return _mix(request_streams + positions * _STEP)


def sample(logits: torch.Tensor, temperatures: torch.Tensor, token_keys: torch.Tensor) -> torch.Tensor:
    """int64 [n]: a draw from the softmax of each row of float32 [n, num_columns] at the row's temperature, float32
    [n, 1], decided by its key, int64 [n].

    On a CPU vLLM's own kernel hashes, adds and compares in one pass; on a GPU `rollout.vllm.model.fused` does, with
    another stream of numbers: the same seeds give the same tokens on one kind of device.
    """
    if logits.is_cpu:
        return torch.ops._C.fused_gumbel_argmax(logits / temperatures, token_keys)
    return _fused_or("draw", sample_unfused, logits, temperatures, token_keys)


def logprobs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """float32 [n, S]: log-probability of int64 [n] under each of float32 [n, S, num_columns]."""
    if logits.is_cpu:
        return logprobs_unfused(logits, token_ids)
    return _fused_or("logprobs", logprobs_unfused, logits, token_ids)


def sample_unfused(logits: torch.Tensor, temperatures: torch.Tensor, token_keys: torch.Tensor) -> torch.Tensor:
    """What `fused.draw` computes, by PyTorch."""
    return (logits / temperatures + gumbel(token_keys, logits.shape[-1])).argmax(-1)


def logprobs_unfused(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """`logprobs` by PyTorch."""
    chosen = token_ids[:, None, None].expand(-1, logits.shape[1], 1)
    return logits.gather(-1, chosen).squeeze(-1) - logits.logsumexp(-1)


_failed: set[str] = set()
"""Kernels of `rollout.vllm.model.fused` that have failed in this process."""


def _fused_or(kernel: str, unfused: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
    """A GPU kernel's answer; once it has failed, PyTorch's, which takes longer. The failure is told once."""
    if kernel not in _failed:
        try:
            from rollout.vllm.model import fused  # needs Triton

            return getattr(fused, kernel)(*tensors)
        except Exception as error:  # noqa: BLE001  (of a compiler, whatever it is)
            _failed.add(kernel)
            logging.getLogger(__name__).warning(
                "sampling goes on without the GPU kernel '%s', about 2 ms a step slower at 256 rows: %r", kernel, error
            )
    return unfused(*tensors)


def gumbel(token_keys: torch.Tensor, num_columns: int) -> torch.Tensor:
    """float32 [n, num_columns]: independent standard Gumbel numbers."""
    columns = torch.arange(1, num_columns + 1, device=token_keys.device) * GOLDEN
    # 40 bits: 24 would leave no difference between the largest of a hundred thousand columns.
    uniform = ((_mix(token_keys[:, None] + columns) >> 24) & (2**40 - 1)).float().add_(0.5).mul_(2.0**-40)
    return uniform.clamp_(max=LARGEST).neg_().log1p_().neg_().log_().neg_()


def _mix(bits: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finalizer; `>>` copies the sign, so the bits that it brings in are masked."""
    bits = (bits ^ ((bits >> 30) & (2**34 - 1))) * FIRST
    bits = (bits ^ ((bits >> 27) & (2**37 - 1))) * SECOND
    return bits ^ ((bits >> 31) & (2**33 - 1))
