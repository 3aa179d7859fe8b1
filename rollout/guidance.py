"""Classifier-free guidance between two streams of one sequence, as Janus has it.

    token ids ──────────────────────────► conditional stream ───► c ─┐
        └─► unconditional_ids ─────────► unconditional stream ─► u ─┴─► u + w (c - u) ─► next image token

The unconditional stream is as long as the conditional one. Each of its tokens depends only on the token at the same
position, so whatever an engine does to a sequence (prefix caching, preemption and recomputation) it can do to both
streams at once.

Both engines and the learner call these two functions: guidance is defined in this file only.
"""

from __future__ import annotations

import torch

from rollout.janus_checkpoint import SpecialIds


def unconditional_ids(token_ids: torch.Tensor, special_ids: SpecialIds, text_vocab_size: int) -> torch.Tensor:
    """What the unconditional stream reads in place of `token_ids`; both int64, of one shape.

    BOS, begin-of-image and image tokens (ids from `text_vocab_size`) stay; every other token
    becomes padding (transformers' `JanusForConditionalGeneration.generate` does the same).
    """
    is_image = token_ids >= text_vocab_size
    kept = is_image | (token_ids == special_ids.bos) | (token_ids == special_ids.begin_of_image)
    return token_ids.masked_fill(~kept, special_ids.pad)


def guided_logits(
    conditional: torch.Tensor, unconditional: torch.Tensor, guidance_scale: torch.Tensor | float
) -> torch.Tensor:
    """`u + w (c - u)`, float32 [num_sequences, num_codes], up to a constant a row.

    Logits and log-probabilities serve alike, since a softmax ignores that constant. So do the inputs of the layer
    that gives the logits, since it is affine and the factors w and 1 - w add up to 1: mixed before it or after it
    is the same. A tensor `guidance_scale` is [num_sequences, 1].
    """
    return unconditional + guidance_scale * (conditional - unconditional)
