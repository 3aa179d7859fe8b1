"""The Ray actor around one DeepSpeed rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from cluster.actors.spawning import use_network_of_node
from configs.errors import LearnerError
from configs.schema import RunConfig
from rollout.records import TrajectoryBatch, WeightBucket

if TYPE_CHECKING:
    from learner.worker import LearnerWorker, StepReport


class LearnerActor:
    """One DeepSpeed rank."""

    def __init__(self, config: RunConfig, rank: int) -> None:
        use_network_of_node()
        self._config = config
        self._rank = rank
        self._worker: LearnerWorker | None = None

    def ping(self) -> None:
        """Answers when nothing else is being done."""

    def find_warm_start(self) -> tuple[str, bool]:
        """The folder of the warm-started policy, and whether it is there already."""
        from learner.warm_start import warm_start_folder

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
        """Meet the other ranks and load the model. Raises what `LearnerWorker.start` raises."""
        from learner.worker import LearnerWorker

        self._worker = LearnerWorker.start(
            self._config, model_path, self._rank, master_address=master_address, master_port=master_port
        )

    @property
    def _started(self) -> LearnerWorker:
        if self._worker is None:
            raise LearnerError(f"learner rank {self._rank} has not been set up")
        return self._worker

    def train_step(self, batch: TrajectoryBatch) -> StepReport:
        return self._started.train_step(batch)

    def export_weights(self, version: int) -> Iterator[WeightBucket | int]:
        """All buckets, and at the end their number: an error would stand in its place.

        Called with num_returns="streaming", so that no more than one bucket is in memory beside the store.
        """
        num_buckets = 0
        for bucket in self._started.export_weights(version):
            num_buckets += 1
            yield bucket
        yield num_buckets

    def weight_layout(self) -> list[tuple[str, str, tuple[int, ...]]]:
        return self._started.weight_layout()

    def join_collective(self, master_address: str, master_port: int, world_size: int) -> None:
        self._started.join_collective(master_address, master_port, world_size)

    def send_collective(self, version: int) -> None:
        self._started.send_collective(version)

    def save_checkpoint(self, directory: str, step: int) -> None:
        self._started.save_checkpoint(Path(directory), step)

    def load_checkpoint(self, directory: str) -> int:
        return self._started.load_checkpoint(Path(directory))

    def save_pretrained(self, directory: str) -> None:
        self._started.save_pretrained(Path(directory))

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()
