"""A run on several Ray nodes of this one machine, for `test_elasticity.py`.

    python -m tests.integration.elastic_run DIRECTORY

    head: learner, reward, rollout-0        no room for another rollout worker
    + a node        ─► the pool grows: rollout-1 draws, too, in the steps that follow
    - that node     ─► rollout-1 is lost with the groups it was at; rollout-0 goes on
    + another node  ─► its successor joins there; the node is told to go ─► the successor drains, and leaves

The successor is rollout-2, or a later one: Ray may still try to start it on the node that has just died. Each event
waits for the one before it, for so long as a busy machine may take. Leaves what came of it as JSON in
DIRECTORY/report.json.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cluster.session.nodes import usable_nodes
from cluster.state.registry import GroupState
from rollout.records import ScoredGroup
from tests.integration.own_cluster import REPORT, own_cluster
from tests.integration.training import Outcome, RecordingLog, run_tree, train

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}
WAIT_S = 120.0
NUM_SHARED_STEPS = 5
PREEMPTION = 2
"""Ray's number for this reason to drain a node."""


class Story:
    """What happens to the nodes while the run goes on."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._chapters = [self._add_node, self._kill_node, self._add_node, self._drain_node, self._stop]
        self._waits_for: Callable[[RecordingLog], bool] = lambda log: True
        self._node: Any = None
        self.happened: dict[str, float] = {}
        self.known: list[frozenset[str]] = []
        """Who had drawn when a node was added, each time."""
        self.usable = (0, 0)
        """Nodes that count for a placement before and after one was told to go."""

    async def act(self, log: RecordingLog, event: str, number: int) -> None:
        """Called after each step: the next event, once what it waits for has come."""
        if event == "step" and self._chapters and self._waits_for(log):
            chapter = self._chapters.pop(0)
            self.happened[chapter.__name__.strip("_")] = time.monotonic()
            await chapter(log)

    async def _add_node(self, log: RecordingLog) -> None:
        self._node = self._cluster.add_node(**NODE)  # it sets signal handlers, which only the main thread may
        known = frozenset(worker_id for groups in log.groups.values() for worker_id in drawers_of(groups))
        self.known.append(known)
        self._waits_for = lambda log: len(steps_shared(log, known)) == NUM_SHARED_STEPS

    async def _kill_node(self, log: RecordingLog) -> None:
        self._cluster.remove_node(self._node, allow_graceful=False)
        self._waits_for = lambda log: any("rollout-1" in note and "starting another" in note for note in log.notes)

    async def _drain_node(self, log: RecordingLog) -> None:
        from ray._raylet import GcsClient

        client = GcsClient(address=ray.get_runtime_context().gcs_address)
        deadline_ms = int((time.time() + 600) * 1000)
        before = len(usable_nodes())
        accepted, reason = client.drain_node(self._node.node_id, PREEMPTION, "spot notice", deadline_ms)
        assert accepted, reason
        self.usable = (before, len(usable_nodes()))
        self._waits_for = lambda log: any(" leaves: " in note for note in log.notes)

    async def _stop(self, log: RecordingLog) -> None:
        assert log.run is not None
        log.run.stop()


def drawers_of(groups: Sequence[ScoredGroup]) -> list[str]:
    return [group.rollout.worker_id for group in groups]


def steps_shared(log: RecordingLog, known: frozenset[str]) -> list[list[str]]:
    """Who drew the groups of the first NUM_SHARED_STEPS steps from the first that one not `known` drew in, as far as
    they are made."""
    steps = [drawers_of(log.groups[step]) for step in sorted(log.groups)]
    return list(dropwhile(known.issuperset, steps))[:NUM_SHARED_STEPS]


def share_of_newcomer(log: RecordingLog, known: frozenset[str]) -> float:
    """The part of those groups that was drawn by one not `known`."""
    drawers = [worker_id for step in steps_shared(log, known) for worker_id in step]
    return sum(worker_id not in known for worker_id in drawers) / len(drawers)


def config_tree(directory: Path) -> dict[str, Any]:
    return run_tree(
        "elastic",
        directory,
        run={"steps": 5000, "start_timeout_s": WAIT_S},
        algorithm={"groups_per_step": 4},
        rollout={"num_workers": {"min": 1, "max": 2}, "cpus_per_worker": 0.4, "max_groups_per_worker": 4},
        samples={"every_steps": 5000},
        checkpoint={"every_steps": 5000},
        cluster={
            "heartbeat_s": 2.0,
            "heartbeat_timeout_s": 20.0,
            "scaling": {"every_s": 0.2, "grow_after_s": 1.0, "shrink_after_s": 600.0},
        },
    )


def report(outcome: Outcome, story: Story) -> dict[str, Any]:
    groups = [group for step in sorted(outcome.log.groups) for group in outcome.log.groups[step]]
    counts = outcome.snapshot.group_counts if outcome.snapshot is not None else {}
    return {
        "error": None if outcome.error is None else repr(outcome.error),
        "status": None if outcome.summary is None else outcome.summary.status,
        "events": list(story.happened),
        "usable": story.usable,
        "sequences": [group.rollout.request.sequence for group in groups],
        "workers": sorted(set(drawers_of(groups))),
        "shares": [share_of_newcomer(outcome.log, known) for known in story.known],
        "num_trained": counts.get(GroupState.TRAINED, 0),
        "failed_on": sorted({reason.split()[0] for _, reason in outcome.log.failures}),
        "notes": outcome.log.notes,
    }


def main(directory: Path) -> None:
    # A dead node is noticed after about a second; Ray's own defaults take a quarter of a minute.
    health = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500}
    system = {**health, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
    with own_cluster(system, **NODE) as cluster:
        story = Story(cluster)
        outcome = asyncio.run(train(config_tree(directory), story.act))
        (directory / REPORT).write_text(json.dumps(report(outcome, story)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
