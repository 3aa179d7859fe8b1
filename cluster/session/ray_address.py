"""Which Ray a run connects to, and whether somebody can be there. No Ray in here."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import Final

from configs.errors import PlacementError

JOB_VARIABLE: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it in the entry point of a job."""
VARIABLE: Final = "RAY_ADDRESS"
AUTO: Final = "auto"
KNOCK_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class RayPlace:
    """Where people find a run in Ray."""

    dashboard: str | None
    """http://HOST:PORT; None where the cluster has none."""
    job: str | None
    """Submission id of the Ray job that the launcher is; None where it was started by hand."""

    def __str__(self) -> str:
        """The page to open, or ''."""
        if self.dashboard is None:
            return ""
        return self.dashboard if self.job is None else f"{self.dashboard}/#/jobs/{self.job}"


def this_job() -> str | None:
    """The submission id of the Ray job that this process is the entry point of."""
    try:
        metadata = json.loads(os.environ.get(JOB_VARIABLE, "{}")).get("metadata") or {}
    except ValueError:  # Ray's own variable, and not ours to judge
        return None
    found = metadata.get("job_submission_id")
    return str(found) if found else None


def find_ray_address(configured: str | None) -> tuple[str | None, str]:
    """The address of the Ray to use, None for one of our own, and where it is said: for messages."""
    if configured:
        return configured, "cluster.address"
    if named := os.environ.get(VARIABLE):
        return named, f"the environment variable {VARIABLE}"
    return (AUTO, "this Ray job") if JOB_VARIABLE in os.environ else (None, "")


def is_local(configured: str | None) -> bool:
    """Whether the run starts a Ray of its own."""
    return find_ray_address(configured)[0] is None


def check_ray_address(configured: str | None) -> None:
    """Raises PlacementError for what cannot be the address of a Ray cluster."""
    address, source = find_ray_address(configured)
    if address in (None, AUTO, "local"):
        return
    assert address is not None
    if "://" in address:
        scheme = address.partition("://")[0]
        what = {
            "http": "the address of Ray's dashboard, which `ray job submit` wants",
            "https": "the address of Ray's dashboard, which `ray job submit` wants",
            "ray": "an address of Ray Client, through which a run cannot work",
        }.get(scheme, "no address of a Ray cluster")
        raise PlacementError(f"{source}: '{address}' is {what}; {_remedy(source)}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise PlacementError(f"{source}: '{address}' is not HOST:PORT; {_remedy(source)}")


def knock(configured: str | None) -> None:
    """Raises PlacementError when nobody listens at the address; Ray itself would try for a quarter of an hour."""
    check_ray_address(configured)
    address, source = find_ray_address(configured)
    if address is None or ":" not in address:
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_TIMEOUT_S):
            return
    except OSError as error:
        raise PlacementError(no_answer(address, source, str(error))) from error


def no_answer(address: str, source: str, reason: str) -> str:
    """The message for an address where no Ray answers."""
    return f"{source}: no Ray cluster answers at '{address}' ({reason}); {_remedy(source)}"


def _remedy(source: str) -> str:
    if source == "cluster.address":
        return (
            "name the head's HOST:PORT (`ray start --head` prints it), or set cluster.address to null for a local Ray"
        )
    return f"set {VARIABLE} to the head's HOST:PORT (`ray start --head` prints it), or unset it for a local Ray"
