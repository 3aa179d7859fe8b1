"""Prompts: from a file or the shapes world to an endless stream of shuffled epochs with random access.

    source ─► load_prompts ─► PromptSet ─► PromptSource ─► prompt of group 0, 1, 2, ...

Bad records stay in the PromptSet as `skipped`, with their places and reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from rollout.prompts.files import BadRecord, parse_prompt, read_records
from rollout.records import Prompt, derive_seed

SHAPES = "shapes"
_NUM_REASONS_SHOWN = 5
_MAX_DIGITS = 9


@dataclass(frozen=True, slots=True)
class SkippedPrompt:
    """A record or prompt that is left out."""

    place: str
    """`line 17`, `row 17`, `item 17`, or a prompt's id."""
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class PromptSet:
    """All prompts of one source, in its order, and what was left out of it."""

    source: str
    prompts: tuple[Prompt, ...]
    skipped: tuple[SkippedPrompt, ...] = ()

    def without(self, reason_against: Callable[[Prompt], str | None]) -> PromptSet:
        """The set without the prompts for which `reason_against` gives a reason; they join `skipped`.

        Raises DataError when none is left.
        """
        kept: list[Prompt] = []
        skipped = list(self.skipped)
        for prompt in self.prompts:
            reason = reason_against(prompt)
            if reason is None:
                kept.append(prompt)
            else:
                skipped.append(SkippedPrompt(prompt.prompt_id, reason))
        if not kept:
            raise DataError(f"{self.source}: no prompt is left\n{summarize_skipped(skipped)}")
        return replace(self, prompts=tuple(kept), skipped=tuple(skipped))

    @property
    def num_by_task_type(self) -> Mapping[str, int]:
        """How many prompts there are of each task type, most frequent first."""
        return dict(Counter(prompt.task_type for prompt in self.prompts).most_common())


def load_prompts(source: str, max_bad_lines: int) -> PromptSet:
    """Read a prompt file, or draw from the shapes world.

    source: a .jsonl, .json, .csv, .parquet or .txt file; `shapes:SPLIT`, or `shapes:SPLIT:NUM` for the
    first NUM prompts of it. A bad record is skipped and kept in `skipped`.

    Raises DataError when more than `max_bad_lines` records are bad, when none is good, or when the file
    cannot be read.
    """
    if source.partition(":")[0] == SHAPES:
        return PromptSet(source, tuple(_load_shapes(source)))
    path = Path(source)
    prompts: list[Prompt] = []
    skipped: list[SkippedPrompt] = []
    for unit, number, record in read_records(path):
        try:
            prompts.append(parse_prompt(record, f"{path.name}:{number}"))
        except BadRecord as error:
            skipped.append(SkippedPrompt(f"{unit} {number}", str(error)))
    if len(skipped) > max_bad_lines:
        raise DataError(
            f"{path}: {len(skipped)} records are bad, data.max_bad_lines allows {max_bad_lines}; "
            f"mend the file or raise the limit\n{summarize_skipped(skipped)}"
        )
    if not prompts:
        bad = f"\n{summarize_skipped(skipped)}" if skipped else ""
        raise DataError(f"{path}: there is no prompt in this file{bad}")
    return PromptSet(source, tuple(prompts), tuple(skipped))


def summarize_skipped(skipped: Sequence[SkippedPrompt]) -> str:
    """The first few, a line each, indented, and how many more there are."""
    lines = [f"  {entry}" for entry in skipped[:_NUM_REASONS_SHOWN]]
    if len(skipped) > _NUM_REASONS_SHOWN:
        lines.append(f"  and {len(skipped) - _NUM_REASONS_SHOWN} more")
    return "\n".join(lines)


def _load_shapes(source: str) -> Sequence[Prompt]:
    from rollout.shapes import load_split

    _, _, split_and_num = source.partition(":")
    split, _, num = split_and_num.partition(":")
    if not split or (num and (not num.isdecimal() or len(num) > _MAX_DIGITS or int(num) == 0)):
        raise DataError(f"{source}: expected shapes:SPLIT or shapes:SPLIT:NUM, such as shapes:heldout:192")
    return load_split(split, int(num)) if num else load_split(split)


class PromptSource:
    """The prompts of a run: an endless stream of epochs, each shuffled by the seed and its number.

    `prompt_at` is a pure function of the index: the prompt of group n is the same in every run with
    this seed, after every resume, and whichever worker asks.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, *, shuffle: bool = True) -> None:
        if not prompts:
            raise ValueError("a PromptSource needs at least one prompt")
        self._prompts = tuple(prompts)
        self._seed = seed
        self._shuffle = shuffle
        # Indices move forward, with a few groups of the last epoch still to be rolled again.
        self._order = lru_cache(maxsize=4)(self._make_order)

    def prompt_at(self, index: int) -> Prompt:
        """Prompt number `index` of the stream, from 0, counted over epochs."""
        if index < 0:
            raise ValueError(f"index {index} is negative")
        epoch, position = divmod(index, len(self._prompts))
        return self._prompts[int(self._order(epoch)[position])]

    def _make_order(self, epoch: int) -> NDArray[np.int64]:
        if not self._shuffle:
            return np.arange(len(self._prompts), dtype=np.int64)
        rng = np.random.default_rng(derive_seed(self._seed, "prompts", epoch))
        return rng.permutation(len(self._prompts))
