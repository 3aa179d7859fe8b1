"""The ledger: where each group of a run is, moved from state to state by one Lua script, and counted.

                    ┌───────────── failed ◄─┐ rolled again      another prompt
    dispatched ─────┼─► scored ─► queued ─► trained            ┌──────────────┐
         ▲          └─► given up ──────────────────────────────┘              │
         └──────────────────────────────────────────────────────────────────◄─┘

A move that this picture does not hold is refused by LedgerError: nothing is trained on twice, or without having
been scored. News may come late, and may come twice: what a later attempt or a later state has overtaken is
dropped, and the same record again changes nothing. A run that goes on rewinds the ledger to its checkpoint, and
begins a new life there; news of an earlier life, from a launcher that was thought dead, is refused.

    key                   type  holds
    bicot:NAME:groups     hash  sequence -> {"state", "attempt", and what the caller adds}
    bicot:NAME:counts     hash  group state -> number of groups in that state
    bicot:NAME:given_up   hash  prompt id -> {"sequence", "reason"}
    bicot:NAME:life       str   how often the run was started
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Any, Final

from configs.errors import LedgerError

Value = float | int | str


class GroupState(StrEnum):
    """Where a group is on its way; see `rollout.records` for what a group is."""

    DISPATCHED = "dispatched"
    FAILED = "failed"
    GIVEN_UP = "given_up"
    SCORED = "scored"
    QUEUED = "queued"
    TRAINED = "trained"


NOT_BEGUN: Final = "not begun"

MAY_FOLLOW: Final[Mapping[GroupState, frozenset[str]]] = {
    GroupState.DISPATCHED: frozenset({NOT_BEGUN, GroupState.GIVEN_UP}),
    GroupState.FAILED: frozenset({GroupState.DISPATCHED, GroupState.FAILED}),
    GroupState.GIVEN_UP: frozenset({GroupState.DISPATCHED, GroupState.FAILED}),
    GroupState.SCORED: frozenset({GroupState.DISPATCHED, GroupState.FAILED}),
    GroupState.QUEUED: frozenset({GroupState.SCORED}),
    # The learner may be quicker than the news that the last group of its batch was queued.
    GroupState.TRAINED: frozenset({GroupState.SCORED, GroupState.QUEUED}),
}
"""State -> those it may follow."""

# KEYS: groups, counts, life. ARGV: this life, new state, states it may follow as JSON, then sequence and record of
# each group. All groups move or none. Returns {1, number moved}; {0, sequence, its state} where the first group that
# may not move is; {-1, life} where another life has begun.
_MOVE: Final = """
local life = redis.call('GET', KEYS[3]) or '0'
if life ~= ARGV[1] then
  return {-1, life}
end
local order = {dispatched = 1, failed = 2, given_up = 3, scored = 4, queued = 5, trained = 6}
local may_follow = {}
for _, state in ipairs(cjson.decode(ARGV[3])) do
  may_follow[state] = true
