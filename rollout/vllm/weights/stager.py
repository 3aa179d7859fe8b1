"""A vLLM worker's end of staged weight updates: a thread that loads what lies in slots while the worker samples.

    socket ─► {"load": …} | {"finish": …} | {"drop": …} ─► StagedWeights ─► answer: null, or an error as text

The thread answers one message after the other and never touches the weights that sample: `swap`, which does, is called
by the worker itself in a pause.
"""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import torch

from rollout.vllm.weights.staged import PinnedMemory, StagedWeights
from rollout.weights import unpack_bucket
from rollout.weights.slots import SlotContents, SlotReader


class Stager:
    """Stages one update at a time."""

    def __init__(self, model: Any) -> None:
        self._model = model
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
        device = next(self._model.parameters()).device
        if device.type != "cpu":  # a thread begins on the first one, where page-locked memory would open a context
            torch.accelerator.set_device_index(device)
        with connection, connection.makefile("rwb") as stream:
            for line in stream:
                message = json.loads(line)
                error = None
                try:
                    self._obey(message)
                except Exception as problem:  # noqa: BLE001  it is for the other end, which drops the update
                    error = f"{type(problem).__name__}: {problem}"
                stream.write(json.dumps({"id": message["id"], "error": error}).encode() + b"\n")
                stream.flush()

    def _obey(self, message: dict[str, Any]) -> None:
        match message["do"]:
            case "load":
                if self._staged is None:
                    self._staged = StagedWeights(self._model, self._pinned)
                self._staged.load(unpack_bucket(self._slots.read(SlotContents(**message["contents"]))))
            case "finish":
                if self._staged is None:
                    raise RuntimeError("nothing was loaded")
                self._staged.finish()
                self._is_complete = True
            case "drop":
                self._staged, self._is_complete = None, False
