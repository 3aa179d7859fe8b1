"""Sampling on a GPU in one kernel each: a token with its noise, and the log-probability of a token.

    logits [n, num_columns] ─► one program a row ─► draw       argmax(logits / temperature + noise)
                                                └─► logprobs   logits[token] - logsumexp(logits)

As operations of PyTorch the first are about fifteen passes over the columns in int64, the second five. The noise is
`rollout.vllm.model.noise`'s to the bit, so both ways draw the same tokens, but where two columns are equally good to
the last bit or so. Imported only where something is sampled on a GPU: it needs Triton, which comes with PyTorch there.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from rollout.vllm.model import noise

_COLUMNS = 2048
"""That a program takes at once."""
_WARPS = 8

# A kernel reads of a module nothing but constexprs.
_GOLDEN, _FIRST, _SECOND = tl.constexpr(noise.GOLDEN), tl.constexpr(noise.FIRST), tl.constexpr(noise.SECOND)
_LARGEST = tl.constexpr(noise.LARGEST)
_40_BITS, _34_BITS = tl.constexpr(2**40 - 1), tl.constexpr(2**34 - 1)
_37_BITS, _33_BITS = tl.constexpr(2**37 - 1), tl.constexpr(2**33 - 1)
_UNIT = tl.constexpr(2.0**-40)


def draw(logits: torch.Tensor, temperatures: torch.Tensor, token_keys: torch.Tensor) -> torch.Tensor:
    """int64 [n]: see `noise.sample`."""
    num_rows, num_columns = logits.shape
    logits = logits.contiguous()
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    _draw[(num_rows,)](token_ids, logits, temperatures, token_keys, num_columns, _COLUMNS, num_warps=_WARPS)
    return token_ids


def logprobs(logits: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """float32 [n, S]: log-probability of int64 [n] under float32 [n, S, num_columns]."""
    num_rows, num_streams, num_columns = logits.shape
    logits = logits.contiguous()
    found = torch.empty(num_rows, num_streams, device=logits.device)
    grid = (num_rows * num_streams,)
    _logprobs[grid](found, logits, token_ids, num_streams, num_columns, _COLUMNS, num_warps=_WARPS)
    return found


@triton.jit
def _mix(bits):
    """See `noise._mix`."""
    bits = (bits ^ ((bits >> 30) & _34_BITS)) * _FIRST
    bits = (bits ^ ((bits >> 27) & _37_BITS)) * _SECOND
    return bits ^ ((bits >> 31) & _33_BITS)


@triton.jit
def _gumbel(key, columns):
    """See `noise.gumbel`."""
    bits = _mix(key + (columns.to(tl.int64) + 1) * _GOLDEN)
    uniform = (((bits >> 24) & _40_BITS).to(tl.float32) + 0.5) * _UNIT
    return -libdevice.log(-libdevice.log1p(-tl.minimum(uniform, _LARGEST)))


# Without `do_not_specialize...` another batch, whose tensors begin elsewhere, would be compiled for anew in a run.
@triton.jit(do_not_specialize_on_alignment=["token_ids", "temperatures", "keys"])
def _draw(token_ids, logits, temperatures, keys, num_columns, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    key, temperature = tl.load(keys + row), tl.load(temperatures + row)
    best = tl.full([COLUMNS], float("-inf"), tl.float32)
    best_columns = tl.zeros([COLUMNS], tl.int32)
    for start in range(0, num_columns, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        values = tl.load(logits + row * num_columns + columns, mask=columns < num_columns, other=float("-inf"))
        noisy = tl.div_rn(values, temperature) + _gumbel(key, columns)
        is_better = noisy > best
        best = tl.where(is_better, noisy, best)
        best_columns = tl.where(is_better, columns, best_columns)
    of_the_best = tl.where(best == tl.max(best, 0), best_columns, num_columns)
    tl.store(token_ids + row, tl.min(of_the_best, 0).to(tl.int64))


@triton.jit(do_not_specialize=["num_streams"], do_not_specialize_on_alignment=["found", "token_ids"])
def _logprobs(found, logits, token_ids, num_streams, num_columns, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * num_columns
    largest = tl.full([COLUMNS], float("-inf"), tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)  # in units of exp(largest)
    for start in range(0, num_columns, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        values = tl.load(logits + columns, mask=columns < num_columns, other=float("-inf"))
        larger = tl.maximum(largest, values)
        unit = tl.where(larger == float("-inf"), 0.0, larger)  # no infinity less another
        total = total * tl.exp(largest - unit) + tl.exp(values - unit)
        largest = larger
    largest_of_all = tl.max(largest, 0)
    normalizer = largest_of_all + tl.log(tl.sum(total * tl.exp(largest - largest_of_all), 0))
    tl.store(found + row, tl.load(logits + tl.load(token_ids + row // num_streams)) - normalizer)
