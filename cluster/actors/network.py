"""Where the processes of an actor listen and meet: on the network of Ray's own address, and on no other.

gloo takes the address that the host's own name resolves to, which on Debian and Ubuntu is 127.0.1.1: ranks on two
hosts then never meet. NCCL takes the interface that it likes best, which need not be the one that Ray's nodes reach
each other on; vLLM the address of the default route. All are told here, unless the user has told them
(`learner.env_vars`, `rollout.env_vars`).
"""

from __future__ import annotations

import os
import socket

import psutil
import ray


def interface_of(address: str) -> str | None:
    """Name of this node's interface that has an IP address; None when none has."""
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6) and entry.address.partition("%")[0] == address:
                return name
    return None


def network_environment(address: str) -> dict[str, str]:
    """Environment that has gloo, NCCL and vLLM listen where Ray's node `address` is, and nowhere else."""
    environment = {"VLLM_HOST_IP": address}
    if (name := interface_of(address)) is not None:
        environment |= {"GLOO_SOCKET_IFNAME": name, "TP_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
    return environment


def use_network_of_node(address: str | None = None) -> None:
    """Set `network_environment` in this process, an actor, and in those that it starts, where the user has not set it
    otherwise. address: of the node; None asks Ray."""
    for name, value in network_environment(address or ray.util.get_node_ip_address()).items():
        os.environ.setdefault(name, value)
