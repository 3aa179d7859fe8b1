"""The pulse of a run that lives: every few seconds its metrics are told again, and live.json is written.

live.json is what `python -m cluster.watch` reads beside metrics.jsonl and the samples; `updated_s` in it says how old
it is, so that a launcher that was killed is told from one that is slow.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cluster.pools import ActorPool
from cluster.pools.cancellation import end_tasks
from cluster.reports.activity import Activity
from cluster.telemetry.export import RESEND_S


@asynccontextmanager
async def pulse(
    activity: Activity,
    pools: Callable[[], Sequence[ActorPool]],
    folder: Path,
    *,
    every_s: float = RESEND_S,
) -> AsyncIterator[None]:
    """Meanwhile the run in `folder` is told of, at once and every `every_s` seconds; and once more at the end."""
    beating = asyncio.create_task(_beat(activity, pools, folder, every_s), name="pulse")
    try:
        yield
    finally:
        await end_tasks({beating})
        await _tell(activity, pools, folder)


async def _beat(activity: Activity, pools: Callable[[], Sequence[ActorPool]], folder: Path, every_s: float) -> None:
    while True:
        await _tell(activity, pools, folder)
        await asyncio.sleep(every_s)


async def _tell(activity: Activity, pools: Callable[[], Sequence[ActorPool]], folder: Path) -> None:
    activity.pulse(pools(), folder)
    await asyncio.to_thread(write_live, folder / "live.json", activity.tree())


def write_live(path: Path, tree: Mapping[str, Any]) -> None:
    """A reader sees the whole file or none. A disk that is full is the metrics' writer's to complain of."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(json.dumps(tree) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)


def read_live(path: Path) -> Mapping[str, Any] | None:
    """None when there is none, or it cannot be read."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None
