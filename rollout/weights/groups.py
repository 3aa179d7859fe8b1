"""The group that broadcasts weights from the learner's rank 0 to the processes that sample: gloo on CPUs, NCCL on GPUs,
or handles of memory between processes of one machine (`rollout.weights.ipc`).

    rank 0 (learner) ── a bucket as one flat tensor ──► ranks 1, 2, ... (vLLM workers)

A broadcast needs all of its members, so one that is stalled or dead holds up the others. Every wait here ends: after
`patience_s` in which nothing has moved, or when another thread calls `abort`. A group that has failed is of no more
use: its members leave it, and form a new one without whoever held them up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from configs.errors import WeightSyncError
from configs.library_layout import library_error
from rollout.records import GroupPlace, TensorInfo
from rollout.weights.ipc import Ipc
from rollout.weights.lending import LentMemory

_ALIGNMENT: Final = 64
"""Bytes between the beginnings of tensors in a flat bucket, at the least."""
_MOST_SLEEP_S: Final = 0.005
_LOOK_EVERY_S: Final = 0.05


class Transport(Protocol):
    """What moves the bytes."""

    def room(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes] for `start_broadcast`, on the group's device; may be the same memory each time."""

    def start_broadcast(self, flat: Tensor) -> Callable[[], bool]:
        """Begin to send rank 0's `flat` into that of the others. Returns a function that tells whether it is done, and
        raises RuntimeError when it has failed."""

    def end(self) -> None:
        """Break off whatever is on its way, and leave. Never blocks for long."""


