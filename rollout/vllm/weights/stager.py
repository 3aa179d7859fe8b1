"""A vLLM worker's end of staged weight updates: a thread that loads what lies in slots, or comes by a broadcast, while
the worker samples.

    socket ─┬─► load | finish | drop | join | receive ─► one after the other ─► StagedWeights, WeightGroup ─┐
            └─► leave ─► at once, by another thread: breaks off `receive`                                   │
    socket ◄──── answer: null, or an error as text ◄────────────────────────────────────────────────────────┘

Neither thread touches the weights that sample: `swap`, which does, is called by the worker itself in a pause.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
from contextlib import suppress
from typing import Any

import torch

from rollout.records import GroupPlace
from rollout.vllm.weights.staged import PinnedMemory, StagedWeights
from rollout.weights import unpack_bucket
from rollout.weights.groups import WeightGroup
from rollout.weights.slots import SlotContents, SlotReader


class Stager:
    """Stages one update at a time."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._device: torch.device = next(model.parameters()).device
        self._group: WeightGroup | None = None
        self._slots = SlotReader()
        self._pinned: PinnedMemory = {}
        self._staged: StagedWeights | None = None
        self._is_complete = False

    def connect(self, path: str) -> None:
        """Take messages from the socket at `path` until its other end closes."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(path)
        threading.Thread(target=self._serve, args=(connection,), name="stage weights", daemon=True).start()

    def swap(self) -> None:
        """The staged weights take the place of the model's. Raises RuntimeError unless an update was finished."""
        if self._staged is None or not self._is_complete:
            raise RuntimeError("no weight update has been staged")
        self._is_complete = False
        self._staged.swap()  # the old weights are freed by the next message, outside of the pause

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            telling = threading.Lock()
            orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
            work = threading.Thread(target=self._work, args=(orders, stream, telling), name="load weights", daemon=True)
            work.start()
            for line in stream:
                message = json.loads(line)
                if message["do"] == "leave":  # at once: what is at work may wait for the group
                    self._leave()
                    _answer(stream, telling, message, None)
                else:
                    orders.put(message)
            orders.put(None)
            self._leave()
            work.join()

    def _work(self, orders: queue.SimpleQueue[dict[str, Any] | None], stream: Any, telling: threading.Lock) -> None:
        if (
            self._device.type != "cpu"
        ):  # a thread begins on the first one, where page-locked memory would open a context
            torch.accelerator.set_device_index(self._device)
        while (message := orders.get()) is not None:
            error = None
            try:
                self._obey(message)
            except Exception as problem:  # noqa: BLE001  it is for the other end, which drops the update
                error = f"{type(problem).__name__}: {problem}"
            with suppress(OSError):  # the other end is gone, and `_serve` sees that
                _answer(stream, telling, message, error)

    def _leave(self) -> None:
        if self._group is not None:
            self._group.abort()

    def _obey(self, message: dict[str, Any]) -> None:
        match message["do"]:
            case "load":
                self._begun().load(unpack_bucket(self._slots.read(SlotContents(**message["contents"]))))
            case "join":
                self._leave()
                self._group = WeightGroup(GroupPlace(**message["place"]), self._device)
                self._group.meet()
            case "receive":
                if self._group is None:
                    raise RuntimeError("no weight-transfer group was joined")
                for bucket in self._group.receive(message["layout"], message["bucket_bytes"]):
                    self._begun().load(bucket)
                self._finish()
            case "finish":
                self._finish()
            case "drop":
                self._staged, self._is_complete = None, False

    def _begun(self) -> StagedWeights:
        if self._staged is None:
            self._staged = StagedWeights(self._model, self._pinned)
        return self._staged

    def _finish(self) -> None:
        if self._staged is None:
            raise RuntimeError("nothing was loaded")
        self._staged.finish()
        self._is_complete = True


def _answer(stream: Any, telling: threading.Lock, message: dict[str, Any], error: str | None) -> None:
    with telling:
        stream.write(json.dumps({"id": message["id"], "error": error}).encode() + b"\n")
        stream.flush()
