"""The run's registry: what a run is doing right now, kept in Redis for people and for other processes.

Every key begins with `bicot:{KEY}:`, where KEY is the run's name and its random id: names alone are not unique.

    key                  type  holds
    bicot:{KEY}:run      hash  status, num_steps, groups_per_step, started_s (Unix time), dashboard, job
    bicot:{KEY}:progress hash  step, weight_version, updated_s (Unix time), and what the caller adds
    bicot:{KEY}:workers  hash  worker id -> {"kind", "state", "weight_version"}

and the groups, see `cluster.state.ledger`. Every value is JSON, so `redis-cli HGETALL bicot:{KEY}:progress` reads well.
The keys stay after the run, until `clear` or the end of a private server.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from cluster.state.ledger import GroupState, Ledger, Value
from configs.errors import RegistryError
from configs.local.masking import mask_text

# An answer takes well under a millisecond; a server silent for this long is gone. Two quick tries
# more, so that one dropped connection does not end a run: all in all about 6 s at the very worst.
SOCKET_TIMEOUT_S: Final = 2.0
RETRIES: Final = 2
MAX_CONNECTIONS: Final = 8
# Waiting for one of them says nothing about the server, only that much is being written at once.
POOL_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """What the registry knows of one rollout, reward or learner worker."""

    kind: str
    state: str
    weight_version: int | None
    """None for workers that hold no policy weights."""


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """All of the registry but the single groups, read at one instant."""

    status: str | None
    """None: nothing is registered under this run's name."""
    num_steps: int | None
    groups_per_step: int | None
    started_s: float | None
    dashboard: str | None
    """The page of the run in Ray's dashboard."""
    job: str | None
    """Submission id of the Ray job that the launcher is."""
    progress: Mapping[str, Value]
    workers: Mapping[str, WorkerRecord]
    group_counts: Mapping[GroupState, int]
    """Every state, 0 where no group is in it."""
    life: int
    """How often the run was started."""
    given_up: Mapping[str, Mapping[str, Value]]
    """Prompt id -> where in the run, and why; of the last ones."""

    @property
    def step(self) -> int:
        return int(self.progress.get("step", 0))

    @property
    def weight_version(self) -> int:
        return int(self.progress.get("weight_version", 0))


