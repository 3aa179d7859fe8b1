"""T2I-R1's reading of the ORM's answer; what is wrong with it is in rewards/t2i_r1/__init__.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rollout.records import Score

DEFAULT_TOP_K = 50
"""transformers' own, for a checkpoint that says nothing."""


class SampledReply:
    """Samples the first token of an answer, and scores it.

    temperature: T2I-R1's is 0.3. settings: of the checkpoint, whose top_k and top_p `generate` applies unasked.
    token_of: id -> token as the vocabulary spells it, before any decoding.
    """

    def __init__(
        self,
        temperature: float,
        settings: GenerationConfig | None,
        yes_id: int,
        no_id: int,
        token_of: Callable[[int], str],
    ) -> None:
        top_k = getattr(settings, "top_k", None) or DEFAULT_TOP_K
        top_p = getattr(settings, "top_p", None) or 1.0
        self._warpers = sampling_steps(temperature, top_k, top_p)
        self._yes_id, self._no_id, self._token_of = yes_id, no_id, token_of
        self._generator = torch.Generator().manual_seed(0)

    def scores(self, logits: Tensor) -> list[Score]:
        """One drawn reply a row of logits, float32 [B, vocabulary], with its score."""
        probabilities = reply_probabilities(logits.cpu(), self._warpers)
        drawn = torch.multinomial(probabilities, num_samples=1, generator=self._generator)[:, 0].tolist()
        return [
            score_reply(self._token_of(token_id), float(row[self._yes_id]), float(row[self._no_id]))
            for token_id, row in zip(drawn, probabilities, strict=True)
        ]


def sampling_steps(temperature: float, top_k: int, top_p: float) -> LogitsProcessorList:
    """What `generate` does to logits before it draws, in its order."""
    steps = [TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k)]
    return LogitsProcessorList([*steps, TopPLogitsWarper(top_p)] if top_p < 1 else steps)


def reply_probabilities(logits: Tensor, steps: LogitsProcessorList) -> Tensor:
    """Probabilities [B, vocabulary] of what is drawn; what top_k and top_p cut off has 0."""
    return torch.softmax(steps(torch.empty(len(logits), 0, dtype=torch.long), logits), dim=-1)


def score_reply(token: str, p_yes: float, p_no: float) -> Score:
    """P(yes) / (P(yes) + P(no)) if the token drawn is "yes" or "no" in any case, else 0.

    A token with the vocabulary's sign of a leading space is neither. Where "Yes" was drawn and top_p left nothing of
    "yes" and "no", T2I-R1 divides by 0 and ends; this gives 0.
    """
    reply = token.lower().strip()
    total = p_yes + p_no
    value = p_yes / total if reply in ("yes", "no") and total > 0 else 0.0
    return Score(value, parts={"answer": token})
