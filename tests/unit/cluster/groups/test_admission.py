"""Admission bounds staleness by its formula, whatever the timing."""

from __future__ import annotations

import asyncio

import pytest

from cluster.groups import Admission

WAIT_S = 0.05


@pytest.mark.parametrize(("groups_per_step", "max_staleness", "version"), [(1, 0, 0), (4, 0, 3), (4, 1, 0), (3, 4, 7)])
def test_the_limit_is_the_documented_formula(groups_per_step: int, max_staleness: int, version: int) -> None:
    admission = Admission(groups_per_step, max_staleness, version)
    assert admission.limit == (version + max_staleness + 1) * groups_per_step


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
async def test_a_group_of_step_k_starts_at_version_k_minus_max_staleness_or_later(max_staleness: int) -> None:
    groups_per_step, num_steps = 3, 6
    admission = Admission(groups_per_step, max_staleness)
    version = 0
    started_at: dict[int, int] = {}

    async def start(sequence: int) -> None:
        await admission.admit(sequence)
        started_at[sequence] = version

    tasks = [asyncio.create_task(start(sequence)) for sequence in range(num_steps * groups_per_step)]
    for version in range(num_steps):
        await admission.advance(version)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.wait_for(asyncio.gather(*tasks), 5)
    for sequence, version_at_start in started_at.items():
        assert version_at_start == max(0, sequence // groups_per_step - max_staleness)


async def test_a_group_beyond_the_limit_waits() -> None:
    admission = Admission(2, 0)
    await asyncio.wait_for(admission.admit(1), WAIT_S)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(admission.admit(2), WAIT_S)


async def test_a_version_that_goes_back_is_refused() -> None:
    admission = Admission(2, 1, version=5)
    with pytest.raises(ValueError, match="went back from 5 to 4"):
        await admission.advance(4)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="groups_per_step 0"):
        Admission(0, 1)