class Registry:
    """Reads and writes the registry of one run. Every method raises RegistryError when Redis is gone.

    To be used within one event loop; `async with` connects and closes.
    """

    def __init__(self, url: str, run_name: str) -> None:
        """url: redis://, rediss:// or unix://, with user and password where the server wants them."""
        self.url = url
        self.shown_url = mask_text(url)
        self._prefix = f"bicot:{{{run_name}}}:"  # the braces keep a run's keys on one node of a Redis Cluster
        try:
            pool = redis.BlockingConnectionPool.from_url(
                url,
                max_connections=MAX_CONNECTIONS,
                timeout=POOL_TIMEOUT_S,
                decode_responses=True,
                socket_timeout=SOCKET_TIMEOUT_S,
                socket_connect_timeout=SOCKET_TIMEOUT_S,
                retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), RETRIES),
            )
        except ValueError as error:
            raise RegistryError(
                f"registry.redis_url '{self.shown_url}' is not usable: {error}; "
                "write redis://[user:password@]host:port/number, rediss://… or unix://path"
            ) from error
        self._client = redis.Redis.from_pool(pool)
        self._told_run: dict[str, Value] = {}
        self.ledger = Ledger(self._client, self._key, self._errors)

    @classmethod
    async def keys_of(cls, url: str, name: str) -> list[str]:
        """Keys of the runs of a name that a server knows, the one begun last at the end."""
        found: dict[str, float] = {}
        async with cls(url, name) as registry, registry._errors("read from"):
            for pattern in (f"bicot:{{{name}-????????}}:run", f"bicot:{{{name}}}:run"):
                async for key in registry._client.scan_iter(pattern, count=1000):
                    started = await registry._client.hget(key, "started_s")
                    found[key.partition("{")[2].partition("}")[0]] = float(started or 0.0)
        return sorted(found, key=found.__getitem__)

    @classmethod
    async def newest_key_of(cls, url: str, name: str) -> str:
        """Key of the run of a name that was begun last."""
        if not (keys := await cls.keys_of(url, name)):
            raise RegistryError(f"the registry at {mask_text(url)} knows no run '{name}'")
        return keys[-1]

    async def connect(self) -> None:
        """Check that the server answers and lets us in; waits a few seconds at most."""
        async with self._errors("connect to"):
            await self._client.ping()

    async def clear(self) -> None:
        """Forget what an earlier run of the same key has left, but for its lives: who begins the next one must be
        told from who is still there."""
        async with self._errors("write to"):
            await self._client.delete(
                *map(self._key, ("run", "progress", "workers")),
                *(key for key in self.ledger.keys if key != self._key("life")),
            )

    async def clear_workers(self) -> None:
        """Forget the workers of an earlier life of the run."""
        async with self._errors("write to"):
            await self._client.delete(self._key("workers"))

    async def set_run(self, status: str, num_steps: int | None = None, groups_per_step: int | None = None) -> None:
        """Say how the run is; what is not given keeps its value. The first call dates the start."""
        given = {"status": status, "num_steps": num_steps, "groups_per_step": groups_per_step}
        await self._tell_run({name: value for name, value in given.items() if value is not None})

    async def set_place(self, dashboard: str | None, job: str | None) -> None:
        """Say where the run is to be found in Ray; what an earlier life of it said is forgotten."""
        await self._tell_run({"dashboard": dashboard or "", "job": job or ""})

    async def _tell_run(self, fields: Mapping[str, Value]) -> None:
        self._told_run.update(fields)
        async with self._errors("write to"), self._client.pipeline(transaction=True) as pipe:
            pipe.hset(self._key("run"), mapping=_encode(fields))
            pipe.hsetnx(self._key("run"), "started_s", json.dumps(time.time()))
            await pipe.execute()

    async def set_progress(self, step: int, weight_version: int, fields: Mapping[str, Value] | None = None) -> None:
        """Say which step is done, which weights are current, and whatever else is worth watching."""
        values: dict[str, Value] = {
            **(fields or {}),
            "step": step,
            "weight_version": weight_version,
            "updated_s": time.time(),
        }
        async with self._errors("write to"), self._client.pipeline(transaction=True) as pipe:
            pipe.hset(self._key("progress"), mapping=_encode(values))
            if self._told_run:  # again: a server may have come back empty
                pipe.hset(self._key("run"), mapping=_encode(self._told_run))
            await pipe.execute()

    async def set_version(self, weight_version: int) -> None:
        """Say which weights are current, between two steps."""
        async with self._errors("write to"):
            await self._client.hset(self._key("progress"), "weight_version", json.dumps(weight_version))

    async def set_worker(self, worker_id: str, kind: str, state: str, weight_version: int | None = None) -> None:
        """Add a worker, or say how it is now."""
        record = json.dumps({"kind": kind, "state": state, "weight_version": weight_version})
        async with self._errors("write to"):
            await self._client.hset(self._key("workers"), worker_id, record)

    async def remove_worker(self, worker_id: str) -> None:
        async with self._errors("write to"):
            await self._client.hdel(self._key("workers"), worker_id)

    async def snapshot(self) -> RunSnapshot:
        """The state of the run, all of it read at the same instant."""
        async with self._errors("read from"), self._client.pipeline(transaction=True) as pipe:
            for name in ("run", "progress", "workers", "counts"):
                pipe.hgetall(self._key(name))
            pipe.get(self._key("life"))
            pipe.lrange(self._key("reasons"), 0, -1)
            *hashes, life, reasons = await pipe.execute()
        run, progress, workers, counts = map(_decode, hashes)
        return RunSnapshot(
            status=run.get("status"),
            num_steps=run.get("num_steps"),
            groups_per_step=run.get("groups_per_step"),
            started_s=run.get("started_s"),
            dashboard=run.get("dashboard") or None,
            job=run.get("job") or None,
            progress=progress,
            workers={worker_id: WorkerRecord(**record) for worker_id, record in workers.items()},
            group_counts={state: int(counts.get(state, 0)) for state in GroupState},
            life=int(life or 0),
            given_up={entry.pop("prompt_id"): entry for entry in map(json.loads, reversed(reasons))},
        )

    async def close(self) -> None:
        """Close the connections; the keys stay. Never raises because the server is gone."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _key(self, name: str) -> str:
        return self._prefix + name

    @asynccontextmanager
    async def _errors(self, action: str) -> AsyncIterator[None]:
        """Turn what the client raises into a RegistryError that says what to do."""
        try:
            yield
        except (RedisError, OSError) as error:
            raise RegistryError(
                f"cannot {action} the run's registry at {self.shown_url}: {error or type(error).__name__}; check that "
                "the Redis server runs and that registry.redis_url holds its address and password "
                "(null starts a private server)"
            ) from error


def _encode(fields: Mapping[str, Value]) -> Mapping[Any, str]:
    return {key: json.dumps(value) for key, value in fields.items()}


def _decode(answer: Mapping[str, str]) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in answer.items()}
