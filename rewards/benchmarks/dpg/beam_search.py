"""Beam search as mPLUG's authors do it, for several questions at once.

A score is log P / ((5 + length) / 6)^0.6. A question ends when its best beam ends, or after `max_length` tokens; then
its beams that have not ended count as they are. A beam that has ended goes on beside the others. The best score of all
wins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

ALPHA: Final = 0.6
START, END = 101, 102
"""[CLS] and [SEP] of BERT's vocabulary, whose numbers the original has fixed, too."""
NEVER: Final = -1e20
Step = Callable[[Tensor, Tensor | None], Tensor]
"""(last tokens int64 [rows], beams that they come from int64 [rows], None at first) -> logits float [rows, vocabulary].
At first there is a row a question, later `beam_size` rows a question."""


def search(
    step: Step, num_questions: int, beam_size: int, min_length: int, max_length: int, device: torch.device
) -> list[Tensor]:
    """The best sequence of each question, int64 [length], from START on, with END where it has ended."""
    rows = torch.arange(num_questions, device=device)[:, None]
    tokens = torch.full((num_questions, 1, 1), START, device=device)
    log_probs = torch.zeros(num_questions, 1, device=device)
    origin: Tensor | None = None
    ended: list[list[tuple[float, Tensor]]] = [[] for _ in range(num_questions)]
    is_done = [False] * num_questions
    for number in range(max_length):
        logits = step(tokens[:, :, -1].reshape(-1), origin).float()
        num_beams, vocab_size = tokens.shape[1], logits.shape[-1]
        candidates = torch.log(torch.softmax(logits, dim=-1))
        if number < min_length:
            candidates[:, END] = NEVER
        penalty = ((5.0 + (number + 1)) / 6.0) ** ALPHA
        candidates = (candidates + log_probs.view(-1, 1)) / penalty
        scores, places = candidates.view(num_questions, num_beams * vocab_size).topk(beam_size, dim=-1)
        log_probs = scores * penalty
        beams, chosen = places // vocab_size, places % vocab_size
        tokens = torch.cat([tokens[rows, beams], chosen[:, :, None]], dim=-1)
        origin = (rows * num_beams + beams).reshape(-1)
        is_end = (chosen == END).tolist()
        for question in range(num_questions):
            if is_done[question]:
                continue
            is_done[question] = is_end[question][0] or number + 1 == max_length
            for beam in range(beam_size):
                if is_done[question] or is_end[question][beam]:
                    ended[question].append((scores[question, beam].item(), tokens[question, beam]))
        if all(is_done):
            break
    return [max(of_question, key=lambda one: one[0])[1] for of_question in ended]
