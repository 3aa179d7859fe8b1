"""Optimizer steps that left the weights as they were: told one by one, and the end of a run that learns no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from configs.errors import RunError

if TYPE_CHECKING:
    from learner.worker import StepReport

MAX_IN_A_ROW: Final = 3
"""One batch may be not finite by chance; weights that make three so make all of them so, as nothing changes them."""


@dataclass(slots=True)
class SkippedSteps:
    """Counts the steps in a row of which no optimizer update was applied, since loss or gradient were not finite."""

    num_steps: int
    """Of the whole run."""
    _num_in_a_row: int = 0
    _reason: str = ""

    def count(self, step: int, report: StepReport) -> str | None:
        """What to tell of step number `step`, from 1; None where all its updates were applied."""
        self._num_in_a_row = 0 if report.has_learned else self._num_in_a_row + 1
        if report.skipped is None:
            return None
        self._reason = report.skipped
        effect = "the weights stay as they were" if not report.has_learned else "other updates of the step were made"
        return f"step {step}: {report.skipped}; {effect}"

    def check(self, step: int) -> None:
        """Raises RunError after step number `step` when the run cannot learn any more.

        That is after MAX_IN_A_ROW steps without an update, or at the run's end when its last steps had none.
        """
        is_at_its_end = step == self.num_steps
        limit = min(2, self.num_steps) if is_at_its_end else MAX_IN_A_ROW
        if self._num_in_a_row >= limit:
            raise RunError(
                f"the policy learns no more: {self._num_in_a_row} steps in a row made no update, the last for its "
                f"{self._reason}; lower learner.lr or algorithm.kl_coef, look at the rewards' range, and go on from a "
                "checkpoint before that"
            )
