"""The end of a run, in steps of which each is taken whatever became of those before: what a full disk or a lost service
breaks must neither hide why the run ended nor leave its processes behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.reports import RunLog
from cluster.reports.metrics import (
    RewardChange,
    RunSummary,
    critical_path_of,
    first_and_last_reward,
    slowest_reward,
    write_summary,
)
from cluster.state import RunState
from configs.local.masking import mask_text


@contextmanager
def noted(note: Callable[[str], None], what: str) -> Iterator[None]:
    """An error inside is a line for the user."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the next step of the end is taken whatever this one raises
        note(f"{what}: {error}")


def summarize(
    log: RunLog,
    state: RunState,
    status: str,
    evaluation: dict[str, RewardChange],
    checkpoint: str | None,
    error: BaseException | None,
) -> RunSummary:
    """What is to be said of a run that ends in `state`; checkpoint: the folder of its model."""
    rows = log.metrics.rows
    first, last = first_and_last_reward(rows)
    images = int(sum(row["images"] or 0 for row in rows))
    return RunSummary(
        status=status,
        steps=state.step,
        images=images,
        wall_s=state.training_s,
        images_per_s=images / state.training_s if state.training_s else 0.0,
        evaluation=evaluation,
        reward_first=first,
        reward_last=last,
        checkpoint=checkpoint,
        groups_failed=log.num_failed_groups,
        groups_given_up=state.num_given_up,
        slowest_reward=slowest_reward(rows),
        critical_path=critical_path_of(rows),
        error=None if error is None else mask_text(f"{type(error).__name__}: {error}"),
    )


async def leave_behind(log: RunLog, summary: RunSummary) -> None:
    """Write the files of a run's end: summary, curves, timeline, report; end its trackers. What fails is a note."""
    with noted(log.note, "the summary could not be written"):
        keep_summary(log, summary)
    with noted(log.note, "the curves could not be drawn"):
        await log.draw_curves()
    with noted(log.note, "the timeline could not be written"):
        log.end_timeline()
    log.trackers.summary(summary.to_json())
    await asyncio.to_thread(log.trackers.close)
    for warning in log.trackers.take_warnings():
        log.note(warning)
    if log.config.watching.report:
        from cluster.report import write_report

        with noted(log.note, "the report could not be written"):
            await asyncio.to_thread(write_report, [log.directory.path], log.directory.report_path)


def keep_summary(log: RunLog, summary: RunSummary) -> None:
    """Write summary.json, into a folder that is made again where it has gone. Raises OSError."""
    try:
        write_summary(log.directory.summary_path, summary)
    except FileNotFoundError:
        log.directory.make_again(log.config)
        write_summary(log.directory.summary_path, summary)