end
local moves = {}
for i = 4, #ARGV, 2 do
  local stored = redis.call('HGET', KEYS[1], ARGV[i])
  local old = stored and cjson.decode(stored) or {state = 'not begun', attempt = -1}
  local new = cjson.decode(ARGV[i + 1])
  local is_again = stored == ARGV[i + 1]
  local is_late = old.attempt > new.attempt or (old.attempt == new.attempt and order[old.state] > order[new.state])
  if old.state == 'trained' and new.attempt > old.attempt then
    is_late = false
  end
  if not is_again and not is_late then
    if not may_follow[old.state] then
      return {0, ARGV[i], old.state}
    end
    moves[#moves + 1] = {ARGV[i], ARGV[i + 1], old.state}
  end
end
for _, move in ipairs(moves) do
  redis.call('HSET', KEYS[1], move[1], move[2])
  if move[3] ~= 'not begun' then
    redis.call('HINCRBY', KEYS[2], move[3], -1)
  end
  redis.call('HINCRBY', KEYS[2], ARGV[2], 1)
end
return {1, #moves}
"""

# KEYS: groups, counts, life. ARGV: number of groups that the checkpoint was trained on, record of one whose own is
# lost. Returns the new life, and how many groups that were trained on since are to be trained on again.
_REWIND: Final = """
local num_trained = tonumber(ARGV[1])
local num_undone = 0
local groups = redis.call('HGETALL', KEYS[1])
for i = 1, #groups, 2 do
  local is_trained = cjson.decode(groups[i + 1]).state == 'trained'
  if tonumber(groups[i]) >= num_trained then
    redis.call('HDEL', KEYS[1], groups[i])
    num_undone = num_undone + (is_trained and 1 or 0)
  elseif not is_trained then
    redis.call('HDEL', KEYS[1], groups[i])
  end
end
for sequence = 0, num_trained - 1 do
  redis.call('HSETNX', KEYS[1], sequence, ARGV[2])
end
redis.call('DEL', KEYS[2])
if num_trained > 0 then
  redis.call('HSET', KEYS[2], 'trained', num_trained)
end
return {redis.call('INCR', KEYS[3]), num_undone}
"""


class Ledger:
    """The groups of one run. Every method raises RegistryError when Redis is gone; see `cluster.state.registry`."""

    def __init__(
        self, client: Any, key: Callable[[str], str], errors: Callable[[str], AbstractAsyncContextManager[None]]
    ) -> None:
        """client: of redis.asyncio; key: from a short name to the whole; errors: turns the client's into bicot's."""
        self._client = client
        self._errors = errors
        self._key = key
        self._move = client.register_script(_MOVE)
        self._rewind = client.register_script(_REWIND)
        self._life = 0

    @property
    def keys(self) -> list[str]:
        """All that the ledger keeps in Redis."""
        return [self._key(name) for name in ("groups", "counts", "life", "given_up")]

    async def rewind(self, num_trained: int) -> int:
        """Begin a life: the first `num_trained` groups are trained on, no other is begun.

        Returns how many groups had been trained on beyond; what was learned from them is lost with the checkpoint.
        """
        record = json.dumps({"state": GroupState.TRAINED, "attempt": 0})
        async with self._errors("write to"):
            self._life, num_undone = await self._rewind(keys=self.keys[:3], args=[num_trained, record])
        return int(num_undone)

    async def move(self, sequence: int, state: GroupState, attempt: int = 0, **fields: Value) -> bool:
        """Move a group to a state, in one round trip.

        False: this news was late, or came twice, and changed nothing. Raises LedgerError for a move that
        may not be, and when another launcher has begun a new life of the run.
        """
        record = json.dumps({**fields, "state": state, "attempt": attempt})
        return await self._move_all(state, [sequence, record]) == 1

    async def train(self, sequences: Mapping[int, int], step: int) -> None:
        """The groups (sequence -> attempt) were trained on in optimizer step `step`: all of them, or LedgerError."""
        arguments: list[int | str] = []
        for sequence, attempt in sequences.items():
            record = {"state": GroupState.TRAINED, "attempt": attempt, "step": step, "life": self._life}
            arguments += [sequence, json.dumps(record)]
        await self._move_all(GroupState.TRAINED, arguments)

    async def give_up(self, sequence: int, attempt: int, prompt_id: str, reason: str) -> None:
        """A group's prompt is given up; the group itself will be dispatched with another one."""
        await self.move(sequence, GroupState.GIVEN_UP, attempt, reason=reason)
        record = json.dumps({"sequence": sequence, "reason": reason})
        async with self._errors("write to"):
            await self._client.hset(self._key("given_up"), prompt_id, record)

    async def groups(self, sequences: Sequence[int]) -> list[Mapping[str, Value] | None]:
        """What is known of some groups: state, attempt, and what was written beside them. None: not begun."""
        if not sequences:
            return []
        async with self._errors("read from"):
            stored = await self._client.hmget(self._key("groups"), [str(sequence) for sequence in sequences])
        return [None if record is None else json.loads(record) for record in stored]

    async def _move_all(self, state: GroupState, pairs: Sequence[int | str]) -> int:
        """pairs: sequence and record in turn. Returns how many groups were moved."""
        arguments = [self._life, state, json.dumps(sorted(MAY_FOLLOW[state])), *pairs]
        async with self._errors("write to"):
            code, *rest = await self._move(keys=self.keys[:3], args=arguments)
        if code == 1:
            return int(rest[0])
        if code == 0:
            raise LedgerError(f"group {rest[0]} is {rest[1]} and cannot become {state}")
        raise LedgerError(
            f"another launcher goes on with this run (its life {rest[0]}, this is life {self._life}); this one ends"
        )
