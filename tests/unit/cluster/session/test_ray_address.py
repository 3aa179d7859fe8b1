"""Which Ray a run connects to."""

from __future__ import annotations

import json
import socket
import time

import pytest

from cluster.session.ray_address import RayPlace, check_ray_address, find_ray_address, is_local, knock, this_job
from configs.errors import PlacementError


@pytest.fixture(autouse=True)
def _no_ray_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)


def test_a_job_knows_its_own_id_and_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_job() is None
    told = {"runtime_env": {}, "metadata": {"job_submission_id": "endless-2", "run": "endless"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(told))
    assert this_job() == "endless-2"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "no JSON")
    assert this_job() is None
    assert str(RayPlace("http://head:8265", "endless-2")) == "http://head:8265/#/jobs/endless-2"
    assert str(RayPlace("http://head:8265", None)) == "http://head:8265"
    assert str(RayPlace(None, "endless-2")) == ""


def test_the_config_goes_before_the_environment_and_that_before_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_ray_address(None) == (None, "")
    assert is_local(None)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert find_ray_address(None)[0] == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert find_ray_address(None) == ("head:6379", "the environment variable RAY_ADDRESS")
    assert find_ray_address("other:6379") == ("other:6379", "cluster.address")


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("http://127.0.0.1:8265", "is the address of Ray's dashboard"),
        ("ray://127.0.0.1:10001", "an address of Ray Client"),
        ("redis://x:1", "is no address of a Ray cluster"),
        ("head", "is not HOST:PORT"),
        ("head:port", "is not HOST:PORT"),
        ("head:70000", "is not HOST:PORT"),
    ],
)
def test_what_cannot_be_an_address_is_refused_with_its_source(
    address: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PlacementError, match=complaint) as raised:
        check_ray_address(address)
    assert str(raised.value).startswith("cluster.address: ")
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(PlacementError, match=r"unset it for a local Ray") as raised:
        check_ray_address(None)
    assert str(raised.value).startswith("the environment variable RAY_ADDRESS: ")


def test_nobody_at_the_address_is_told_at_once_and_blamed_on_who_said_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(PlacementError, match=rf"variable RAY_ADDRESS: no Ray cluster answers at '127\.0\.0\.1:{port}'"):
        knock(None)
    assert time.monotonic() - started < 10


def test_who_listens_there_is_let_be() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        knock(f"127.0.0.1:{server.getsockname()[1]}")
    check_ray_address("auto")
    knock("auto")
