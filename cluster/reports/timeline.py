"""timeline.json: where every group was when, as a Chrome trace that ui.perfetto.dev and chrome://tracing open.

    run       what the run was at: waiting, learning, syncing, evaluating, …; weight versions, restarts
    rollout   a lane a worker, more where it rolls several groups at once
    rewards   each group from the end of its rollout to its last score
    queue     each group from then until the learner took it; an arrow leads there from its rollout

The file is an array to which one event a line is appended, so that it can be opened while the run goes on: both readers
do without the closing bracket, which is written at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cluster.groups.roller import RolledGroup

RUN, ROLLOUT, REWARDS, QUEUE = 1, 2, 3, 4
_PROCESSES: Final = {RUN: "run", ROLLOUT: "rollout", REWARDS: "rewards", QUEUE: "queue"}
_END: Final = b'{"ph":"M","pid":1,"name":"end"}\n]\n'


class Timeline:
    """Collects events in memory and appends them at each `flush`. Times are Unix times in seconds."""

    def __init__(self, path: Path | None) -> None:
        """Begins the file, or goes on with that of an earlier life of the run; None: nothing is kept or written."""
        self._path = path
        self._pending: list[str] = []
        self._rows: dict[tuple[int, str], dict[int, float]] = {}
        """Process and lane -> place -> when what is there ends."""
        self._num_rows: dict[int, int] = {}
        for number, name in _PROCESSES.items():
            self._add(ph="M", pid=number, name="process_name", args={"name": name})
            self._add(ph="M", pid=number, name="process_sort_index", args={"sort_index": number})

    def span(self, process: int, lane: str, name: str, start_s: float, end_s: float, **args: object) -> int:
        """Something that took a while. Spans of a lane that overlap are put side by side. Returns the place."""
        place = self._place(process, lane, start_s, end_s)
        duration = max(0, _microseconds(end_s) - _microseconds(start_s))
        self._add(ph="X", pid=process, tid=place, ts=_microseconds(start_s), dur=duration, name=name, args=args)
        return place

    def moment(self, process: int, name: str, at_s: float, **args: object) -> None:
        """Something that happened."""
        self._add(ph="i", s="p", pid=process, tid=0, ts=_microseconds(at_s), name=name, args=args)

    def groups(self, rolled: Sequence[RolledGroup], learned_s: float) -> None:
        """The groups of a step, which the learner took at `learned_s`."""
        for group in rolled:
            rollout = group.scored.rollout
            sequence, prompt = rollout.request.sequence, rollout.request.prompt.text
            name, scored_s = f"group {sequence}", rollout.finished_s + group.scored.scored_s
            versions = {
                "oldest_weights": min(trajectory.oldest_weight_version for trajectory in rollout.trajectories),
                "newest_weights": max(trajectory.newest_weight_version for trajectory in rollout.trajectories),
            }
            place = self.span(
                ROLLOUT, rollout.worker_id, name, rollout.started_s, rollout.finished_s, prompt=prompt, **versions
            )
            self._arrow("s", ROLLOUT, place, rollout.finished_s, sequence)
            self.span(REWARDS, "rewards", name, rollout.finished_s, scored_s)
            self.span(QUEUE, "queue", name, scored_s, max(scored_s, learned_s))
            self._arrow("f", RUN, 1, learned_s, sequence)

    def flush(self) -> None:
        """Append what is new. Raises OSError; what could not be written is lost, since it is for people only."""
        if self._path is None or not self._pending:
            return
        data = ("".join(line + ",\n" for line in self._pending)).encode()
        self._pending.clear()
        with self._path.open("ab") as file:
            if (size := file.tell()) == 0:
                data = b"[\n" + data
            elif _ends_with(self._path, _END):
                file.truncate(size - len(_END))
            file.write(data)

    def close(self) -> None:
        """Append what is new, and end the array. Raises OSError."""
        self.flush()
        if self._path is not None and not _ends_with(self._path, _END):
            with self._path.open("ab") as file:
                file.write(_END)

    def _place(self, process: int, lane: str, start_s: float, end_s: float) -> int:
        """The first row of a lane that is free from `start_s` on; the rows of a process are numbered from 1."""
        rows = self._rows.setdefault((process, lane), {})
        place = next((place for place, end in rows.items() if end <= start_s), None)
        if place is None:
            place = self._num_rows[process] = self._num_rows.get(process, 0) + 1
            label = f"{lane} ({len(rows) + 1})" if rows else lane
            self._add(ph="M", pid=process, tid=place, name="thread_name", args={"name": label})
        rows[place] = end_s
        return place

    def _arrow(self, phase: str, process: int, place: int, at_s: float, number: int) -> None:
        event = {"ph": phase, "pid": process, "tid": place, "ts": _microseconds(at_s)}
        more = {"bp": "e"} if phase == "f" else {}  # it ends at the span that holds this moment
        self._add(**event, **more, id=number, name="group", cat="group")

    def _add(self, **event: object) -> None:
        if self._path is not None:
            self._pending.append(json.dumps(event, separators=(",", ":")))


def read_timeline(path: Path) -> list[Mapping[str, Any]]:
    """All events, also of a run that goes on or was killed; a torn last line is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        text = line.rstrip(",")
        if not text.startswith("{"):
            continue
        try:
            events.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return events


def is_of_run(line: str) -> bool:
    """Whether a line of the file is a span or a moment of the run itself; without parsing it."""
    return line.startswith(('{"ph":"X"', '{"ph":"i"')) and f'"pid":{RUN},' in line[:32]


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


def _ends_with(path: Path, end: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        if file.tell() < len(end):
            return False
        file.seek(-len(end), os.SEEK_END)
        return file.read() == end
