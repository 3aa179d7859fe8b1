"""Weights by NCCL between two GPUs: what arrives, and a member that is stopped inside a broadcast."""

from __future__ import annotations

import multiprocessing
import os
import signal
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

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs: NCCL joins no two processes on one"),
]

LAYOUT: list[TensorInfo] = [(f"layer{number}", "bfloat16", (4096, 4096)) for number in range(8)]
BUCKET_BYTES = 64 << 20
PATIENCE_S = 10.0
PROCESSES = multiprocessing.get_context("spawn")


def place(port: int, rank: int, patience_s: float) -> GroupPlace:
    return GroupPlace("127.0.0.1", port, rank, 2, patience_s)


def tensors(device: str) -> list[tuple[str, torch.Tensor]]:
    return [
        (name, torch.full(tuple(shape), float(number), dtype=torch.bfloat16, device=device))
        for number, (name, _, shape) in enumerate(LAYOUT)
    ]


def member(port: int, stalls: bool, answers: Connection) -> None:
    group = WeightGroup(place(port, 1, 60.0), torch.device("cuda", 1))
    group.meet()
    names = []
    for bucket in group.receive(LAYOUT, BUCKET_BYTES):
        names += [name for name, tensor in bucket if bool((tensor == float(name.removeprefix("layer"))).all())]
        if stalls:
            answers.send("stalled")
            time.sleep(300)
    answers.send(names)


def joined(stalls: bool) -> tuple[WeightGroup, Any, Connection]:
    port = free_port("127.0.0.1")
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=member, args=(port, stalls, theirs), daemon=True)
    process.start()
    group = WeightGroup(place(port, 0, PATIENCE_S if stalls else 60.0), torch.device("cuda", 0))
    group.meet()
    return group, process, ours


def test_tensors_arrive_over_nccl_and_a_stopped_member_is_left_behind() -> None:
    group, process, answers = joined(stalls=True)
    failures: list[str] = []

    def send() -> None:
        with pytest.raises(WeightSyncError) as caught:
            group.send(tensors("cuda:0"), LAYOUT, BUCKET_BYTES)
        failures.append(str(caught.value))

    sending = threading.Thread(target=send)
    sending.start()
    assert answers.poll(120)
    assert answers.recv() == "stalled"
    os.kill(process.pid, signal.SIGSTOP)
    sending.join(PATIENCE_S + 30)
    assert failures, "the sender did not come back from a broadcast with a stopped member"
    process.kill()

    group, process, answers = joined(stalls=False)
    group.send(tensors("cuda:0"), LAYOUT, BUCKET_BYTES)
    assert answers.poll(120)
    assert answers.recv() == [name for name, _, _ in LAYOUT]
    group.abort()
    process.join(60)
