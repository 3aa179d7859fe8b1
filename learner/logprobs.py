"""Log-probabilities of given tokens, without ever holding the logits of all positions.

A vocabulary of 100,000 and 8 x 576 positions are 1.8 GB of float32 logits, held several times over
by autograd. Here the positions pass the head in chunks; a chunk's logits live while it is computed,
forward or backward, and the backward pass computes them again from the hidden states.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]


def chunked_logprobs(hidden: Tensor, head: Head, targets: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under `softmax(head(hidden))`, and the entropy there.

    hidden: [T, d], T >= 0; head: [t, d] -> logits [t, V]; targets: int64 [T], in [0, V).
    Returns (logprobs [T], entropy [T]) in nats, in float32 (float64 where the logits are); the entropy
    carries no gradient. Gradients flow to `hidden` and to the head's parameters.

    `head` is called ceil(T / chunk_size) times, and as often again in backward; it must be a call
    of its module, so that hooks which gather partitioned parameters run. Where they do (ZeRO-3),
    every rank must pass the same T.

    Raises ValueError for shapes that do not fit.
    """
    if hidden.dim() != 2 or targets.shape != hidden.shape[:1]:
        raise ValueError(f"hidden must be [T, d] and targets [T]; got {tuple(hidden.shape)} and {tuple(targets.shape)}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1; got {chunk_size}")
    if not len(targets):
        empty = hidden.sum(-1).to(_accumulation_dtype(hidden))
        return empty, empty.detach()
    logprobs, entropies = [], []
    for start in range(0, len(targets), chunk_size):
        part = slice(start, start + chunk_size)
        logprob, entropy = checkpoint(
            _logprobs, hidden[part], head, targets[part], use_reentrant=False, preserve_rng_state=False
        )
        logprobs.append(logprob)
        entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies)


def _accumulation_dtype(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _logprobs(hidden: Tensor, head: Head, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = head(hidden)
    logits = logits.to(_accumulation_dtype(logits))
    log_normalizer = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None])[:, 0] - log_normalizer
    with torch.no_grad():
        probabilities = (logits - log_normalizer[:, None]).exp()
        # A logit of -inf has no probability and adds no entropy; 0 * -inf would be NaN.
        expected_logit = torch.where(probabilities > 0, probabilities * logits, 0.0).sum(-1)
        entropy = log_normalizer - expected_logit
    return logprobs, entropy
