"""The ledger: where each group of a run is, moved from state to state by one Lua script, and counted.

                    ┌───────────── failed ◄─┐ rolled again      another prompt
    dispatched ─────┼─► scored ─► queued ─► trained            ┌──────────────┐
         ▲          └─► given up ──────────────────────────────┘              │
         └──────────────────────────────────────────────────────────────────◄─┘

A move that this picture does not hold is refused by LedgerError: nothing is trained on twice, or without having
been scored. News may come late, and may come twice: what a later attempt or a later state has overtaken is
dropped, and the same record again changes nothing. A run that goes on rewinds the ledger to its checkpoint, and
begins a new life there; news of an earlier life, from a launcher that was thought dead, is refused.

Groups are trained on in their order, so that all but the last step's are told by a number: what is kept is what is
under way, a few kilobytes however long the run. A server that comes back empty is given it again from memory.

    key                   type  holds
    bicot:NAME:groups     hash  sequence -> {"state", "attempt", and what the caller adds}, of groups under way and of
                                the last step
    bicot:NAME:trained    hash  groups: all of a lower sequence are trained on; kept: all below it have no record
    bicot:NAME:counts     hash  group state -> number of groups in that state
    bicot:NAME:reasons    list  {"prompt_id", "sequence", "reason"} of the last prompts given up, newest first
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

NUM_REASONS: Final = 1000
"""Of prompts given up; resampling adds one for each group without spread."""

# KEYS: those of `Ledger.keys`. ARGV: this life, new state, states it may follow as JSON, then sequence and record of
# each group. All groups move or none. Returns {1, number moved}; {0, sequence, its state} where the first group that
# may not move is; {-1, life} where another life has begun, {-1, '0'} where the ledger is lost.
_MOVE: Final = (
    """
local life = redis.call('GET', KEYS[3]) or '0'
if life ~= ARGV[1] then
  return {-1, life}
end
local order = {dispatched = 1, failed = 2, given_up = 3, scored = 4, queued = 5, trained = 6}
local may_follow = {}
for _, state in ipairs(cjson.decode(ARGV[3])) do
  may_follow[state] = true
end
local num_trained = tonumber(redis.call('HGET', KEYS[4], 'groups') or '0')
local moves = {}
for i = 4, #ARGV, 2 do
  local stored = redis.call('HGET', KEYS[1], ARGV[i])
  local new = cjson.decode(ARGV[i + 1])
  local old = {state = 'not begun', attempt = -1}
  local is_late
  if stored then
    old = cjson.decode(stored)
    is_late = old.attempt > new.attempt or (old.attempt == new.attempt and order[old.state] > order[new.state])
    if old.state == 'trained' and new.attempt > old.attempt then
      is_late = false
    end
  elseif tonumber(ARGV[i]) < num_trained then
    old.state = 'trained'
    is_late = ARGV[2] ~= 'dispatched' and ARGV[2] ~= 'trained'
  end
  if stored ~= ARGV[i + 1] and not is_late then
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
  local record = cjson.decode(move[2])
  if ARGV[2] == 'given_up' and record.prompt_id then
    local entry = {prompt_id = record.prompt_id, sequence = tonumber(move[1]), reason = record.reason}
    redis.call('LPUSH', KEYS[5], cjson.encode(entry))
    redis.call('LTRIM', KEYS[5], 0, tonumber("""
    + str(NUM_REASONS)
    + """) - 1)
  end
end
if ARGV[2] == 'trained' and #moves > 0 then
  for sequence = tonumber(redis.call('HGET', KEYS[4], 'kept') or '0'), num_trained - 1 do
    redis.call('HDEL', KEYS[1], sequence)
  end
  redis.call('HSET', KEYS[4], 'kept', num_trained)
  local stored = redis.call('HGET', KEYS[1], num_trained)
  while stored and cjson.decode(stored).state == 'trained' do
    num_trained = num_trained + 1
    stored = redis.call('HGET', KEYS[1], num_trained)
  end
  redis.call('HSET', KEYS[4], 'groups', num_trained)
