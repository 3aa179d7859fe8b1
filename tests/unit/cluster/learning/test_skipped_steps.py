"""Optimizer steps without an update are told, and end the run when they follow one another."""

from __future__ import annotations

import pytest

from cluster.learning.skipped_steps import SkippedSteps
from configs.errors import RunError
from learner.worker import StepReport

APPLIED = StepReport(1, {}, None)
PARTLY = StepReport(1, {}, "non-finite gradient", has_learned=True)
SKIPPED = StepReport(1, {}, "non-finite loss", has_learned=False)


def steps_until_the_end(num_steps: int, reports: list[StepReport]) -> tuple[int, str]:
    """How many of the reports are taken before the run is ended, and why it is; all, and nothing."""
    skipped = SkippedSteps(num_steps)
    for step, report in enumerate(reports, start=1):
        skipped.count(step, report)
        try:
            skipped.check(step)
        except RunError as error:
            return step, str(error)
    return len(reports), ""


def test_each_step_without_an_update_is_told_with_its_reason():
    skipped = SkippedSteps(10)
    assert skipped.count(1, APPLIED) is None
    assert skipped.count(2, SKIPPED) == "step 2: non-finite loss; the weights stay as they were"
    assert skipped.count(3, PARTLY) == "step 3: non-finite gradient; other updates of the step were made"


@pytest.mark.parametrize(
    ("num_steps", "reports", "ended_at"),
    [
        (100, [SKIPPED] * 9, 3),
        (100, [APPLIED, SKIPPED, SKIPPED, APPLIED, SKIPPED, SKIPPED, SKIPPED], 7),
        (3, [APPLIED, SKIPPED, SKIPPED], 3),
        (1, [SKIPPED], 1),
    ],
)
def test_a_run_that_learns_no_more_ends_with_the_reason(num_steps: int, reports: list[StepReport], ended_at: int):
    step, reason = steps_until_the_end(num_steps, reports)
    assert step == ended_at
    assert "the policy learns no more" in reason
    assert "the last for its non-finite loss; lower learner.lr" in reason


@pytest.mark.parametrize("reports", [[SKIPPED, SKIPPED, APPLIED] * 3, [PARTLY] * 9, [APPLIED] * 8 + [SKIPPED]])
def test_a_run_that_still_learns_goes_on(reports: list[StepReport]):
    assert steps_until_the_end(len(reports), reports) == (len(reports), "")
