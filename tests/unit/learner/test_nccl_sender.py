"""The sending end of weight sync by NCCL gives up a broadcast that waits for the dead. NCCL is a stand-in."""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import Any

import pytest

from configs.errors import WeightSyncError
from learner.nccl_sender import NcclSender

WAIT_S = 10.0


class Group:
    """vLLM's communicator: a broadcast in it ends when it is destroyed."""

    def __init__(self) -> None:
        self.is_sending = threading.Event()
        self.is_destroyed = threading.Event()

    def destroy(self) -> None:
        self.is_destroyed.set()

    def broadcast(self, error: Exception | None) -> None:
        self.is_sending.set()
        assert self.is_destroyed.wait(WAIT_S)
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [None, RuntimeError("NCCL error: remote process exited")])
def test_a_send_that_is_stuck_raises_when_another_thread_gives_it_up(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    group = Group()
    common, packed = ModuleType("nccl_common"), ModuleType("packed_tensor")
    common.trainer_init = lambda rendezvous: group  # type: ignore[attr-defined]
    packed.packed_nccl_broadcast_producer = lambda **_: group.broadcast(error)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.nccl_common", common)
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.packed_tensor", packed)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    sender = NcclSender("127.0.0.1", 1, 2)
    raised: list[Any] = []

    def send() -> None:
        try:
            sender.send(iter(()))
        except WeightSyncError as error:
            raised.append(str(error))

    sending = threading.Thread(target=send)
    sending.start()
    assert group.is_sending.wait(WAIT_S)
    sender.give_up()
    sending.join(WAIT_S)
    assert raised == [
        "the weight broadcast was given up"
        if error is None
        else "the weight broadcast failed: NCCL error: remote process exited"
    ]
