"""Log-probabilities and entropy from hidden states (fused linear cross-entropy), a chunk of the vocabulary at a time.

    hidden [T, d] ─┬─► logits of a chunk of the vocabulary ─┐     m  largest logit z so far    [T]
                   ├─► of the next                         ─┼─►   s  sum of exp(z - m)         [T]
                   └─► ...                                 ─┘     e  sum of z exp(z - m)       [T]

    log normaliser = m + log s,   log-probability = z_target - log normaliser,   entropy = log normaliser - e / s

A vocabulary of 100,000 and 8 x 576 positions are 1.8 GB of float32 logits, held several times over by autograd.
Here a chunk's logits live while they are added to the sums (online softmax, Milakov and Gimelshein,
arXiv:1805.02867), and the backward pass computes them again from the hidden states, the weight and the log normaliser
(Cut Cross-Entropy, Wijmans et al., arXiv:2411.09009). Memory grows with T x chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

LIVE_TENSORS: Final = 3
"""float32 tensors [T, chunk] that live at once, at most: logits as the layer gives them, in float32, and their
exponentials."""


class LogprobHead(nn.Module):
    """A head's last layer, `logits = W h + b`, that returns log-probabilities and entropy in place of logits.

    It shares the parameters of a linear layer, under the same names. It is a module whose forward pass uses all of
    them, so that ZeRO-3's hooks gather them for the forward pass, and again for the backward pass.
    """

    def __init__(self, layer: nn.Linear, chunk_bytes: int) -> None:
        """chunk_bytes: that logits may take at once; see `entries_at_once`."""
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self.chunk_bytes = chunk_bytes

    def forward(
        self, hidden: Tensor, targets: Tensor, *, temperature: float = 1.0, entropy_gradient: bool = False
    ) -> tuple[Tensor, Tensor]:
        """As `chunked_logprobs`."""
        return chunked_logprobs(
            hidden,
            self.weight,
            self.bias,
            targets,
            entries_at_once(self.chunk_bytes, len(targets)),
            temperature=temperature,
            entropy_gradient=entropy_gradient,
        )


def entries_at_once(chunk_bytes: int, num_positions: int) -> int:
    """Entries of the vocabulary whose logits take `chunk_bytes` for so many positions, with what is computed of them:
    the longer a micro-batch, the smaller the pieces, and the memory is the same. At least one."""
    return max(1, chunk_bytes // (LIVE_TENSORS * torch.float32.itemsize * max(1, num_positions)))


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    chunk_size: int,
    *,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under `softmax((W h + b) / temperature)`, and the entropy there.

    hidden: [T, d], T >= 0; weight: [V, d]; bias: [V]; targets: int64 [T], in [0, V); chunk_size: entries of the
    vocabulary whose logits are held at once, in tensors [T, chunk_size].
    Returns (logprobs [T], entropy [T]) in nats, in float32 (float64 where the logits are). Gradients flow
    from the log-probabilities, and with entropy_gradient from the entropy, too, to hidden, weight and bias. That of
    the weight is as large as the weight, and made only where the weight trains.

    Raises ValueError for shapes that do not fit.
    """
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1] or weight.shape[1:] != hidden.shape[1:]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (hidden, weight, targets))
        raise ValueError(f"hidden must be [T, d], weight [V, d] and targets [T]; got {shapes}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1; got {chunk_size}")
    result: tuple[Tensor, Tensor] = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, chunk_size, temperature, entropy_gradient
    )
    return result


