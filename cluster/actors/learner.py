"""The Ray actor around one DeepSpeed rank."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import ray

from cluster.actors import folders
from cluster.actors.folders import ProbeAnswer, WrittenFiles
from cluster.actors.network import use_network_of_node
from cluster.actors.sources import check_same_sources
from cluster.actors.spawning import node_id, own_name
from cluster.actors.usage import Usage, UsageRecord
from configs.errors import LearnerError
from configs.local.ports import free_port
from configs.schema import RunConfig
from rollout.records import GroupPlace, GroupRollout, TrajectoryBatch, WeightBucket, WeightVersion
from rollout.weights.delta import DeltaBucket, DeltaEncoder, DeltaSummary

if TYPE_CHECKING:
    from learner.worker import LearnerWorker, StepReport

CONCURRENCY_GROUPS: Final = {"pulse": 1, "files": 1, "checkpoint": 1}
"""Threads beside the one that computes: for what must be answered while it does."""


class Stage(NamedTuple):
    """How far long work has come."""

    name: str
    done: int
    total: int
    metrics: Mapping[str, float]


class LearnerActor:
    """One DeepSpeed rank."""

    def __init__(self, config: RunConfig, rank: int) -> None:
        os.environ.update(config.learner.env_vars)  # not all by Ray, see `cluster.actors.spawning`
        use_network_of_node()
        self._config = config
        self._rank = rank
        self._stage: Stage | None = None
        self._worker: LearnerWorker | None = None
        self._usage = UsageRecord()
        self._delta = DeltaEncoder()

    def __repr__(self) -> str:
        return own_name()

    def pulse(self) -> Stage | None:
        """Answers also while the rank computes, in the concurrency group of this name: how far a warm start is."""
        return self._stage

    def usage(self) -> Usage:
        """Answers as `pulse` does."""
        return self._usage.take()

    def answer_probe(self, folder: str, question: str, answer: str) -> ProbeAnswer:
        """See `cluster.actors.folders`."""
        return folders.answer_probe(folder, question, answer, ray.util.get_node_ip_address())

    def has_folder(self, path: str) -> bool:
        """See `cluster.actors.folders`."""
        return folders.is_here(path)

    def give_folder(self, path: str) -> Iterator[folders.Part | int]:
        """Its parts, and at the end their number: an error would stand in its place. Called with
        num_returns="streaming"."""
        num_parts = 0
        for part in folders.pack(path):
            num_parts += 1
            yield part
        yield num_parts

    def take_folder(self, path: str, parts: Sequence[ray.ObjectRef[folders.Part]]) -> None:
        """See `cluster.actors.folders`."""
        folders.unpack(path, (ray.get(part) for part in parts))

    def find_warm_start(self) -> str:
        """Name of the folder of the warm-started policy, see `learner.warm_start.cache`."""
        from learner.warm_start import warm_start_folder

        return warm_start_folder(self._config).name

    def warm_start(self, folder: str, master_address: str, master_port: int) -> None:
        """Make the warm-started policy; all ranks enter, and rank 0 writes it."""
        from learner.warm_start import warm_start
        from learner.zero import init_distributed

        def report(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
            self._stage = Stage(stage, done, total, dict(metrics))

        learner = self._config.learner
        device = "cuda" if learner.gpus_per_rank > 0 else "cpu"
        init_distributed(self._rank, learner.num_ranks, master_address, master_port, device)
        warm_start(self._config, Path(folder).expanduser(), self._rank, learner.num_ranks, report)

    def rendezvous(self) -> tuple[str, int]:
        """Address and port of this rank's node, at which this rank waits for the others from now on."""
        from learner.zero.meeting_place import open_meeting_place

        address = ray.util.get_node_ip_address()
        return address, open_meeting_place(address, self._config.run.start_timeout_s)

    def free_port(self) -> tuple[str, int]:
        """Address and a free port of this rank's node."""
        address = ray.util.get_node_ip_address()
        return address, free_port(address)

    def node(self) -> str:
        """Id of this rank's node."""
        return node_id()

    def setup(self, model_path: str, master_address: str, master_port: int) -> None:
        """Meet the other ranks and load the model. Raises what `LearnerWorker.start` raises."""
        check_same_sources()
        from learner.worker import LearnerWorker

        path = os.path.expanduser(model_path)
        self._worker = LearnerWorker.start(
            self._config, path, self._rank, master_address=master_address, master_port=master_port
        )
        self._usage.started()

    @property
    def _started(self) -> LearnerWorker:
        if self._worker is None:
            raise LearnerError(f"learner rank {self._rank} has not been set up")
        return self._worker

    def train_step(self, batch: TrajectoryBatch, probes: Sequence[GroupRollout] = ()) -> StepReport:
        return self._started.train_step(batch, probes)

    def export_weights(self, version: int) -> Iterator[WeightBucket | int]:
        """All buckets, and at the end their number: an error would stand in its place.

        Called with num_returns="streaming", so that no more than one bucket is in memory beside the store.
        """
        num_buckets = 0
        for bucket in self._started.export_weights(version):
            num_buckets += 1
            yield bucket
        yield num_buckets

    def export_changes(
        self, version: WeightVersion, base: WeightVersion | None
    ) -> Iterator[WeightBucket | DeltaBucket | DeltaSummary]:
        """`export_weights` as changes of `base`, or whole, see `DeltaEncoder.encode`; at the end what that came to."""
        yield from self._delta.encode(version, base, self._started.export_weights(version.number))
        yield self._delta.summary

    def weight_layout(self) -> list[tuple[str, str, tuple[int, ...]]]:
        return self._started.weight_layout()

    def join_collective(self, place: GroupPlace) -> None:
        self._started.join_collective(place)

    def send_collective(self, version: int, bucket_bytes: int) -> None:
        self._started.send_collective(version, bucket_bytes)

    def abort_collective(self) -> None:
        """Answers also while the rank is in `send_collective`, in the concurrency group "pulse"."""
        if self._worker is not None:
            self._worker.abort_collective()

    def offload(self) -> None:
        self._started.offload()

    def reload(self) -> None:
        self._started.reload()

    def take_snapshot(self, step: int) -> None:
        self._started.take_snapshot(step)

    def write_snapshot(self, directory: str) -> WrittenFiles:
        """Write what `take_snapshot` has copied, in the concurrency group "checkpoint", while the rank computes.

        Returns what this rank wrote: its part of DIRECTORY/state, and rank 0 DIRECTORY/model. Raises CheckpointError.
        """
        from learner.checkpoint import files_of_rank

        folder = Path(directory)
        state, model = folder / "state", folder / "model"
        self._started.write_snapshot(state, model)
        files = [*files_of_rank(state, self._rank), *(folders.files_of(model) if self._rank == 0 else [])]
        return self._written(folder, files)

    def load_checkpoint(self, directory: str) -> int:
        return self._started.load_checkpoint(Path(directory))

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()

    def _written(self, folder: Path, files: Sequence[Path]) -> WrittenFiles:
        """Raises CheckpointError when the files cannot be read back."""
        from configs.errors import CheckpointError

        try:
            digests = {file.relative_to(folder).as_posix(): folders.digest_file(file) for file in files}
        except OSError as error:
            raise CheckpointError(f"cannot read back what was written: {error}") from error
        return WrittenFiles(ray.util.get_node_ip_address(), digests)
