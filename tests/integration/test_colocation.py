"""An engine and a learner that take turns (`rollout.colocate`), and what becomes of a turn in which one of them dies.

That turns change nothing of a run is in `test_run.py`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import ray

from cluster.learning.turns import GpuTurns, Turn
from tests.integration.test_run_faults import QUICK_HEARTBEATS, assert_all_groups_trained, train_in_time
from tests.integration.training import RecordingLog, run_tree

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(300)]


class Killer:
    """Kills the rollout worker in its sleep in step 2, awake after step 3, and the learner in its turn in step 5."""

    def __init__(self) -> None:
        self.killed: list[tuple[str, Turn]] = []
        self._waiting: set[asyncio.Task[None]] = set()

    async def __call__(self, log: RecordingLog, event: str, number: int) -> None:
        match (event, number):
            case ("step", 1):
                self._waiting.add(asyncio.create_task(self._kill(log, "rollout-0", Turn.LEARNING)))
            case ("step", 3):
                await self._kill(log, "rollout-1", Turn.DRAWING)
            case ("step", 4) if len(self.killed) == 2:
                await log.saving.settle()  # the learner goes on from there
                self._waiting.add(asyncio.create_task(self._kill(log, "learner-0", Turn.LEARNING)))

    async def _kill(self, log: RecordingLog, role: str, turn: Turn) -> None:
        assert log.run is not None
        turns = log.run._turns
        assert isinstance(turns, GpuTurns)
        async with asyncio.timeout(120):
            while turns.turn is not turn:
                await asyncio.sleep(0.001)
        ray.kill(ray.get_actor(f"{log.directory.name}-{role}"))
        self.killed.append((role, turn))


@pytest.mark.proof
def test_whoever_dies_asleep_or_awake_comes_back_in_its_turn_and_no_group_is_lost(tmp_path: Path) -> None:
    tree = run_tree(
        "in-turns",
        tmp_path,
        run={"steps": 6, "max_restarts": 1},
        algorithm={"max_staleness": 0},
        rollout={"engine": "vllm", "colocate": True},
        learner={"micro_batch_size": 4, "lr": 1e-3, "cpus_per_rank": 0.5, "zero_stage": 1},
        checkpoint={"every_steps": 2},
        cluster=QUICK_HEARTBEATS,
    )
    killer = Killer()
    outcome = asyncio.run(train_in_time(tree, killer))
    assert_all_groups_trained(outcome)
    expected = [("rollout-0", Turn.LEARNING), ("rollout-1", Turn.DRAWING), ("learner-0", Turn.LEARNING)]
    assert killer.killed == expected
    assert [row["weight_version"] for row in outcome.rows] == list(range(1, 7))
    assert all(row["staleness/max"] == 0 for row in outcome.rows), "every newcomer had the live weights"
    assert {group.rollout.worker_id for group in outcome.log.groups[6]} == {"rollout-2"}, "it outlived the learner"
    notes = "\n".join(outcome.log.notes)
    assert "from step 4: " in notes
    for worker in ("rollout-0", "rollout-1"):
        assert any(note.startswith(f"{worker} ") and "starting another" in note for note in outcome.log.notes)
