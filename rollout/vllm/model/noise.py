"""Chance by counter: what a row samples depends on its request's seed and on the token's position, on nothing else.

    seed ─► stream ─┐
    position ───────┴─► key ─► noise of column 0, 1, 2, … ─► argmax(logits + Gumbel noise)

No generator is carried from step to step, so batch, preemption, chunks of a prompt and restarts change no token. The
hash is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), and the
maximum of logits plus standard Gumbel noise is a draw from their softmax (Gumbel, 1954).
"""

from __future__ import annotations

import torch


def _as_int64(value: int) -> int:
    """The number with the same 64 bits, as torch, which has no unsigned arithmetic, holds it."""
    return value - 2**64 if value >= 2**63 else value


_GOLDEN = _as_int64(0x9E3779B97F4A7C15)
_STEP = _as_int64(0xD1342543DE82EF95)
"""From one position's key to the next; another one than columns are told apart by."""
_FIRST, _SECOND = _as_int64(0xBF58476D1CE4E5B9), _as_int64(0x94D049BB133111EB)
_LARGEST = 1 - 2**-24
"""The largest float32 below 1."""


def streams(seeds: torch.Tensor) -> torch.Tensor:
    """int64 [n] from seeds int64 [n]: what is to be known of a request before its first token."""
    return _mix(seeds * _GOLDEN)


def keys(request_streams: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """int64 [n]: one key a token, from `streams` and the token's place in its sequence, both int64 [n]."""
    return _mix(request_streams + positions * _STEP)


def sample(logits: torch.Tensor, token_keys: torch.Tensor) -> torch.Tensor:
    """int64 [n]: a draw from the softmax of each row of float32 [n, num_columns], decided by the row's key int64 [n].

    On a CPU vLLM's own kernel hashes, adds and compares in one pass; elsewhere PyTorch does, with another stream of
    numbers: the same seeds give the same tokens on one kind of device.
    """
    if logits.device.type == "cpu":
        return torch.ops._C.fused_gumbel_argmax(logits, token_keys)
    return (logits + gumbel(token_keys, logits.shape[-1])).argmax(-1)


def gumbel(token_keys: torch.Tensor, num_columns: int) -> torch.Tensor:
    """float32 [n, num_columns]: independent standard Gumbel numbers."""
    columns = torch.arange(1, num_columns + 1, device=token_keys.device) * _GOLDEN
    # 40 bits: 24 would leave no difference between the largest of a hundred thousand columns.
    uniform = ((_mix(token_keys[:, None] + columns) >> 24) & (2**40 - 1)).float().add_(0.5).mul_(2.0**-40)
    return uniform.clamp_(max=_LARGEST).neg_().log1p_().neg_().log_().neg_()


def _mix(bits: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finalizer; `>>` copies the sign, so the bits that it brings in are masked."""
    bits = (bits ^ ((bits >> 30) & (2**34 - 1))) * _FIRST
    bits = (bits ^ ((bits >> 27) & (2**37 - 1))) * _SECOND
    return bits ^ ((bits >> 31) & (2**33 - 1))
