"""gloo and NCCL are told the interface of Ray's address, unless the user has told them one."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import pytest

from cluster.actors.network import interface_of, use_network_of_node

VARIABLES = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "VLLM_HOST_IP")

INTERFACES = {
    "lo": [SimpleNamespace(family=socket.AF_INET, address="127.0.0.1")],
    "eth0": [
        SimpleNamespace(family=socket.AF_PACKET, address="02:42:ac:11:00:02"),
        SimpleNamespace(family=socket.AF_INET, address="192.168.1.7"),
    ],
    "ib0": [
        SimpleNamespace(family=socket.AF_INET, address="10.77.0.12"),
        SimpleNamespace(family=socket.AF_INET6, address="fe80::1%ib0"),
    ],
}


@pytest.fixture(autouse=True)
def two_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.net_if_addrs", lambda: INTERFACES)
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "unset by the test")
        monkeypatch.delenv(variable)


@pytest.mark.parametrize(
    ("address", "name"), [("10.77.0.12", "ib0"), ("127.0.0.1", "lo"), ("fe80::1", "ib0"), ("10.0.0.1", None)]
)
def test_an_interface_is_found_by_its_address(address: str, name: str | None) -> None:
    assert interface_of(address) == name


def test_all_libraries_are_told_and_the_user_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "bond0")
    use_network_of_node("10.77.0.12")
    assert [os.environ.get(variable) for variable in VARIABLES] == ["ib0", "ib0", "bond0", "10.77.0.12"]


def test_an_address_that_no_interface_has_names_none() -> None:
    use_network_of_node("10.0.0.1")
    assert not any(variable in os.environ for variable in VARIABLES[:3])
