"""What a run knows of itself after so many steps: with the learner's state, all that going on needs.

The place among the prompts needs no cursor of its own: group `sequence` belongs to step
`sequence // groups_per_step`, and its prompt and its seeds are pure functions of `sequence` and of how
often a prompt was replaced there. Groups that were in flight are rolled again, and so come out the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from configs.errors import DataError
from rollout.records import Prompt


@dataclass(frozen=True, slots=True)
class RunState:
    """The state after `step` optimizer steps."""

    step: int = 0
    replaced: Mapping[int, int] = field(default_factory=dict)
    """Sequence -> prompts given up or resampled there, of groups that are not trained on yet."""
    num_given_up: int = 0
    num_resampled: int = 0
    num_failed_groups: int = 0
    training_s: float = 0.0
    prompts_digest: str = ""
    """See `digest_of`; empty when the run has not begun."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunState:
        tree = json.loads(text)
        replaced = {int(sequence): int(count) for sequence, count in tree.pop("replaced").items()}
        return cls(replaced=replaced, **tree)

    def check_prompts(self, prompts: Sequence[Prompt], source: str) -> None:
        """Raises DataError when these are not the prompts that the run began with."""
        if self.prompts_digest and self.prompts_digest != digest_of(prompts):
            raise DataError(
                f"{source}: these are not the prompts that the run began with, so it cannot go on as it was; "
                "bring the file back as it was, or start a new run from the checkpoint's model folder"
            )


def digest_of(prompts: Sequence[Prompt]) -> str:
    """Of ids and texts, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(f"{prompt.prompt_id}\n{prompt.text}\n".encode())
    return digest.hexdigest()
