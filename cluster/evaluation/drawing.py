"""Drawing on a pool of rollout workers, as in training: all prompts are one queue.

items ─► GroupRoller.draw ─► least busy worker ─► pictures, through the object store ─► drawn/KEY/0.png …
              ▲   │ the worker died, or the node that held the pictures: another one draws the same ones
              └───┘ at most rollout.max_attempts times; then the prompt's pictures are missing, and told
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.actors import spawn_rollout
from cluster.actors.dedicated_placement import OwnPlacement
from cluster.evaluation.bridge import Bridge
from cluster.groups import GroupRoller, RewardPools
from cluster.groups.roller import GroupGivenUpError
from cluster.pools import ActorPool, Elasticity, Patience, PoolHooks
from cluster.pools.cancellation import end_tasks
from cluster.pools.elasticity import ElasticPool
from cluster.pools.remote_errors import first_line, resolve
from configs.schema import RunConfig
from rewards.benchmarks.drawing import write_drawn
from rewards.benchmarks.folders import RunFolder
from rewards.benchmarks.protocol import Item
from rollout.drawing_options import DrawingOptions
from rollout.prompts import Conversation
from rollout.records import GroupRequest, Prompt, derive_seed


async def ignore(worker_id: str, state: str) -> None:
    """Nobody keeps a list of these workers."""


@dataclass(slots=True)
class PoolDrawer:
    """A pool of rollout workers that starts when there is something to draw. In the event loop, but for `draw`."""

    config: RunConfig
    """Of the workers: see `config_of_workers`."""
    prompts: Sequence[Prompt]
    """All that may have to be drawn; the workers' context is long enough for the longest."""
    with_cot: bool
    name: str
    bridge: Bridge
    note: Callable[[str], None]
    _pool: ActorPool | None = field(default=None, init=False)
    _roller: GroupRoller | None = field(default=None, init=False)
    _elasticity: asyncio.Task[None] | None = field(default=None, init=False)

    def draw(
        self,
        folder: RunFolder,
        items: Sequence[Item],
        chosen: Sequence[Item],
        options: DrawingOptions,
        advance: Callable[[], None],
    ) -> None:
        """See `rewards.benchmarks.drawing.draw_missing`, whose pictures these are under the same settings. In a thread.

        A prompt that cannot be drawn is told and left out. Raises what keeps workers from starting, and
        GroupGivenUpError when not a single prompt could be drawn.
        """
        self.bridge.wait(self._draw_all(folder, items, chosen, options, advance))

    async def _draw_all(
        self,
        folder: RunFolder,
        items: Sequence[Item],
        chosen: Sequence[Item],
        options: DrawingOptions,
        advance: Callable[[], None],
    ) -> None:
        roller = await self._started()
        places = {item.key: place for place, item in enumerate(items)}

        async def draw_one(item: Item) -> GroupGivenUpError | None:
            request = GroupRequest(
                sequence=-1 - places[item.key],
                attempt=0,
                prompt=Prompt(item.key, item.prompt),
                group_size=options.num_images,
                images_per_cot=1,
                seed=derive_seed(options.seed, "drawing", places[item.key]),
            )
            try:
                rollout, pictures = await self._pictures(roller, request)
            except GroupGivenUpError as error:
                self.note(f"missing: {error}")
                return error
            await asyncio.to_thread(write_drawn, folder, item, rollout, pictures)
            advance()
            return None

        drawing = [asyncio.create_task(draw_one(item)) for item in chosen]
        try:
            failures = [error for error in await asyncio.gather(*drawing) if error is not None]
        finally:
            await end_tasks(drawing)
        if failures and len(failures) == len(chosen):
            raise failures[-1]

    async def _pictures(self, roller: GroupRoller, request: GroupRequest) -> tuple[Any, Any]:
        """A group and its pictures; drawn again where they went with their node."""
        reason = ""
        for _ in range(roller.max_attempts):
            rollout, reference = await roller.draw(request)
            try:
                return rollout, await resolve(reference)
            except RayError as error:
                reason = first_line(error)
        raise GroupGivenUpError(f"the pictures of {request.prompt.prompt_id} were lost: {reason}")

    async def _started(self) -> GroupRoller:
        if self._roller is not None:
            return self._roller
        config = await asyncio.to_thread(self._fitting)
        rollout, cluster, own_placement = config.rollout, config.cluster, OwnPlacement()

        def make(worker_id: str) -> Any:
            return spawn_rollout(config, config.model.path, worker_id, self.name, own_placement, with_cot=self.with_cot)

        def hooks(spawn: Any, start: Any) -> PoolHooks:
            return PoolHooks(spawn, start, ignore, self.note, end=own_placement.end, give_up=ray.cancel)

        async def failed(request: GroupRequest, reason: str) -> None:
            self.note(f"{request.prompt.prompt_id}, attempt {request.attempt + 1}: {reason}")

        patience = Patience(config.run.start_timeout_s, cluster.heartbeat_s, cluster.heartbeat_timeout_s)
        self._pool = pool = ActorPool(
            "rollout",
            rollout.num_workers.min,
            rollout.max_groups_per_worker,
            hooks(make, lambda handle: handle.start.remote()),
            patience,
        )
        no_rewards = RewardPools((), 1, self.name, hooks, patience)
        self._roller = GroupRoller(pool, no_rewards, rollout.max_attempts, rollout.group_timeout_s, failed)
        await pool.start()
        elastic = ElasticPool(pool, rollout.num_workers, rollout.cpus_per_worker, rollout.gpus_per_worker)
        elasticity = Elasticity(cluster, [elastic], lambda: True, self.note)
        self._elasticity = asyncio.create_task(elasticity.run(), name="elasticity")
        return self._roller

    def _fitting(self) -> RunConfig:
        """The workers' config with a context for the longest prompt. Raises DataError for one that is too long."""
        config, rollout = self.config, self.config.rollout
        conversation = Conversation.of_run(config.model.path, rollout, config.model.revision)
        checkpoint = conversation.checkpoint
        limit = checkpoint.max_positions - checkpoint.num_image_tokens - rollout.max_cot_tokens
        longest = max(4, conversation.longest(self.prompts, limit, with_cot=self.with_cot))
        return config.model_copy(update={"rollout": rollout.model_copy(update={"max_prompt_tokens": longest})})

    async def close(self) -> None:
        """End the workers."""
        if self._elasticity is not None:
            await end_tasks({self._elasticity})
        if self._pool is not None:
            with suppress(RayError):
                await self._pool.close()
        self._pool = self._roller = self._elasticity = None
