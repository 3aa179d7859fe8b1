"""Which network interface the ranks of a process group meet on.

gloo takes the address that the host's own name resolves to, which on Debian and Ubuntu is 127.0.1.1: ranks on two
hosts then never meet. NCCL takes the interface that it likes best, which need not be the one that Ray's nodes reach
each other on. Both are told here, unless the user has told them (`learner.env_vars`, `rollout.env_vars`).
"""

from __future__ import annotations

import os
import socket
from typing import Final

import psutil

VARIABLES: Final = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def interface_of(address: str) -> str | None:
    """Name of this node's interface that has an IP address; None when none has."""
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6) and entry.address.partition("%")[0] == address:
                return name
    return None


def name_interface(address: str) -> None:
    """Tell gloo and NCCL of this process, and of those that it starts, to use the interface that has `address`."""
    if (name := interface_of(address)) is not None:
        for variable in VARIABLES:
            os.environ.setdefault(variable, name)


def free_port(address: str) -> int:
    """A port that is free now at `address`."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
