"""Ending tasks, those included that do not hear it the first time."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from cluster.pools.cancellation import end_tasks

WAIT_S = 20.0


async def begun(work: Any) -> asyncio.Task[Any]:
    """A task that has come to its first wait."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def test_tasks_have_ended_when_it_returns_and_what_they_raise_is_dropped() -> None:
    cleaned: list[str] = []

    async def clean_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("done")

    async def fail() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("too late to matter")

    tasks = [await begun(clean_up()), await begun(fail()), await begun(asyncio.sleep(0))]
    await asyncio.wait_for(end_tasks(tasks), WAIT_S)
    assert all(task.done() for task in tasks)
    assert cleaned == ["done"]


async def test_a_task_that_swallows_its_first_cancellation_is_cancelled_again() -> None:
    async def swallow() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    task = await begun(swallow())
    await asyncio.wait_for(end_tasks([task]), WAIT_S)
    assert task.cancelled()


async def test_of_no_tasks_there_is_nothing_to_wait_for() -> None:
    await asyncio.wait_for(end_tasks([]), WAIT_S)


async def test_who_ends_tasks_can_be_cancelled_too() -> None:
    async def deaf() -> None:
        while not released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await released.wait()

    released = asyncio.Event()
    task = await begun(deaf())
    ending = await begun(end_tasks([task]))
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(ending, WAIT_S)
    released.set()
    await asyncio.wait_for(task, WAIT_S)
