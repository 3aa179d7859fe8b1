"""The reward pools: every reward of the ensemble scores a group's pictures at the same time.

pictures (by reference) ─┬─► pool of reward A ─┐
                         ├─► pool of reward B ─┼─► combine ─► one reward a picture
                         └─► pool of reward C ─┘
                                │ replica died, or its reward hangs: it is replaced, and the group goes to another
                                │ some pictures failed: these go to another one
                                └─► `retries` times; then a RewardError takes their scores' places

A replica batches across the groups that it is given (`rewards.worker`), and is given no more than it
can batch: the others wait here for whichever replica is free first. Groups that wait keep their place
in admission, so slow rewards hold up rollout after `(max_staleness + 1) × groups_per_step` groups.

A replica that fails what others score is taken out: see `cluster.groups.trust`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayError

from cluster.actors import RewardActor, spawn
from cluster.actors.score_cache import RewardAnswer
from cluster.groups.trust import MAX_ALONE, MAX_REFUTED, Trust
from cluster.pools import ActorPool, Patience, PoolHooks
from cluster.pools.cancellation import end_tasks
from cluster.pools.elasticity import ElasticPool
from cluster.pools.remote_errors import CallFailedError, ObjectsLostError, WorkerLostError
from configs.errors import RewardBrokenError, RewardError, RewardTimeoutError
from configs.schema import RewardConfig
from rewards.calling import Answer
from rewards.combine import Combined, combine
from rewards.worker import RewardFigures
from rollout.records import Prompt

BATCHES_PER_REPLICA = 2
"""Batches that one replica holds: one it scores, one it gathers. More would wait there instead of at another."""
CLOSE_S = 5.0
"""For the rewards to end what they have begun, at the end of a run."""
FATAL = (RewardTimeoutError, RewardBrokenError)
"""Errors after which a replica is of no more use."""


class RewardPools:
    """One `ActorPool` per configured reward."""

    def __init__(
        self,
        rewards: tuple[RewardConfig, ...],
        group_size: int,
        run_id: str,
        hooks: Any,
        patience: Patience,
        cache_url: str | None = None,
        *,
        one_group_a_time: bool = False,
    ) -> None:
        """`hooks(spawn, start)` makes the PoolHooks of one pool; cache_url: Redis for rewards with `cache: true`.

        one_group_a_time: a replica never scores pictures of two groups as one batch; for run.deterministic.
        """
        self._rewards = rewards
        self._one_group_a_time = one_group_a_time
        self._group_size = group_size
        self._patience = patience
        self._cache_url = cache_url
        self._num_cached = 0
        self._told: set[str] = set()
        self._notes: dict[str, Any] = {}
        self._figures = {reward.name: RewardFigures() for reward in rewards}
        self._trust = {reward.name: Trust() for reward in rewards}
        self._pools = {reward.name: self._make_pool(reward, run_id, hooks) for reward in rewards}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._pools)

    @property
    def num_lost(self) -> int:
        """Replicas that died or hung so far."""
        return sum(pool.num_lost for pool in self._pools.values())

    @property
    def num_cached(self) -> int:
        """Scores that came from the cache so far."""
        return self._num_cached

    @property
    def elastic_pools(self) -> tuple[ElasticPool, ...]:
        """One for each reward."""
        return tuple(
            ElasticPool(self._pools[r.name], r.replicas, r.cpus_per_replica, r.gpus_per_replica) for r in self._rewards
        )

    def describe(self) -> str:
        """`reward-shapes: 1 of 2 READY; …` of each pool."""
        return "; ".join(pool.describe() for pool in self._pools.values())

    async def start(self) -> None:
        await asyncio.gather(*(pool.start() for pool in self._pools.values()))

    def take_figures(self) -> dict[str, RewardFigures]:
        """What each reward's replicas did since the last time."""
        taken = self._figures
        self._figures = {name: RewardFigures() for name in taken}
        return taken

    async def score(
        self,
        pictures: Any,
        prompt: Prompt,
        num_pictures: int,
        plans: Sequence[str] | None = None,
        *,
        is_evaluation: bool = False,
    ) -> Combined:
        """Scores of a group's pictures (a reference to uint8 [G, H, W, 3]), which all show `prompt`.

        plans: what each picture was drawn by. is_evaluation: rewards that are for evaluations only score, too.
        A picture that a reward cannot score has no combined reward. Raises RewardError, naming the reward, when
        fewer than two pictures of a group are left, or not the only one; NoRewardAppliesError when none applies;
        ObjectsLostError when the pictures went with their node: no replica can score them any more.
        """
        rewards = [reward for reward in self._rewards if is_evaluation or not reward.evaluation_only]
        prompts = [prompt] * num_pictures
        columns = await asyncio.gather(*(self._score_one(reward, pictures, prompts, plans) for reward in rewards))
        weights = {reward.name: reward.weight if reward.trains else 0.0 for reward in rewards}
        combined = combine(dict(zip(weights, columns, strict=True)), weights)
        if num_pictures - len(combined.errors) < min(2, num_pictures):
            raise next(iter(combined.errors.values()))
        return combined

    async def close(self) -> None:
        members = [member for pool in self._pools.values() for member in pool.members]
        closing = [asyncio.create_task(_close(member.handle)) for member in members]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_S)
            await end_tasks(closing)
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))

    async def _score_one(
        self, reward: RewardConfig, pictures: Any, prompts: list[Prompt], plans: Sequence[str] | None
    ) -> list[Answer]:
        """One answer a picture; what fails is scored again, by another replica where there is one."""
        pool = self._pools[reward.name]
        answers: dict[int, Answer] = {}
        asked: list[str] = []
        failed_at: list[str] = []
        missing, num_lost = list(range(len(prompts))), 0
        # With several replicas, one that fails is never the last to be asked.
        num_tries = max(reward.retries + 1, min(2, pool.num_ready))
        for number in range(num_tries):
            only = missing if number and answers else None
            try:
                fresh = await self._ask(reward, (pictures, prompts, plans, only), asked)
            except WorkerLostError as error:
                num_lost += 1
                lost = RewardError(f"reward '{reward.name}' lost {num_lost} replicas on one group: {error}")
                answers |= dict.fromkeys(missing, lost)
                continue
            except RewardError as error:
                fresh = [error] * len(missing)
            answers |= dict(zip(missing, fresh, strict=True))
            missing = [place for place in missing if isinstance(answers[place], RewardError)]
            await self._judge(reward.name, asked[-1], failed_at, len(missing) < len(fresh), bool(missing))
            if not missing:
                break
        return [answers[place] for place in range(len(prompts))]

    async def _ask(self, reward: RewardConfig, arguments: tuple[Any, ...], asked: list[str]) -> list[Answer]:
        # A replica times its own batches; this bound is for one that does not answer at all.
        timeout_s = reward.timeout_s * (reward.retries + 1) * (BATCHES_PER_REPLICA + 1)
        try:
            answer: RewardAnswer = await self._pools[reward.name].call(
                lambda handle: handle.score.remote(*arguments), timeout_s, asked
            )
        except (WorkerLostError, ObjectsLostError):
            raise
        except CallFailedError as error:
            raise RewardError(f"reward '{reward.name}': {error}") from error
        self._num_cached += answer.num_cached
        self._figures[reward.name].add(answer.figures)
        if answer.warning and answer.warning not in self._told:
            self._told.add(answer.warning)
            self._notes[reward.name](answer.warning)
        return answer.scores

    async def _judge(self, name: str, worker_id: str, failed_at: list[str], has_scored: bool, has_failed: bool) -> None:
        """Take out the replicas that a call has shown to be of no use."""
        pool, trust = self._pools[name], self._trust[name]
        if has_scored:
            for other in trust.succeeded(worker_id, [other for other in failed_at if other != worker_id]):
                await pool.take_out(other, f"failed {MAX_REFUTED} times at what others scored")
        elif trust.failed(worker_id, is_alone=pool.num_ready < 2):
            await pool.take_out(worker_id, f"failed {MAX_ALONE} calls in a row, after it had scored others")
        if has_failed and worker_id not in failed_at:
            failed_at.append(worker_id)

    def _make_pool(self, reward: RewardConfig, run_id: str, hooks: Any) -> ActorPool:
        def make_actor(worker_id: str) -> Any:
            return spawn(
                RewardActor,
                reward,
                self._cache_url if reward.cache else None,
                name=f"{run_id}-{worker_id}",
                num_cpus=reward.cpus_per_replica,
                num_gpus=reward.gpus_per_replica,
                runtime_env=reward.runtime_env,
                label_selector=reward.node_labels,
            )

        async def start(handle: Any) -> None:
            await handle.start.remote()

        kind = f"reward-{reward.name.replace(':', '.')}"
        pool_hooks: PoolHooks = hooks(make_actor, start)
        self._notes[reward.name] = pool_hooks.note
        max_groups = max(1, BATCHES_PER_REPLICA * reward.batch_size // self._group_size)
        if self._one_group_a_time:
            max_groups = 1
        return ActorPool(kind, reward.replicas.min, max_groups, pool_hooks, self._patience, fatal=FATAL)


async def _close(handle: Any) -> None:
    """Whatever comes of it, the replica is ended next."""
    with contextlib.suppress(RayError, RewardError):
        await handle.close.remote()