class _Sums(NamedTuple):
    """Of the part of the vocabulary that was seen, each [T] and in float32 or better."""

    largest: Tensor
    """m, the largest logit z."""
    total: Tensor
    """s, the sum of exp(z - m)."""
    weighted: Tensor
    """e, the sum of z exp(z - m)."""
    target: Tensor
    """The target's logit; -inf until it is seen."""

    def with_part(self, logits: Tensor, targets: Tensor, part: slice) -> _Sums:
        """The sums after the next part of the vocabulary. logits: [T, size of the part], overwritten."""
        inside, columns = _columns(targets, part)
        target = torch.where(inside, logits.gather(1, columns)[:, 0], self.target)
        largest = torch.maximum(self.largest, logits.amax(1))
        # While all logits are -inf, nothing is subtracted: -inf - -inf is NaN.
        shift = largest.masked_fill(largest.isneginf(), 0.0)
        rescaling = (self.largest - shift).exp()
        exponentials = (logits - shift[:, None]).exp_()
        total = self.total * rescaling + exponentials.sum(1)
        weighted = self.weighted * rescaling + exponentials.mul_(_finite(logits)).sum(1)
        return _Sums(largest, total, weighted, target)


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk_size: int,
        temperature: float,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        nothing = hidden.new_zeros(targets.shape, dtype=torch.promote_types(weight.dtype, torch.float32))
        sums = _Sums(nothing - math.inf, nothing, nothing, nothing - math.inf)
        for part in _parts(len(weight), chunk_size):
            sums = sums.with_part(_logits(hidden, weight, bias, part, temperature), targets, part)
        log_normalizer, expected_logit = sums.largest + sums.total.log(), sums.weighted / sums.total
        entropy = log_normalizer - expected_logit
        ctx.save_for_backward(hidden, weight, bias, targets, log_normalizer, expected_logit)
        ctx.chunk_size, ctx.temperature, ctx.entropy_gradient = chunk_size, temperature, entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return sums.target - log_normalizer, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_normalizer, expected_logit = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        # What is added up over chunks is added up in float32, of half precision, too.
        grad_hidden = torch.zeros_like(hidden, dtype=log_normalizer.dtype) if wants_hidden else None
        grad_weight = torch.empty_like(weight) if wants_weight else None
        grad_bias = torch.empty_like(bias) if wants_bias else None
        for part in _parts(len(weight), ctx.chunk_size):
            logits = _logits(hidden, weight, bias, part, ctx.temperature)
            grad = (logits - log_normalizer[:, None]).exp_()
            if ctx.entropy_gradient:
                # d entropy / dz = -p (z - sum of p z)
                slope = _finite(logits).sub_(expected_logit[:, None]).mul_(grad_entropy[:, None])
                grad.mul_(slope.add_(grad_logprobs[:, None])).neg_()
                del slope
            else:
                grad.mul_(-grad_logprobs[:, None])  # d logprob / dz = (1 at the target) - p
            inside, columns = _columns(targets, part)
            grad.scatter_add_(1, columns, torch.where(inside, grad_logprobs, 0.0)[:, None])
            grad = grad.div_(ctx.temperature).to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden += grad @ weight[part]
            if grad_weight is not None:
                torch.mm(grad.t(), hidden, out=grad_weight[part])
            if grad_bias is not None:
                torch.sum(grad, 0, out=grad_bias[part])
            del logits, grad  # before the next chunk's are made
        grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _parts(vocabulary: int, chunk_size: int) -> Iterator[slice]:
    for start in range(0, vocabulary, chunk_size):
        yield slice(start, min(start + chunk_size, vocabulary))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, part: slice, temperature: float) -> Tensor:
    """[T, size of the part], in float32 or better, and the caller's to overwrite."""
    logits = functional.linear(hidden, weight[part], None if bias is None else bias[part])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits.div_(temperature)


def _columns(targets: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Which targets lie in the part, bool [T], and the column of each there, int64 [T, 1]; any column if outside."""
    inside = (targets >= part.start) & (targets < part.stop)
    return inside, (targets - part.start).clamp(0, part.stop - part.start - 1)[:, None]


def _finite(logits: Tensor) -> Tensor:
    """0 in place of -inf, which has no probability: 0 x -inf would be NaN. NaN and inf stay. Works in place."""
    return logits.nan_to_num_(nan=math.nan, posinf=math.inf, neginf=0.0)
