"""Buckets by handles between processes of one machine: what moves `rollout.weights.groups` where NCCL cannot, which
joins no two processes on one GPU.

    rank 0    writes a bucket into lent memory ─► "lent": how to open it ──► every member
    member    opens it once, copies the bucket ─► "taken" ─────────────────► rank 0
    rank 0    has not touched it since         ─► "whole" ─────────────────► that member, which has the bucket now

The last message is for a member that was frozen while it copied: rank 0 has given it up, and has written other weights
over what it reads. A process that is gone is known at once, by its socket.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any, Final

import torch
from torch import Tensor

from rollout.records import GroupPlace
from rollout.weights.lending import LentMemory, open_lent

_RETRY_S: Final = 0.05
_LOOK_EVERY_S: Final = 0.05
_ERRORS: Final = (OSError, RuntimeError, ValueError)


class Ipc:
    """A `rollout.weights.groups.Transport`."""

    def __init__(self, place: GroupPlace, device: torch.device, lent: LentMemory) -> None:
        """lent: of rank 0, where buckets are written. Raises OSError when the others do not come in time."""
        self._device = device
        self._lent = lent
        self._opened: Tensor | None = None
        self._own = torch.empty(0, dtype=torch.uint8)
        """A member's copy of a bucket: fresh memory for each would cost a CPU as much as the copy."""
        self._is_lender = place.rank == 0
        self._lines = _answer_calls(place) if self._is_lender else [_call(place)]

    def room(self, num_bytes: int) -> Tensor:
        if self._is_lender:
            return self._lent.room(num_bytes)
        if num_bytes > self._own.numel():
            self._own = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        return self._own[:num_bytes]

    def start_broadcast(self, flat: Tensor) -> Callable[[], bool]:
        return self._lend(flat) if self._is_lender else self._take(flat)

    def end(self) -> None:
        for line in self._lines:
            line.close()

    def _lend(self, flat: Tensor) -> Callable[[], bool]:
        self._finish_copies()
        for line in self._lines:
            is_known = line.generation == self._lent.generation
            line.generation = self._lent.generation
            line.tell({"lent": flat.numel(), "handle": None if is_known else self._lent.handle()})
        waiting = list(self._lines)

        def is_done() -> bool:
            _wait_for_any(waiting)
            for line in tuple(waiting):
                answer = line.hear()
                if answer is None:
                    continue
                if answer["error"]:
                    raise RuntimeError(f"{line.other} could not open it: {answer['error']}")
                line.tell({"whole": True})
                waiting.remove(line)
            return not waiting

        return is_done

    def _take(self, flat: Tensor) -> Callable[[], bool]:
        (line,) = self._lines
        is_taken = False

        def is_done() -> bool:
            nonlocal is_taken
            _wait_for_any([line])
            message = line.hear()
            if message is None or is_taken:
                return message is not None
            try:
                self._copy(message, flat)
            except _ERRORS as error:
                line.tell({"error": str(error)})
                raise
            line.tell({"error": ""})
            is_taken = True
            return False

        return is_done

    def _copy(self, message: Mapping[str, Any], flat: Tensor) -> None:
        if message["handle"] is not None:
            self._opened = None  # before the other is mapped
            self._opened = open_lent(message["handle"], self._device)
        if self._opened is None or message["lent"] != flat.numel():
            raise ValueError(f"{message['lent']} bytes were lent for a bucket of {flat.numel()}")
        flat.copy_(self._opened[: flat.numel()])
        self._finish_copies()

    def _finish_copies(self) -> None:
        """Other processes do not see in which order this one's GPU works."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


def _wait_for_any(lines: Sequence[_Line]) -> None:
    """Until one has something to say, or for a short while: a sleep between two looks would cost more than a bucket."""
    try:
        wait([line.connection for line in lines], _LOOK_EVERY_S)
    except ValueError as error:  # closed by another thread
        raise ConnectionAbortedError("the group was left") from error


class _Line:
    """One end of a connection; messages are lines of JSON."""

    def __init__(self, connection: socket.socket, other: str) -> None:
        self.connection = connection
        self.connection.setblocking(False)  # messages are small, and each is answered: there is always room for one
        # "whole" is followed by the next "lent": TCP would hold that back for 40 ms, until the first is acknowledged.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._read = b""
        self.other = other
        self.generation = 0
        """Of the memory that the other end has been told of; see `LentMemory`."""

    def tell(self, message: Mapping[str, Any]) -> None:
        """Raises ConnectionError when the other end is gone."""
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except ConnectionError as error:
            raise self._has_left() from error

    def hear(self) -> dict[str, Any] | None:
        """The next message, if it is there. Raises ConnectionError when the other end is gone."""
        try:
            while b"\n" not in self._read:
                if not (more := self.connection.recv(4096)):
                    raise self._has_left()
                self._read += more
        except BlockingIOError:
            return None
        except ConnectionError as error:  # a process that is killed with messages unread resets the connection
            raise self._has_left() from error
        line, _, self._read = self._read.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _has_left(self) -> ConnectionError:
        return ConnectionResetError(f"{self.other} has left")

    def close(self) -> None:
        with suppress(OSError):  # the other end may have left
            self.connection.shutdown(socket.SHUT_RDWR)  # whoever waits in another thread is woken
        self.connection.close()


def _answer_calls(place: GroupPlace) -> list[_Line]:
    """Rank 0's lines to all others."""
    lines: list[_Line] = []
    ends_s = time.monotonic() + place.patience_s
    with socket.create_server((place.master_address, place.master_port), backlog=place.world_size) as server:
        try:
            while len(lines) < place.world_size - 1:
                server.settimeout(max(ends_s - time.monotonic(), 1e-3))
                connection, _ = server.accept()
                lines.append(_Line(connection, f"member {len(lines) + 1} of {place.world_size - 1}"))
        except BaseException:
            for line in lines:
                line.close()
            raise
    return lines


def _call(place: GroupPlace) -> _Line:
    """A member's line to rank 0, which may not be there yet."""
    ends_s = time.monotonic() + place.patience_s
    while True:
        try:
            return _Line(
                socket.create_connection((place.master_address, place.master_port), place.patience_s), "the learner"
            )
        except OSError:
            if time.monotonic() > ends_s:
                raise
            time.sleep(_RETRY_S)