class WeightGroup:
    """One member's end. `abort` may be called in any thread, all else in one at a time."""

    def __init__(self, place: GroupPlace, device: torch.device, lent: LentMemory | None = None) -> None:
        """device: of the tensors, with its index. lent: what rank 0 lends to the others where they use IPC, group after
        group; None: memory of its own."""
        self._place = place
        self.device = device
        self._lent = lent
        self._aborted = threading.Event()
        self._changing = threading.Lock()
        self._transport: Transport | None = None

    def meet(self) -> None:
        """Wait for the others. Raises WeightSyncError when they do not come in time, and when `abort` is called."""
        failed: list[Exception] = []

        def work() -> None:
            try:
                transport = self._connect()
            except Exception as error:  # noqa: BLE001  raised by the thread that waits
                failed.append(error)
                return
            with self._changing:
                if not self._aborted.is_set():
                    self._transport = transport
                    return
            transport.end()

        # In a thread of its own, which is left behind where a library waits in it for ever.
        thread = threading.Thread(target=work, name="meet the weight-transfer group", daemon=True)
        thread.start()
        began_s = time.monotonic()
        while thread.is_alive() and not self._aborted.is_set():
            thread.join(_LOOK_EVERY_S)
            if time.monotonic() > began_s + 2 * self._place.patience_s:  # once to meet, once to connect
                failed.append(TimeoutError(f"they did not all come within {self._patience}"))
                break
        if self._transport is None:
            self.abort()
            error = failed[0] if failed else WeightSyncError("it was broken off")
            where = f"{self._place.master_address}:{self._place.master_port}"
            raise WeightSyncError(
                f"no weight-transfer group of {self._place.world_size} at {where}: {error}"
            ) from error

    def _connect(self) -> Transport:
        if self._place.transport == "ipc":
            return Ipc(self._place, self.device, self._lent or LentMemory(self.device))
        return (_Gloo if self.device.type == "cpu" else _Nccl)(self._place, self.device)

    def send(self, tensors: Iterable[tuple[str, Tensor]], layout: Sequence[TensorInfo], bucket_bytes: int) -> None:
        """Broadcast the tensors of `layout`, in its order. Each may be overwritten when the next is asked for.

        Raises WeightSyncError, and ValueError for tensors that `layout` does not have.
        """
        coming = iter(tensors)
        for bucket in cut(layout, bucket_bytes):
            flat = self._joined.room(_flat_bytes(bucket))
            for name, place in _views(flat, bucket):
                own_name, tensor = next(coming, ("nothing", flat))
                if own_name != name or tensor.dtype != place.dtype or tensor.shape != place.shape:
                    raise ValueError(f"'{own_name}' {tuple(tensor.shape)} is sent where '{name}' was announced")
                place.copy_(tensor)
            self._broadcast(flat)
        for name, _ in coming:  # asked once more also because what gathers the tensors ends with its iterator
            raise ValueError(f"'{name}' is sent and was not announced")

    def receive(self, layout: Sequence[TensorInfo], bucket_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
        """The tensors that rank 0 sends, a bucket at a time, on the group's device; valid until the next is asked for.
        Raises WeightSyncError."""
        for bucket in cut(layout, bucket_bytes):
            flat = self._joined.room(_flat_bytes(bucket))
            self._broadcast(flat)
            yield list(_views(flat, bucket))

    def abort(self) -> None:
        """Break off what is on its way: whoever waits for it gets WeightSyncError. Safe to call twice."""
        self._aborted.set()
        with self._changing:
            transport, self._transport = self._transport, None
        if transport is not None:
            transport.end()

    @property
    def _joined(self) -> Transport:
        transport = self._transport
        if transport is None:
            raise WeightSyncError("the weight-transfer group was left")
        return transport

    def _broadcast(self, flat: Tensor) -> None:
        transport = self._joined
        if not flat.numel():
            return
        try:
            is_done = transport.start_broadcast(flat)
            began_s, sleep_s = time.monotonic(), 1e-4
            while not is_done():
                if self._aborted.wait(sleep_s):
                    raise WeightSyncError("the weight broadcast was broken off")
                if time.monotonic() > began_s + self._place.patience_s:
                    raise WeightSyncError(f"a member of the weight-transfer group did not move for {self._patience}")
                sleep_s = min(2 * sleep_s, _MOST_SLEEP_S)
        except (RuntimeError, OSError) as error:
            why = "was broken off" if self._aborted.is_set() else f"failed: {error}"
            self.abort()
            raise WeightSyncError(f"the weight broadcast {why}") from error
        except WeightSyncError:
            self.abort()
            raise

    @property
    def _patience(self) -> str:
        return f"{self._place.patience_s:g} s"


class _Gloo:
    def __init__(self, place: GroupPlace, device: torch.device) -> None:
        from torch._C._distributed_c10d import ProcessGroupGloo, TCPStore

        self._patience_s = place.patience_s
        patience = timedelta(seconds=place.patience_s)
        store = TCPStore(place.master_address, place.master_port, place.world_size, place.rank == 0, patience)
        self._group: Any = ProcessGroupGloo(store, place.rank, place.world_size, patience)

    def room(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def start_broadcast(self, flat: Tensor) -> Callable[[], bool]:
        work = self._group.broadcast(flat, 0)

        def is_done() -> bool:
            if not work.is_completed():
                return False
            work.wait()  # raises what has failed
            return True

        return is_done

    def end(self) -> None:
        # Gloo has no way to break off: what is on its way ends by the group's own time-out, and whoever lets go of the
        # group last waits for that.
        threading.Thread(target=_hold, args=(self._group, self._patience_s), daemon=True, name="end of gloo").start()
        self._group = None


def _hold(group: Any, for_s: float) -> None:
    time.sleep(for_s)


class _Nccl:
    def __init__(self, place: GroupPlace, device: torch.device) -> None:
        try:
            from vllm.distributed.weight_transfer.nccl_common import stateless_init_process_group
        except ImportError as error:
            raise library_error("vllm", f"cannot send weights over NCCL ({error})") from error
        torch.cuda.set_device(device)  # of this thread
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._communicator = stateless_init_process_group(
            place.master_address, place.master_port, place.rank, place.world_size, device
        )
        if self._communicator.disabled:  # it would send nothing, and say nothing
            raise RuntimeError("vLLM finds no NCCL library, or was told not to use it (VLLM_DISABLE_PYNCCL)")

    def room(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self._device)

    def start_broadcast(self, flat: Tensor) -> Callable[[], bool]:
        with torch.cuda.device(self._device):
            done = torch.cuda.Event()
            self._stream.wait_stream(torch.cuda.current_stream())
            self._communicator.broadcast(flat, src=0, stream=self._stream)
            done.record(self._stream)
            flat.record_stream(self._stream)
        return done.query

    def end(self) -> None:
        self._communicator.destroy()  # ncclCommAbort, in a thread of which vLLM waits for 5 s


def cut(layout: Sequence[TensorInfo], bucket_bytes: int) -> Iterator[list[TensorInfo]]:
    """Consecutive runs of at most `bucket_bytes`; a larger tensor is alone. Both ends cut the same layout alike."""
    bucket: list[TensorInfo] = []
    for tensor in layout:
        if bucket and _flat_bytes([*bucket, tensor]) > bucket_bytes:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _flat_bytes(bucket: Sequence[TensorInfo]) -> int:
    return sum(math.ceil(_num_bytes(tensor) / _ALIGNMENT) * _ALIGNMENT for tensor in bucket)


def _num_bytes(tensor: TensorInfo) -> int:
    _, dtype, shape = tensor
    return math.prod(shape) * int(getattr(torch, dtype).itemsize)


def _views(flat: Tensor, bucket: Sequence[TensorInfo]) -> Iterator[tuple[str, Tensor]]:
    offset = 0
    for tensor in bucket:
        name, dtype, shape = tensor
        yield name, flat[offset : offset + _num_bytes(tensor)].view(getattr(torch, dtype)).view(tuple(shape))
        offset += math.ceil(_num_bytes(tensor) / _ALIGNMENT) * _ALIGNMENT
