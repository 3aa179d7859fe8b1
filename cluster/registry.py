"""The run's registry: what a run is doing right now, kept in Redis for people and for other processes.

Every key begins with `bicot:NAME:`, where NAME is the run's name.

    key                  type  holds
    bicot:NAME:run       hash  status, num_steps, started_s (Unix time)
    bicot:NAME:progress  hash  step, weight_version, updated_s (Unix time), and what the caller adds
    bicot:NAME:workers   hash  worker id -> {"kind", "state", "weight_version"}
    bicot:NAME:groups    hash  sequence -> {"state", "attempt", and what the caller adds}
    bicot:NAME:counts    hash  group state -> number of groups in that state

Every value is JSON, so `redis-cli HGETALL bicot:NAME:progress` reads well. A group changes its state
in `groups` and in `counts` by one Lua script, so that whoever reads sees it in exactly one state.
The keys stay after the run, until `clear` or the end of a private server.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

from redis import asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from configs.errors import RegistryError
from configs.load import mask_url

# An answer takes well under a millisecond; a server silent for this long is gone. Two quick tries
# more, so that one dropped connection does not end a run: all in all about 6 s at the very worst.
SOCKET_TIMEOUT_S: Final = 2.0
RETRIES: Final = 2
MAX_CONNECTIONS: Final = 8
# Waiting for one of them says nothing about the server, only that much is being written at once.
POOL_TIMEOUT_S: Final = 60.0

Value = float | int | str


class GroupState(StrEnum):
    """Where a group is on its way; see `rollout.records` for what a group is."""

    DISPATCHED = "dispatched"
    ROLLED = "rolled"
    SCORED = "scored"
    QUEUED = "queued"
    TRAINED = "trained"
    FAILED = "failed"
    GIVEN_UP = "given_up"


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
    started_s: float | None
    progress: Mapping[str, Value]
    workers: Mapping[str, WorkerRecord]
    group_counts: Mapping[GroupState, int]
    """Every state, 0 where no group is in it."""

    @property
    def step(self) -> int:
        return int(self.progress.get("step", 0))

    @property
    def weight_version(self) -> int:
        return int(self.progress.get("weight_version", 0))


# KEYS: groups, counts. ARGV: sequence, new record. Returns 1, or 0 where the group has moved on to a
# later attempt and the late news of an earlier one is dropped. Running it twice changes nothing,
# which makes it safe to send again after a lost answer.
_MOVE_GROUP = """
local new = cjson.decode(ARGV[2])
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if stored then
  local old = cjson.decode(stored)
  if old.attempt > new.attempt then
    return 0
  end
  redis.call('HINCRBY', KEYS[2], old.state, -1)
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HINCRBY', KEYS[2], new.state, 1)
return 1
"""


class Registry:
    """Reads and writes the registry of one run. Every method raises RegistryError when Redis is gone.

    To be used within one event loop; `async with` connects and closes.
    """

    def __init__(self, url: str, run_name: str) -> None:
        """url: redis://, rediss:// or unix://, with user and password where the server wants them."""
        self.url = url
        self.shown_url = mask_url(url)
        self._prefix = f"bicot:{run_name}:"
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
        self._move_group = self._client.register_script(_MOVE_GROUP)

    async def connect(self) -> None:
        """Check that the server answers and lets us in; waits a few seconds at most."""
        async with self._errors("connect to"):
            await self._client.ping()

    async def clear(self) -> None:
        """Forget what an earlier run of the same name has left."""
        async with self._errors("write to"):
            await self._client.delete(*map(self._key, ("run", "progress", "workers", "groups", "counts")))

    async def set_run(self, status: str, num_steps: int | None = None) -> None:
        """Say how the run is; `num_steps` keeps its value when not given. The first call dates the start."""
        fields: dict[str, Value] = {"status": status}
        if num_steps is not None:
            fields["num_steps"] = num_steps
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
        async with self._errors("write to"):
            await self._client.hset(self._key("progress"), mapping=_encode(values))

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

    async def set_group(self, sequence: int, state: GroupState, attempt: int = 0, **fields: Value) -> bool:
        """Move a group to a state, in one round trip.

        False: a later attempt of the group is already registered, so this news was dropped.
        """
        record = json.dumps({**fields, "state": state, "attempt": attempt})
        async with self._errors("write to"):
            moved = await self._move_group(keys=[self._key("groups"), self._key("counts")], args=[sequence, record])
        return bool(moved)

    async def set_groups(self, sequences: Mapping[int, int], state: GroupState) -> None:
        """Move many groups (sequence -> attempt) to one state, all or none, in one round trip."""
        if not sequences:
            return
        keys = [self._key("groups"), self._key("counts")]
        async with self._errors("write to"), self._client.pipeline(transaction=True) as pipe:
            for sequence, attempt in sequences.items():
                record = json.dumps({"state": state, "attempt": attempt})
                await self._move_group(keys=keys, args=[sequence, record], client=pipe)
            await pipe.execute()

    async def rewind(self, num_trained: int) -> None:
        """Make the groups what they were at a checkpoint: the first `num_trained` trained, no other one begun."""
        record = json.dumps({"state": GroupState.TRAINED, "attempt": 0})
        async with self._errors("write to"), self._client.pipeline(transaction=True) as pipe:
            pipe.delete(self._key("groups"), self._key("counts"))
            if num_trained:
                pipe.hset(self._key("groups"), mapping={str(sequence): record for sequence in range(num_trained)})
                pipe.hset(self._key("counts"), GroupState.TRAINED, str(num_trained))
            await pipe.execute()

    async def group(self, sequence: int) -> Mapping[str, Value] | None:
        """What is known of one group: its state, its attempt, and what was written beside them."""
        async with self._errors("read from"):
            stored = await self._client.hget(self._key("groups"), str(sequence))
        return None if stored is None else json.loads(stored)

    async def snapshot(self) -> RunSnapshot:
        """The state of the run, all of it read at the same instant."""
        async with self._errors("read from"), self._client.pipeline(transaction=True) as pipe:
            for name in ("run", "progress", "workers", "counts"):
                pipe.hgetall(self._key(name))
            run, progress, workers, counts = [_decode(answer) for answer in await pipe.execute()]
        return RunSnapshot(
            status=run.get("status"),
            num_steps=run.get("num_steps"),
            started_s=run.get("started_s"),
            progress=progress,
            workers={worker_id: WorkerRecord(**record) for worker_id, record in workers.items()},
            group_counts={state: int(counts.get(state, 0)) for state in GroupState},
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
