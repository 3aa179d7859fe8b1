"""Weights by handles of memory: a learner that dies, a member that is given up while it copies, and what is freed."""

from __future__ import annotations

import gc
import multiprocessing
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import WeightSyncError
from configs.local.ports import free_port
from rollout.records import GroupPlace, TensorInfo
from rollout.weights import ipc
from rollout.weights.groups import WeightGroup
from rollout.weights.lending import LentMemory, open_lent

LAYOUT: list[TensorInfo] = [(f"layer{number}", "float32", (1000,)) for number in range(3)]
BUCKET_BYTES = 4096
CPU = torch.device("cpu")
LONG_S = 60.0
"""A patience in which no test waits."""
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["rollout.weights.groups"])


def place(port: int, rank: int) -> GroupPlace:
    return GroupPlace("127.0.0.1", port, rank, 2, LONG_S, "ipc")


def tensors(value: float) -> Iterator[tuple[str, torch.Tensor]]:
    for name, _, shape in LAYOUT:
        yield name, torch.full(tuple(shape), value)


def mapped() -> int:
    """How many pieces of lent memory this process has open."""
    gc.collect()  # of tests before, whose errors hold what they were raised in
    return Path("/proc/self/maps").read_text().count("bicot-weights")


def pair(lent: LentMemory | None = None) -> tuple[WeightGroup, WeightGroup]:
    """Both ends of a group, in this process."""
    port = free_port()
    ends = WeightGroup(place(port, 0), CPU, lent), WeightGroup(place(port, 1), CPU)
    meeting = threading.Thread(target=ends[1].meet)
    meeting.start()
    ends[0].meet()
    meeting.join(20)
    return ends


def transfer(ends: tuple[WeightGroup, WeightGroup], value: float) -> list[torch.Tensor]:
    sending = threading.Thread(target=ends[0].send, args=(tensors(value), LAYOUT, BUCKET_BYTES))
    sending.start()
    received = [tensor.clone() for bucket in ends[1].receive(LAYOUT, BUCKET_BYTES) for _, tensor in bucket]
    sending.join(20)
    return received


def learner(port: int, orders: Connection) -> None:
    group = WeightGroup(place(port, 0), CPU)
    group.meet()
    layers = list(tensors(1.0))

    def two_and_no_more() -> Iterator[tuple[str, torch.Tensor]]:
        yield layers[0]
        yield layers[1]
        orders.send("sent")
        time.sleep(LONG_S)

    group.send(two_and_no_more(), LAYOUT, BUCKET_BYTES)


def test_a_learner_that_is_killed_between_two_buckets_is_missed_at_once_and_its_memory_let_go() -> None:
    port = free_port()
    ours, theirs = PROCESSES.Pipe()
    process: Any = PROCESSES.Process(target=learner, args=(port, theirs), daemon=True)
    process.start()
    before = mapped()
    group = WeightGroup(place(port, 1), CPU)
    group.meet()
    buckets = group.receive(LAYOUT, BUCKET_BYTES)
    next(buckets)
    next(buckets)
    assert ours.poll(20)
    assert mapped() == before + 1
    process.kill()
    began_s = time.monotonic()
    with pytest.raises(WeightSyncError, match="the learner has left"):
        next(buckets)
    assert time.monotonic() - began_s < LONG_S / 2
    process.join(20)
    del buckets
    assert mapped() == before


@pytest.mark.parametrize("when", ["before it is told of a bucket", "while it has one"])
def test_a_member_whose_connection_is_reset_is_named(when: str) -> None:
    """So it ends where a process is killed that has not read all it was sent, as under CUDA."""
    port = free_port()
    group = WeightGroup(place(port, 0), CPU)
    meeting = threading.Thread(target=group.meet)
    meeting.start()
    member = connected(port)
    meeting.join(20)

    def layers() -> Iterator[tuple[str, torch.Tensor]]:
        if when == "before it is told of a bucket":
            reset(member)
        yield from tensors(1.0)

    failures: list[str] = []
    sending = threading.Thread(target=lambda: failures.append(failure_of(group, layers())))
    sending.start()
    if when == "while it has one":
        assert member.recv(4096, socket.MSG_PEEK)  # and leaves it unread
        reset(member)
    sending.join(20)
    assert "member 1 of 1 has left" in failures[0]


def connected(port: int) -> socket.socket:
    ends_s = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 20)
        except ConnectionRefusedError:
            assert time.monotonic() < ends_s
            time.sleep(0.01)


def reset(end: socket.socket) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()


def test_a_member_that_was_given_up_while_it_copied_never_takes_what_was_written_over_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lent = LentMemory(CPU)
    ends = pair(lent)

    def open_too_late(handle: Any, device: torch.device) -> torch.Tensor:
        ends[0].abort()  # rank 0 has lost patience with a frozen process, and goes on with others
        lent.room(4000).fill_(255)
        return open_lent(handle, device)

    monkeypatch.setattr(ipc, "open_lent", open_too_late)
    sending = threading.Thread(target=lambda: failures.append(failure_of(ends[0])))
    failures: list[str] = []
    sending.start()
    with pytest.raises(WeightSyncError):
        list(ends[1].receive(LAYOUT, BUCKET_BYTES))
    sending.join(20)
    assert failures


def failure_of(group: WeightGroup, sent: Iterable[tuple[str, torch.Tensor]] | None = None) -> str:
    with pytest.raises(WeightSyncError) as caught:
        group.send(tensors(1.0) if sent is None else sent, LAYOUT, BUCKET_BYTES)
    return str(caught.value)


def test_the_learner_hears_why_a_member_could_not_open_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LentMemory, "handle", lambda self: {"path": "/proc/none/fd/7", "size": 4096})
    ends = pair()
    failures: list[str] = []
    sending = threading.Thread(target=lambda: failures.append(failure_of(ends[0])))
    sending.start()
    with pytest.raises(WeightSyncError, match="No such file"):
        list(ends[1].receive(LAYOUT, BUCKET_BYTES))
    sending.join(20)
    assert "member 1 of 1 could not open it: " in failures[0]
    assert "No such file" in failures[0]


def test_one_piece_of_memory_serves_group_after_group_and_is_given_back() -> None:
    before = mapped()
    lent = LentMemory(CPU)
    for value in (1.0, 2.0):
        ends = pair(lent)
        assert all(bool((tensor == value).all()) for tensor in transfer(ends, value))
        assert all(bool((tensor == value + 5).all()) for tensor in transfer(ends, value + 5))  # nothing is opened anew
        for end in ends:
            end.abort()
        del end, ends
        assert mapped() == before + 1, "the learner's own"
    lent.close()
    assert mapped() == before


def test_memory_that_grows_is_lent_anew() -> None:
    lent = LentMemory(CPU)
    lent.room(10).fill_(1)
    small = lent.generation
    lent.room(5)
    assert lent.generation == small
    lent.room(10_000).fill_(2)
    assert lent.generation != small
    assert bool((open_lent(lent.handle(), CPU) == 2).all())
