"""Are engines asked what the learner would have asked?

    prompt's words, sampled CoT ─► the learner's own chat template and tokenizer ─► token ids
                                                           against those that a worker recorded, to the last one

Log-probabilities cannot show this: the learner passes the very ids that a worker made of a prompt, so a worker whose
model folder has another chat template, or another tokenizer, changes both sides alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from configs.errors import DataError, LearnerError
from configs.schema import RunConfig
from rollout.prompts import Conversation
from rollout.records import GroupRollout, Int32Array, Trajectory

NUM_FATAL: Final = 2
"""Batches of which a difference ends the run, as of the parity gate's other comparisons."""
_NUM_SHOWN: Final = 8
"""Tokens that a message shows of each side, from the first one that differs."""


@dataclass(slots=True)
class PromptCheck:
    """Compares the prompts of one trajectory of each group. Not collective: all ranks see the same groups, and judge
    them alike."""

    config: RunConfig
    conversation: Conversation
    _num_judged: int = 0
    _noted_at: int | None = None

    def judge(self, groups: Sequence[GroupRollout], probes: Sequence[GroupRollout], version: int) -> str | None:
        """A note when a worker has asked with other tokens than the learner makes of the same words.

        groups: those of a batch; probes: see `GroupSampler.probe`; version: the learner's. Raises LearnerError in
        place of the note for the first two batches.
        """
        may_end, self._num_judged = self._num_judged < NUM_FATAL, self._num_judged + 1
        found: dict[str, str] = {}
        for group, has_cot in [*((group, True) for group in groups), *((probe, False) for probe in probes)]:
            if group.worker_id not in found and (difference := self._difference(group, has_cot)):
                found[group.worker_id] = difference
        if not found:
            return None
        workers = "; ".join(f"worker {worker}, {difference}" for worker, difference in sorted(found.items()))
        note = (
            f"parity gate, weight version {version}: prompts were asked in other tokens than the learner's: {workers}"
        )
        if may_end:
            raise LearnerError(
                f"{note}. Look for another chat template, tokenizer or bicot_conversation.json in the model folder of "
                "that worker's node, or of the learner's"
            )
        if self._noted_at is not None and version < self._noted_at + self.config.parity.every_steps:
            return None
        self._noted_at = version
        return note

    def _difference(self, group: GroupRollout, has_cot: bool) -> str | None:
        """Of the group's first trajectory: what its prompts begin to differ with. has_cot: whether its CoT is a part
        of the image prompt, as in all groups but probes."""
        trajectory, prompt = group.trajectories[0], group.request.prompt.text
        try:
            for recorded, own in self._both(trajectory, prompt, has_cot):
                if not np.array_equal(recorded, own):
                    return f"prompt '{prompt[:40]}': {self._from_first(recorded, own)}"
        except DataError as error:
            return f"the learner could not ask it: {error}"
        return None

    def _both(self, trajectory: Trajectory, prompt: str, has_cot: bool) -> Iterator[tuple[Int32Array, Int32Array]]:
        """(recorded, the learner's own) ids of the semantic prompt and of the image prompt.

        Raises DataError for a prompt that is too long in the learner's tokens.
        """
        rollout, conversation = self.config.rollout, self.conversation
        semantic_prompt_ids = conversation.semantic_prompt(prompt)
        conversation.check_length(semantic_prompt_ids, rollout.max_prompt_tokens, prompt)
        yield trajectory.semantic_prompt_ids, semantic_prompt_ids
        cot = conversation.decode_cot(trajectory.cot_ids) if has_cot else ""
        yield trajectory.image_prompt_ids, conversation.image_prompt(prompt, cot, rollout.max_cot_tokens)

    def _from_first(self, recorded: Int32Array, own: Int32Array) -> str:
        """Both texts from shortly before the first token that differs."""
        shorter = min(len(recorded), len(own))
        differs = recorded[:shorter] != own[:shorter]
        first = max(0, (int(differs.argmax()) if differs.any() else shorter) - 1)
        theirs, ours = (
            self.conversation.tokenizer.decode(ids[first : first + _NUM_SHOWN].tolist()) for ids in (recorded, own)
        )
        return f"'{theirs}' from token {first} on, the learner's '{ours}'"
