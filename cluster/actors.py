"""The Ray actors of a run: thin shells around plain classes, which know nothing of Ray.

Each shell imports its worker class when it is made, so that the launcher, which only holds handles,
needs neither torch nor vllm. The arguments of every method are records, and references inside
lists are resolved here.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from cluster.score_cache import RewardAnswer, ScoreCache
from cluster.trajectory_queue import TrajectoryQueue
from configs.errors import RolloutError, WeightSyncError
from configs.schema import RewardConfig, RunConfig
from rollout.records import (
    GroupRequest,
    GroupRollout,
    Prompt,
    ScoredGroup,
    TrajectoryBatch,
    UInt8Array,
    WeightBucket,
)

if TYPE_CHECKING:
    from learner.worker import StepReport


class RolloutActor:
    """A rollout worker; asyncio, so that all its groups share one engine. Ends itself when the engine has
    failed for good: the pool then puts another in its place."""

    def __init__(self, config: RunConfig, model_path: str, worker_id: str) -> None:
        from rollout.worker import RolloutWorker

        self._worker = RolloutWorker(model_path, config, worker_id)

    async def start(self) -> None:
        await self._worker.start()

    async def roll_group(self, request: GroupRequest) -> tuple[GroupRollout, UInt8Array]:
        """Called with num_returns=2: the pictures then travel without the trajectories, and not to the launcher."""
        with self._ending_with_engine():
            return await self._worker.roll_group(request)

    async def update_weights(self, version: int, references: Sequence[ray.ObjectRef[WeightBucket]]) -> int:
        """Fetch the buckets of `version` and load them; returns the version now held."""
        buckets = await asyncio.gather(*references)
        with self._ending_with_engine():
            await self._worker.update_weights(version, buckets)
        return version

    async def join_collective(self, master_address: str, master_port: int, rank_offset: int, world_size: int) -> None:
        await self._worker.join_collective(master_address, master_port, rank_offset, world_size)

    async def receive_collective(
        self, version: int, names: Sequence[str], dtypes: Sequence[str], shapes: Sequence[tuple[int, ...]]
    ) -> None:
        with self._ending_with_engine():
            await self._worker.receive_collective(version, names, dtypes, shapes)

    async def ping(self) -> str:
        return node_id()

    async def close(self) -> None:
        await self._worker.close()

    @contextmanager
    def _ending_with_engine(self) -> Iterator[None]:
        try:
            yield
        except (RolloutError, WeightSyncError):
            if not self._worker.is_usable:
                # Not ray.actor.exit_actor, which waits for all calls: some wait for the dead engine's answer.
                os._exit(1)
            raise


class RewardActor:
    """One replica of one reward. cache_url: Redis that keeps its scores, for a reward with `cache: true`."""

    def __init__(self, config: RewardConfig, cache_url: str | None) -> None:
        from rewards.worker import RewardWorker

        self._worker = RewardWorker(config)
        self._cache = None if cache_url is None else ScoreCache(cache_url, config)

    async def start(self) -> None:
        await self._worker.start()

    async def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> RewardAnswer:
        if self._cache is None:
            return RewardAnswer(await self._worker.score(pictures, prompts))
        return await self._cache.score(self._worker.score, pictures, prompts)

    async def ping(self) -> str:
        return node_id()


class LearnerActor:
    """One DeepSpeed rank."""

    def __init__(self, config: RunConfig, rank: int) -> None:
        self._config = config
        self._rank = rank

    def ping(self) -> None:
        """Answers when nothing else is being done."""

    def find_warm_start(self) -> tuple[str, bool]:
        """The folder of the warm-started policy, and whether it is there already."""
        from learner.warm_start_cache import warm_start_folder

        folder = warm_start_folder(self._config)
        return str(folder), folder.exists()

    def warm_start(self, folder: str, master_address: str, master_port: int, report_to: ray.actor.ActorHandle) -> None:
        """Make the warm-started policy; all ranks enter, rank 0 writes and reports."""
        from learner.deepspeed_engine import init_distributed
        from learner.warm_start import warm_start

        def report(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
            if self._rank == 0:
                report_to.stage.remote(stage, done, total, dict(metrics))

        learner = self._config.learner
        device = "cuda" if learner.gpus_per_rank > 0 else "cpu"
        init_distributed(self._rank, learner.num_ranks, master_address, master_port, device)
        warm_start(self._config, Path(folder), self._rank, learner.num_ranks, report)

    def rendezvous(self) -> tuple[str, int]:
        """Address and a free port of this rank's node, for the ranks to meet at."""
        import socket

        address = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return address, probe.getsockname()[1]

    def setup(self, model_path: str, master_address: str, master_port: int) -> None:
        from learner.worker import LearnerWorker

        self._worker = LearnerWorker(self._config, model_path, self._rank, self._config.learner.num_ranks)
        self._worker.setup(master_address, master_port)

    def train_step(self, batch: TrajectoryBatch) -> StepReport:
        return self._worker.train_step(batch)

    def export_weights(self, version: int) -> Iterator[WeightBucket | int]:
        """All buckets, and at the end their number: an error would stand in its place.

        Called with num_returns="streaming", so that no more than one bucket is in memory beside the store.
        """
        num_buckets = 0
        for bucket in self._worker.export_weights(version):
            num_buckets += 1
            yield bucket
        yield num_buckets

    def weight_layout(self) -> list[tuple[str, str, tuple[int, ...]]]:
        return self._worker.weight_layout()

    def join_collective(self, master_address: str, master_port: int, world_size: int) -> None:
        self._worker.join_collective(master_address, master_port, world_size)

    def send_collective(self, version: int) -> None:
        self._worker.send_collective(version)

    def save_checkpoint(self, directory: str, step: int) -> None:
        self._worker.save_checkpoint(Path(directory), step)

    def load_checkpoint(self, directory: str) -> int:
        return self._worker.load_checkpoint(Path(directory))

    def save_pretrained(self, directory: str) -> None:
        self._worker.save_pretrained(Path(directory))

    def close(self) -> None:
        self._worker.close()


