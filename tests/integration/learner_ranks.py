"""Learner ranks in processes of their own, each running a list of jobs one after the other.

DeepSpeed reads its rank from the environment, so no rank runs in the test process. All jobs of one
number of ranks share the processes, since importing DeepSpeed takes seconds.
"""

from __future__ import annotations

import faulthandler
import pickle
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from configs.errors import CheckpointError, LearnerError
from configs.local.ports import free_port
from configs.schema import RunConfig
from learner.worker import LearnerWorker, StepReport
from learner.zero.meeting_place import open_meeting_place
from rollout.records import GroupPlace, TrajectoryBatch
from rollout.weights import unpack_bucket
from rollout.weights.groups import WeightGroup

TIMEOUT_S = 280.0
BROADCAST_BYTES = 20_000


@dataclass(frozen=True)
class Job:
    """Steps of one worker, which is made for it; a checkpoint is written after the last step."""

    name: str
    config: RunConfig
    batches: Sequence[TrajectoryBatch]
    load_from: Path | None = None
    checkpoint_to: Path | None = None
    batches_while_writing: Sequence[TrajectoryBatch] = ()
    """Steps between the copy in host memory and the writing of it, which must not show in the checkpoint."""
    offloads: bool = False
    """The optimizer's state is in host memory but for the steps, and the checkpoint taken from there."""
    broadcasts: bool = False
    """At the end, the weights are also sent to a member of a weight-transfer group."""


@dataclass(frozen=True)
class JobResult:
    """What rank 0 saw, or the LearnerError that every rank got."""

    reports: list[StepReport] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    """After each step."""
    resumed_step: int | None = None
    num_buckets: int = 0
    faults: list[str | None] = field(default_factory=list)
    """Of each rank, why it could not write its part of the checkpoint."""
    error: str | None = None
    received: dict[str, Tensor] = field(default_factory=dict)
    """What came by broadcast."""
    freed_bytes: int = 0
    """Of a GPU, by the last time that the optimizer was offloaded."""


def run_jobs(jobs: Sequence[Job], num_ranks: int, directory: Path) -> Mapping[str, JobResult]:
    """Run `jobs` on `num_ranks` ranks and return rank 0's results by name."""
    result_file = directory / f"results-{num_ranks}.pickle"
    ports = [multiprocessing.get_context("spawn").SimpleQueue() for _ in range(num_ranks)]
    context = multiprocessing.spawn(
        _run_rank, (num_ranks, list(jobs), ports, result_file), nprocs=num_ranks, join=False
    )
    deadline_s = time.monotonic() + TIMEOUT_S
    # join returns after each rank that ends, and says whether it was the last.
    while not context.join(timeout=max(0.0, deadline_s - time.monotonic())):
        if time.monotonic() >= deadline_s:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{num_ranks} learner rank(s) did not finish within {TIMEOUT_S:g} s")
    results: Mapping[str, JobResult] = pickle.loads(result_file.read_bytes())
    return results


def _run_rank(rank: int, num_ranks: int, jobs: list[Job], ports: list[SimpleQueue[int]], result_file: Path) -> None:
    faulthandler.dump_traceback_later(TIMEOUT_S - 60)  # shows where a rank hangs
    results = {}
    for job in jobs:
        if rank == 0:
            port = open_meeting_place("127.0.0.1", TIMEOUT_S)
            for queue in ports:
                queue.put(port)
        worker = LearnerWorker.start(
            job.config, job.config.model.path, rank, master_address="127.0.0.1", master_port=ports[rank].get()
        )
        try:
            results[job.name] = _run_job(worker, job)
        except LearnerError as error:
            results[job.name] = JobResult(error=str(error))
        finally:
            worker.close()
    if rank == 0:
        result_file.write_bytes(pickle.dumps(results))


def _run_job(worker: LearnerWorker, job: Job) -> JobResult:
    resumed_step = worker.load_checkpoint(job.load_from) if job.load_from is not None else None
    reports, weights, num_buckets, freed = [], [], 0, 0
    faults: list[str | None] = []
    for batch in job.batches:
        worker.reload()  # also before anything was offloaded
        reports.append(worker.train_step(batch))
        before = _allocated_bytes()
        for _ in range(2 * job.offloads):
            worker.offload()
        freed = before - _allocated_bytes()
        num_buckets = 0
        weights.append({})
        for bucket in worker.export_weights(worker.weight_version):
            num_buckets += 1
            weights[-1].update((name, tensor.clone()) for name, tensor in unpack_bucket(bucket))
    if job.checkpoint_to is not None:
        worker.take_snapshot(worker.weight_version)
        for batch in job.batches_while_writing:
            worker.train_step(batch)
        faults = _write(worker, job.checkpoint_to)
    received = _broadcast(worker) if job.broadcasts else {}
    return JobResult(reports, weights, resumed_step, num_buckets, faults, received=received, freed_bytes=freed)


def _allocated_bytes() -> int:
    """Of a GPU; 0 without one."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def _broadcast(worker: LearnerWorker) -> dict[str, Tensor]:
    """What a member of a weight-transfer group receives, which is a thread of rank 0."""
    layout, received = worker.weight_layout(), dict[str, Tensor]()
    if dist.get_rank() > 0:
        worker.send_collective(worker.weight_version, BROADCAST_BYTES)
        return received
    first, second = (GroupPlace("127.0.0.1", port, rank, 2, 60.0) for port in [free_port()] for rank in range(2))
    member = WeightGroup(second, torch.device("cpu"))

    def receive() -> None:
        member.meet()
        for bucket in member.receive(layout, BROADCAST_BYTES):
            received.update((name, tensor.clone()) for name, tensor in bucket)

    receiving = threading.Thread(target=receive)
    receiving.start()
    worker.join_collective(first)
    worker.send_collective(worker.weight_version, BROADCAST_BYTES)
    receiving.join(60)
    member.abort()
    return received


def _write(worker: LearnerWorker, directory: Path) -> list[str | None]:
    """Why each rank could not write its part of the snapshot; each writes for itself."""
    fault = None
    try:
        worker.write_snapshot(directory / "state", directory / "model")
    except CheckpointError as error:
        fault = str(error)
    faults: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, fault)
    return faults


def all_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether both hold the same names and bit-equal tensors."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