end
return {1, #moves}
"""
)

# KEYS: those of `Ledger.keys`. ARGV: number of groups that the checkpoint was trained on. Returns the new life, and how
# many groups that were trained on since are to be trained on again.
_REWIND: Final = """
local num_trained = tonumber(ARGV[1])
local before = tonumber(redis.call('HGET', KEYS[4], 'groups') or '0')
local num_undone = math.max(0, before - num_trained)
local groups = redis.call('HGETALL', KEYS[1])
for i = 1, #groups, 2 do
  local is_beyond = tonumber(groups[i]) >= math.max(before, num_trained)
  if is_beyond and cjson.decode(groups[i + 1]).state == 'trained' then
    num_undone = num_undone + 1
  end
end
local reasons = redis.call('LRANGE', KEYS[5], 0, -1)
redis.call('DEL', KEYS[1], KEYS[2], KEYS[5])
for _, reason in ipairs(reasons) do
  if cjson.decode(reason).sequence < num_trained then
    redis.call('RPUSH', KEYS[5], reason)
  end
end
redis.call('HSET', KEYS[4], 'groups', num_trained, 'kept', num_trained)
if num_trained > 0 then
  redis.call('HSET', KEYS[2], 'trained', num_trained)
end
return {redis.call('INCR', KEYS[3]), num_undone}
"""

# KEYS: those of `Ledger.keys`. ARGV: the life, number of groups trained on, then sequence and record of each group that
# is under way. Gives a server that has lost the ledger what its launcher knows; nothing where there is one.
_RESTORE: Final = """
if not redis.call('SET', KEYS[3], ARGV[1], 'NX') then
  return 0
end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[4], 'groups', ARGV[2], 'kept', ARGV[2])
redis.call('HSET', KEYS[2], 'trained', ARGV[2])
for i = 3, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('HINCRBY', KEYS[2], cjson.decode(ARGV[i + 1]).state, 1)
end
return 1
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
        self._restore = client.register_script(_RESTORE)
        self._life = 0
        self._num_trained = 0
        self._under_way: dict[int, str] = {}
        """Sequence -> record, of groups that this launcher has moved and that are not trained on."""

    @property
    def keys(self) -> list[str]:
        """All that the ledger keeps in Redis."""
        return [self._key(name) for name in ("groups", "counts", "life", "trained", "reasons")]

    async def rewind(self, num_trained: int) -> int:
        """Begin a life: the first `num_trained` groups are trained on, no other is begun.

        Returns how many groups had been trained on beyond; what was learned from them is lost with the checkpoint.
        """
        async with self._errors("write to"):
            self._life, num_undone = await self._rewind(keys=self.keys, args=[num_trained])
        self._num_trained = num_trained
        self._under_way.clear()
        return int(num_undone)

    async def move(self, sequence: int, state: GroupState, attempt: int = 0, **fields: Value) -> bool:
        """Move a group to a state, in one round trip.

        False: this news was late, or came twice, and changed nothing. Raises LedgerError for a move that
        may not be, and when another launcher has begun a new life of the run.
        """
        record = json.dumps({**fields, "state": state, "attempt": attempt})
        return await self._move_all(state, {sequence: record}) == 1

    async def train(self, sequences: Mapping[int, int], step: int) -> None:
        """The groups (sequence -> attempt) were trained on in optimizer step `step`: all of them, or LedgerError."""
        records = {
            sequence: json.dumps({"state": GroupState.TRAINED, "attempt": attempt, "step": step, "life": self._life})
            for sequence, attempt in sequences.items()
        }
        await self._move_all(GroupState.TRAINED, records)

    async def give_up(self, sequence: int, attempt: int, prompt_id: str, reason: str) -> None:
        """A group's prompt is given up; the group itself will be dispatched with another one."""
        await self.move(sequence, GroupState.GIVEN_UP, attempt, reason=reason, prompt_id=prompt_id)

    async def groups(self, sequences: Sequence[int]) -> list[Mapping[str, Value] | None]:
        """What is known of some groups: state, attempt, and what was written beside them. None: not begun. Of groups
        that were trained on before the last step only the state is known."""
        if not sequences:
            return []
        async with self._errors("read from"), self._client.pipeline(transaction=True) as pipe:
            pipe.hmget(self._key("groups"), [str(sequence) for sequence in sequences])
            pipe.hget(self._key("trained"), "groups")
            stored, num_trained = await pipe.execute()
        told = dict(zip(sequences, stored, strict=True))
        trained = {"state": GroupState.TRAINED.value}
        return [
            json.loads(record) if record is not None else (trained if sequence < int(num_trained or 0) else None)
            for sequence, record in told.items()
        ]

    async def _move_all(self, state: GroupState, records: Mapping[int, str]) -> int:
        """Returns how many groups were moved."""
        pairs = [part for pair in records.items() for part in pair]
        arguments = [self._life, state, json.dumps(sorted(MAY_FOLLOW[state])), *pairs]
        async with self._errors("write to"):
            code, *rest = await self._move(keys=self.keys, args=arguments)
            if code == -1 and rest[0] == "0":
                known = [part for pair in self._under_way.items() for part in pair]
                await self._restore(keys=self.keys, args=[self._life, self._num_trained, *known])
                code, *rest = await self._move(keys=self.keys, args=arguments)
        if code == 1:
            if num_moved := int(rest[0]):
                self._remember(state, records)
            return num_moved
        if code == 0:
            raise LedgerError(f"group {rest[0]} is {rest[1]} and cannot become {state}")
        raise LedgerError(
            f"another launcher goes on with this run (its life {rest[0]}, this is life {self._life}); this one ends"
        )

    def _remember(self, state: GroupState, records: Mapping[int, str]) -> None:
        if state is GroupState.TRAINED:
            for sequence in records:
                self._under_way.pop(sequence, None)
            self._num_trained = max(self._num_trained, 1 + max(records))
        else:
            self._under_way.update({sequence: r for sequence, r in records.items() if sequence >= self._num_trained})
