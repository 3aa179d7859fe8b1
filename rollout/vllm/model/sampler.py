"""From hidden states to tokens: heads only where they are read, guidance, chance, log-probabilities.

                    ┌─ rows that write ─► text head ──────────────────────────────┐
    hidden [B, S d] ┤                                                             ├─► tokens, log-probabilities
                    └─ rows that draw ──► code head of both streams ─► u + w(c-u) ┘

S is the number of streams: 2, or 1 in an engine without guidance. Nothing here knows vLLM:
`rollout.vllm.model.first_runner` puts it in the place of vLLM's sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from rollout.guidance import guided_logits
from rollout.vllm.model import noise

Head = Callable[[torch.Tensor], torch.Tensor]
"""[n, d] hidden states of one stream to [n, num_columns] logits."""


@dataclass(frozen=True, slots=True)
class RowSettings:
    """How one sequence is sampled."""

    seed: int
    temperature: float
    """0 is greedy."""
    guidance_scale: float | None
    """None: the sequence is text."""
    top_k: int | None = None
    """Only the so many likeliest tokens are sampled; None: all."""


_ALL = 2**31
"""For `top_k`: more than any vocabulary has."""


class Sampled(NamedTuple):
    """One token a row."""

    token_ids: torch.Tensor
    """int64 [B]: text ids; codes from `text_vocab_size`."""
    logprobs: torch.Tensor
    """float32 [B, 2], nats. First: at temperature 1 under the conditional stream, or of the distribution that was
    sampled from. Second: of a code under the unconditional stream at temperature 1; NaN where there is none."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of one phase."""

    rows: torch.Tensor | None
    """int64 [n]; None: all rows of the batch, in their order."""
    streams: torch.Tensor
    """int64 [n]; see `noise.streams`."""
    temperatures: torch.Tensor
    """float32 [n, 1]; 1 for a greedy row."""
    greedy: torch.Tensor | None
    """bool [n]; None: no row is."""
    is_all_greedy: bool
    scales: torch.Tensor
    """float32 [n, 1]; NaN in text."""
    top_k: torch.Tensor | None
    """int64 [n, 1]: only the so many likeliest tokens are sampled; None: no row leaves any out."""
    largest_top_k: int

    @classmethod
    def of(cls, settings: Sequence[RowSettings], draws: bool, device: torch.device) -> _Part | None:
        chosen = [(row, one) for row, one in enumerate(settings) if (one.guidance_scale is not None) == draws]
        if not chosen:
            return None
        rows, ours = zip(*chosen, strict=True)
        is_greedy = [one.temperature == 0 for one in ours]
        top_k = [one.top_k or _ALL for one in ours]
        has_top_k = min(top_k) < _ALL

        def on_device(values: Sequence[int] | Sequence[float] | Sequence[bool]) -> torch.Tensor:
            # From page-locked memory, so that the host, which may be a step ahead, does not wait for the device.
            there = torch.tensor(values, pin_memory=device.type == "cuda")
            return there.to(device, non_blocking=True)

        return cls(
            rows=None if len(rows) == len(settings) else on_device(rows),
            streams=noise.streams(on_device([one.seed for one in ours])),
            temperatures=on_device([one.temperature or 1.0 for one in ours]).unsqueeze(-1),
            greedy=on_device(is_greedy) if any(is_greedy) else None,
            is_all_greedy=all(is_greedy),
            scales=on_device(
                [float("nan") if one.guidance_scale is None else one.guidance_scale for one in ours]
            ).unsqueeze(-1),
            top_k=on_device(top_k).unsqueeze(-1) if has_top_k else None,
            largest_top_k=max(top_k),
        )

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """Of a tensor with one row for each of the batch, this part's."""
        return values if self.rows is None else values[self.rows]

    def choose(self, logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """int64 [n] of float32 [n, num_columns]; positions: int64 [B]."""
        if self.is_all_greedy:
            return logits.argmax(-1)
        keys = noise.keys(self.streams, self.take(positions))
        drawn = noise.sample(self._without_unlikely(logits), self.temperatures, keys)
        return drawn if self.greedy is None else torch.where(self.greedy, logits.argmax(-1), drawn)

    def _without_unlikely(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits` with -inf in the columns that a row's `top_k` leaves out; those as likely as the last one stay."""
        if self.top_k is None:
            return logits
        num_columns = logits.shape[-1]
        likeliest = logits.topk(min(self.largest_top_k, num_columns)).values
        last = likeliest.gather(-1, self.top_k.clamp(max=num_columns) - 1)
        return logits.masked_fill(logits < last, float("-inf"))


class Batch:
    """The rows of a batch, by phase; made anew when a request joins, leaves or moves."""

    def __init__(self, settings: Sequence[RowSettings], device: torch.device) -> None:
        self.size = len(settings)
        self.writing = _Part.of(settings, draws=False, device=device)
        self.drawing = _Part.of(settings, draws=True, device=device)


class TokenSampler:
    """Samples one token for each row."""

    def __init__(
        self, text_head: Head, code_head: Head, text_vocab_size: int, num_streams: int, sampled_logprobs: bool
    ) -> None:
        """sampled_logprobs: see `rollout.engine.EngineSettings`."""
        self._text_head = text_head
        self._code_head = code_head
        self._text_vocab_size = text_vocab_size
        self._num_streams = num_streams
        self._sampled_logprobs = sampled_logprobs

    def __call__(self, hidden: torch.Tensor, batch: Batch, positions: torch.Tensor) -> Sampled:
        """hidden: [B, S d], conditional stream first; positions: int64 [B], the place of the token in its sequence."""
        parts = [
            (part, sample(part, part.take(hidden), positions))
            for part, sample in ((batch.writing, self._write), (batch.drawing, self._draw))
            if part is not None
        ]
        if len(parts) == 1:
            return parts[0][1]
        token_ids = torch.empty(batch.size, dtype=torch.int64, device=hidden.device)
        logprobs = torch.empty(batch.size, 2, device=hidden.device)
        for part, sampled in parts:
            token_ids[part.rows] = sampled.token_ids
            logprobs[part.rows] = sampled.logprobs
        return Sampled(token_ids, logprobs)

    def _write(self, part: _Part, hidden: torch.Tensor, positions: torch.Tensor) -> Sampled:
        logits = self._text_head(hidden.chunk(self._num_streams, -1)[0].contiguous()).float()
        token_ids = part.choose(logits, positions)
        recorded = logits / part.temperatures if self._sampled_logprobs else logits
        return Sampled(token_ids, _with_none(noise.logprobs(recorded.unsqueeze(1), token_ids)))

    def _draw(self, part: _Part, hidden: torch.Tensor, positions: torch.Tensor) -> Sampled:
        num_rows = hidden.shape[0]
        logits = self._code_head(hidden.reshape(num_rows * self._num_streams, -1)).float()
        logits = logits.view(num_rows, self._num_streams, -1)  # [n, S, num_codes]
        guided = guided_logits(logits[:, 0], logits[:, -1], part.scales) if self._num_streams == 2 else logits[:, 0]
        codes = part.choose(guided, positions)
        logprobs = noise.logprobs(logits, codes)
        if self._num_streams == 1:
            logprobs = _with_none(logprobs)
        if self._sampled_logprobs:
            logprobs[:, :1] = noise.logprobs((guided / part.temperatures).unsqueeze(1), codes)
        return Sampled(codes + self._text_vocab_size, logprobs)


def _with_none(logprobs: torch.Tensor) -> torch.Tensor:
    """[n, 2] of [n, 1], with NaN as the second."""
    return torch.nn.functional.pad(logprobs, (0, 1), value=float("nan"))
