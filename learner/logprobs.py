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

from rollout.guidance import guided_logits

Head = Callable[[Tensor], Tensor]


def chunked_logprobs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    chunk_size: int,
    *,
    guidance_scales: Tensor | None = None,
    temperature: float = 1.0,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under `softmax(head(hidden) / temperature)`, and the entropy there.

    hidden: [T, d], T >= 0; head: [t, d] -> logits [t, V]; targets: int64 [T], in [0, V).
    Returns (logprobs [T], entropy [T]) in nats, in float32 (float64 where the logits are). Gradients flow
    from the log-probabilities, and with entropy_gradient from the entropy, too, to `hidden` and to the
    head's parameters.

    guidance_scales: float [T]; then hidden is [T, 2, d], the conditional stream first, and the logits
    are the guided ones, `u + w (c - u)`. A chunk's logits are then three times as many.

    `head` is called ceil(T / chunk_size) times, and as often again in backward; it must be a call
    of its module, so that hooks which gather partitioned parameters run. Where they do (ZeRO-3),
    every rank must pass the same T.

    Raises ValueError for shapes that do not fit.
    """
    _check(hidden, targets, guidance_scales, chunk_size)
    if not len(targets):
        empty = hidden.sum(tuple(range(1, hidden.dim()))).to(_accumulation_dtype(hidden))
        return empty, empty.detach()
    logprobs, entropies = [], []
    for start in range(0, len(targets), chunk_size):
        part = slice(start, start + chunk_size)
        logprob, entropy = checkpoint(
            _logprobs,
            hidden[part],
            head,
            targets[part],
            None if guidance_scales is None else guidance_scales[part],
            temperature,
            entropy_gradient,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        logprobs.append(logprob)
        entropies.append(entropy)
    return torch.cat(logprobs), torch.cat(entropies)


def _check(hidden: Tensor, targets: Tensor, guidance_scales: Tensor | None, chunk_size: int) -> None:
    guided = guidance_scales is not None
    expected = "[T, 2, d]" if guided else "[T, d]"
    if hidden.dim() != 2 + guided or targets.shape != hidden.shape[:1] or (guided and hidden.shape[1] != 2):
        raise ValueError(
            f"hidden must be {expected} and targets [T]; got {tuple(hidden.shape)} and {tuple(targets.shape)}"
        )
    if guidance_scales is not None and guidance_scales.shape != targets.shape:
        raise ValueError(f"guidance_scales must be [T]; got {tuple(guidance_scales.shape)} for {len(targets)} targets")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1; got {chunk_size}")


def _accumulation_dtype(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _logprobs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    guidance_scales: Tensor | None,
    temperature: float,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    logits = _logits(hidden, head, guidance_scales)
    if temperature != 1.0:
        logits = logits / temperature
    log_normalizer = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None])[:, 0] - log_normalizer
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        probabilities = (logits - log_normalizer[:, None]).exp()
        # A logit of -inf has no probability and adds no entropy; 0 * -inf would be NaN, in the gradient, too.
        finite_logits = logits.masked_fill(logits.isneginf(), 0.0) if entropy_gradient else logits
        expected_logit = torch.where(probabilities > 0, probabilities * finite_logits, 0.0).sum(-1)
        entropy = log_normalizer - expected_logit
    return logprobs, entropy


def _logits(hidden: Tensor, head: Head, guidance_scales: Tensor | None) -> Tensor:
    if guidance_scales is None:
        logits = head(hidden)
        return logits.to(_accumulation_dtype(logits))
    both = head(hidden.flatten(0, 1))
    conditional, unconditional = both.to(_accumulation_dtype(both)).view(len(hidden), 2, -1).unbind(1)
    return guided_logits(conditional, unconditional, guidance_scales[:, None])
