"""Where the ranks of a process group find each other: a key-value store that rank 0 holds.

It asks nobody who they are, so it listens at one address alone, loopback where Ray is local; left to itself, PyTorch
would listen on every address of the machine.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import TCPStore

_opened: dict[int, Any] = {}
"""Port -> store that this process, as rank 0, has opened and not used yet."""


def open_meeting_place(address: str, timeout_s: float) -> int:
    """Of rank 0: wait for the others at `address` from now on; returns the port. `meeting_place` then gives it: a port
    that is only looked up beforehand may be taken by then."""
    store = _listen(address, 0, timedelta(seconds=timeout_s))
    _opened[store.port] = store
    return int(store.port)


def meeting_place(rank: int, address: str, port: int, timeout: timedelta) -> Any:
    """The store at `address`: rank 0's own, opened before or now; for the others a connection to it.

    Every rank gives its store to PyTorch, which puts a prefix before the keys of a store that it has made itself.
    Raises OSError when the port is taken, DistError when nobody answers in time.
    """
    if rank == 0:
        return _opened.pop(port, None) or _listen(address, port, timeout)
    return TCPStore(address, port, is_master=False, timeout=timeout)


def _listen(address: str, port: int, timeout: timedelta) -> Any:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as server:
        port = server.getsockname()[1]
        listener = server.detach()  # the store's from here on
    return TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timeout,
        master_listen_fd=listener,
        use_libuv=True,
    )
