"""Weights by CUDA IPC between two processes on one GPU: what arrives, and members that die with the memory open."""

from __future__ import annotations

import multiprocessing
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from configs.errors import WeightSyncError
from configs.local.ports import free_port
from rollout.records import GroupPlace, TensorInfo
from rollout.weights.groups import WeightGroup
from rollout.weights.lending import LentMemory

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

# The last is larger than a bucket: the memory that is lent has to grow.
LAYOUT: list[TensorInfo] = [
    *((f"layer{n}", "bfloat16", (2048, 2048)) for n in range(12)),
    ("head", "float32", (99, 2**18)),
]
BUCKET_BYTES = 32 << 20
PATIENCE_S = 60.0
PROCESSES = multiprocessing.get_context("spawn")


def tensors(device: torch.device) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (name, torch.randn(*shape, generator=generator).to(device, getattr(torch, dtype)))
        for name, dtype, shape in LAYOUT
    ]


def member(orders: Connection) -> None:
    """Receives from the ports it is told of; answers which tensors came bit for bit, and at what rate. `stalls`: after
    the first bucket."""
    device = torch.device("cuda", 0)
    expected = dict(tensors(device))
    orders.send("ready")
    while True:
        port, stalls = orders.recv()
        group = WeightGroup(GroupPlace("127.0.0.1", port, 1, 2, PATIENCE_S, "ipc"), device)
        group.meet()
        equal = []
        began_s = time.perf_counter()
        for bucket in group.receive(LAYOUT, BUCKET_BYTES):
            equal += [name for name, tensor in bucket if torch.equal(tensor, expected[name])]
            if stalls:
                orders.send("stalled")
                time.sleep(300)
        orders.send((equal, sum(tensor.nbytes for tensor in expected.values()) / (time.perf_counter() - began_s) / 1e9))
        group.abort()


def started() -> tuple[Any, Connection]:
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=member, args=(theirs,), daemon=True)
    process.start()
    return process, ours


def joined(orders: Connection, lent: LentMemory, device: torch.device, stalls: bool) -> WeightGroup:
    port = free_port("127.0.0.1")
    orders.send((port, stalls))
    group = WeightGroup(GroupPlace("127.0.0.1", port, 0, 2, PATIENCE_S, "ipc"), device, lent)
    group.meet()
    return group


def test_tensors_arrive_by_cuda_ipc_and_a_member_that_is_killed_costs_no_memory() -> None:
    device = torch.device("cuda", 0)
    sent = tensors(device)
    lent = LentMemory(device)
    members = [started() for _ in range(3)]
    for _, orders in members:
        assert orders.poll(120)
        assert orders.recv() == "ready"
    process, orders = members.pop()
    for _ in range(3):
        group = joined(orders, lent, device, stalls=False)
        group.send(sent, LAYOUT, BUCKET_BYTES)
        assert orders.poll(60)
        equal, rate = orders.recv()
        assert equal == [name for name, _, _ in LAYOUT]
        print(f"{rate:.1f} GB/s by CUDA IPC, compared with what it should be on the way")
        group.abort()

    before = torch.cuda.memory_allocated(device)
    for other, others_orders in members:
        group = joined(others_orders, lent, device, stalls=True)
        failures: list[str] = []

        def send(group: WeightGroup = group, failures: list[str] = failures) -> None:
            with pytest.raises(WeightSyncError) as caught:
                group.send(sent, LAYOUT, BUCKET_BYTES)
            failures.append(str(caught.value))

        sending = threading.Thread(target=send)
        sending.start()
        assert others_orders.poll(60)
        assert others_orders.recv() == "stalled"
        other.kill()
        sending.join(PATIENCE_S / 2)
        assert "has left" in failures[0]
    assert torch.cuda.memory_allocated(device) == before

    group = joined(orders, lent, device, stalls=False)
    group.send(sent, LAYOUT, BUCKET_BYTES)
    assert orders.poll(60)
    assert orders.recv()[0] == [name for name, _, _ in LAYOUT]
    process.kill()