class TrajectoryQueueActor:
    """The bounded trajectory queue as an actor."""

    def __init__(self, max_groups: int, groups_per_step: int, first_step: int) -> None:
        self._queue = TrajectoryQueue(max_groups, groups_per_step, first_step)

    async def put(self, group: ScoredGroup) -> bool:
        return await self._queue.put(group)

    async def get_batch(self, step: int) -> tuple[int, TrajectoryBatch]:
        """Called with num_returns=2: the launcher looks at the first, the learner gets the second."""
        batch = await self._queue.get_batch(step)
        return len(batch.groups), batch

    async def num_queued(self) -> int:
        return self._queue.num_queued()


class ProgressActor:
    """Carries progress of long work in another actor to the launcher, which asks for it now and then."""

    def __init__(self) -> None:
        self._latest: tuple[str, int, int, dict[str, float]] | None = None

    async def stage(self, stage: str, done: int, total: int, metrics: dict[str, float]) -> None:
        self._latest = (stage, done, total, metrics)

    async def latest(self) -> tuple[str, int, int, dict[str, float]] | None:
        return self._latest


def node_id() -> str:
    """Of the node that this process runs on: the answer to a pool's heartbeat."""
    return str(ray.get_runtime_context().get_node_id())


def thread_environment(threads: int | None, num_gpus: float) -> dict[str, str]:
    """Environment that keeps a process to its threads.

    Processes that spin for each other's OpenMP threads on few cores are many times slower, so on
    CPU each gets one thread unless told otherwise, and idle threads sleep.
    """
    environment = {"KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    if threads is not None or num_gpus == 0:
        environment["OMP_NUM_THREADS"] = str(threads or 1)
    return environment


def quiet_environment() -> dict[str, str]:
    """Environment that keeps libraries from filling the screen; their warnings stay in Ray's log files."""
    return {
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore::FutureWarning"),
    }


def spawn(actor_class: type, *args: Any, name: str, **options: Any) -> ray.actor.ActorHandle:
    """Make an actor of `actor_class`, without waiting. It is never restarted by Ray: the pools and the
    launcher know what a newcomer must be told, Ray does not. runtime_env: what it has of its own; its
    variables go before ours."""
    threads = options.pop("threads", None)
    own: Mapping[str, Any] = options.pop("runtime_env", {})
    environment = {**quiet_environment(), **thread_environment(threads, options.get("num_gpus", 0))}
    runtime_env = {**own, "env_vars": {**environment, **own.get("env_vars", {})}}
    remote_class = ray.remote(actor_class)
    return remote_class.options(
        name=name, max_restarts=0, max_task_retries=0, runtime_env=runtime_env, **options
    ).remote(*args)
