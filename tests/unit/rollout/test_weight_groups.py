"""Weights by broadcast, with real processes over gloo and by IPC: what arrives, and what a stalled or killed member
costs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, Literal

import pytest
import torch

from configs.errors import WeightSyncError
from configs.local.ports import free_port
from rollout.records import GroupPlace, TensorInfo
from rollout.weights.groups import WeightGroup, cut

LAYOUT: list[TensorInfo] = [
    ("odd", "bfloat16", (7,)),
    ("large", "float32", (1000, 3)),
    ("empty", "bfloat16", (0, 4)),
    ("larger", "bfloat16", (300, 1000)),
]
BUCKET_BYTES = 4000
PATIENCE_S = 5.0
CPU = torch.device("cpu")
# Not forked from this process: it has gloo's threads, and what they hold would stay locked in a child for ever.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rollout.weights.groups"])


def tensors(seed: int) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(name, torch.randn(*shape, generator=generator).to(getattr(torch, dtype))) for name, dtype, shape in LAYOUT]


def place(
    port: int, rank: int, world_size: int, transport: Literal["nccl", "ipc"], patience_s: float = PATIENCE_S
) -> GroupPlace:
    return GroupPlace("127.0.0.1", port, rank, world_size, patience_s, transport)


def member(orders: Connection) -> None:
    """Joins the groups it is told of; answers what it has received, or why not. `stalls`: after the first bucket."""
    torch.set_num_threads(1)
    while True:
        try:
            where, stalls = orders.recv()
        except EOFError:
            return
        try:
            group = WeightGroup(where, CPU)
            group.meet()
            received: dict[str, torch.Tensor] = {}
            for bucket in group.receive(LAYOUT, BUCKET_BYTES):
                received |= {name: tensor.clone() for name, tensor in bucket}
                if stalls:
                    orders.send("stalled")
                    time.sleep(60)
            orders.send({name: tensor.float().numpy() for name, tensor in received.items()})
        except WeightSyncError as error:
            orders.send(str(error))


class Members:
    """Processes that receive."""

    def __init__(self, transport: Literal["nccl", "ipc"]) -> None:
        self.transport = transport
        self.processes: list[Any] = []
        self.pipes: list[Connection] = []
        for _ in range(2):
            ours, theirs = PROCESSES.Pipe()
            process = PROCESSES.Process(target=member, args=(theirs,), daemon=True)
            process.start()
            self.processes.append(process)
            self.pipes.append(ours)

    def join(self, numbers: list[int], stalls: int | None = None) -> WeightGroup:
        port = free_port()
        for rank, number in enumerate(numbers, start=1):
            self.pipes[number].send((place(port, rank, 1 + len(numbers), self.transport), number == stalls))
        group = WeightGroup(place(port, 0, 1 + len(numbers), self.transport), CPU)
        group.meet()
        return group

    def answer(self, number: int) -> Any:
        assert self.pipes[number].poll(20), f"member {number} does not answer"
        return self.pipes[number].recv()

    def has(self, number: int, seed: int) -> bool:
        answer = self.answer(number)
        assert isinstance(answer, dict), answer
        return all(torch.equal(torch.from_numpy(answer[name]), tensor.float()) for name, tensor in tensors(seed))


@pytest.fixture(params=["nccl", "ipc"])
def transport(request: pytest.FixtureRequest) -> Literal["nccl", "ipc"]:
    """nccl is gloo on CPUs."""
    name: Literal["nccl", "ipc"] = request.param
    return name


@pytest.fixture
def members(transport: Literal["nccl", "ipc"]) -> Iterator[Members]:
    members = Members(transport)
    yield members
    for process in members.processes:
        process.kill()
        process.join(10)


def test_every_member_receives_what_was_sent_bit_for_bit(members: Members) -> None:
    members.join([0, 1]).send(tensors(1), LAYOUT, BUCKET_BYTES)
    assert members.has(0, 1)
    assert members.has(1, 1)


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL])
def test_a_member_that_stalls_or_dies_costs_the_others_nothing_but_a_new_group(members: Members, fault: int) -> None:
    group = members.join([0, 1], stalls=1)
    sending = threading.Thread(target=lambda: failures.append(failure_of(group, 1)))
    failures: list[str] = []
    sending.start()
    assert members.answer(1) == "stalled"
    os.kill(members.processes[1].pid, fault)
    sending.join(20)
    assert not sending.is_alive()
    assert "weight" in failures[0]
    assert isinstance(members.answer(0), str), "the member that is well was told that the group has failed"
    members.join([0]).send(tensors(2), LAYOUT, BUCKET_BYTES)
    assert members.has(0, 2)


def failure_of(group: WeightGroup, seed: int) -> str:
    with pytest.raises(WeightSyncError) as caught:
        group.send(tensors(seed), LAYOUT, BUCKET_BYTES)
    return str(caught.value)


def test_a_broadcast_is_broken_off_at_once_by_another_thread(transport: Literal["nccl", "ipc"]) -> None:
    """With a patience that nobody waits for: nothing else would end it in time."""
    port = free_port()
    ends = [WeightGroup(place(port, rank, 2, transport, patience_s=30), CPU) for rank in range(2)]
    meeting = threading.Thread(target=ends[1].meet)
    meeting.start()
    ends[0].meet()
    meeting.join(20)
    failures: list[str] = []
    receiving = threading.Thread(target=lambda: failures.append(broken_off(ends[1])))  # the other takes no part
    receiving.start()
    ends[1].abort()
    receiving.join(10)
    assert failures
    assert "broken off" in failures[0] or "was left" in failures[0]


def broken_off(group: WeightGroup) -> str:
    with pytest.raises(WeightSyncError) as caught:
        list(group.receive(LAYOUT, BUCKET_BYTES))
    return str(caught.value)


def test_whoever_waits_for_one_that_does_not_come_can_be_told_to_stop(transport: Literal["nccl", "ipc"]) -> None:
    group = WeightGroup(place(free_port(), 0, 2, transport, patience_s=30), CPU)
    failures: list[BaseException] = []

    def meet() -> None:
        with pytest.raises(WeightSyncError, match=r"no weight-transfer group of 2 at 127\.0\.0\.1") as caught:
            group.meet()
        failures.append(caught.value)

    meeting = threading.Thread(target=meet)
    meeting.start()
    group.abort()
    meeting.join(10)
    assert failures


@pytest.mark.parametrize("rank", [0, 1])
def test_a_group_of_which_one_does_not_come_is_an_error(rank: int, transport: Literal["nccl", "ipc"]) -> None:
    with pytest.raises(WeightSyncError, match="no weight-transfer group of 2"):
        WeightGroup(place(free_port(), rank, 2, transport, patience_s=0.5), CPU).meet()


def test_what_is_sent_must_be_what_was_announced(members: Members) -> None:
    group = members.join([0, 1])
    with pytest.raises(ValueError, match=r"'large' .* is sent where 'odd' was announced"):
        group.send(tensors(1)[1:], LAYOUT, BUCKET_BYTES)
    group.abort()


def test_buckets_hold_consecutive_tensors_and_a_large_one_alone() -> None:
    buckets = list(cut(LAYOUT, BUCKET_BYTES))
    assert [[name for name, _, _ in bucket] for bucket in buckets] == [["odd"], ["large"], ["empty"], ["larger"]]
