"""A Ray of the run's own, on this machine, for nobody else.

    TMPDIR/bicot-ray-XXXXXXXX/      see `cluster.session.ray_folder`
        token                       0600: what every request to this Ray must carry

Every server of this Ray listens on loopback, and every one answers only who has the token; `tests/integration/
test_security.py` looks at both. The token is in no file of the user's home, so it changes no other Ray of theirs.
"""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ray._private import ray_constants

from cluster.session.placement import PlacementPlan
from cluster.session.ray_folder import short_lived_folder
from cluster.session.ray_thread import RayThread
from configs.errors import RunError
from configs.schema import ClusterConfig

OBJECT_STORE_BYTES: Final = 1 << 30
"""Where a caller names none: a step of the shapes world needs a few megabytes, Ray's default takes a third of the
memory. What a run takes is `cluster.planning.object_store`'s affair."""
START_TIMEOUT_S: Final = 180.0
"""Ray's own patience is shorter; this is for a start that hangs."""
DISABLED: Final = "disabled"
_AUTH_VARIABLES: Final = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


Held = Callable[[], AbstractContextManager[Callable[[], bool]]]


@contextmanager
def _nothing_held() -> Iterator[Callable[[], bool]]:
    yield lambda: False


@dataclass(frozen=True, slots=True)
class User:
    """What the launcher does for its user while it waits for Ray."""

    note: Callable[[str], None] = print
    check: Callable[[], None] = lambda: None
    """Raises SystemExit when the user has asked to stop."""
    held: Held = _nothing_held
    """See StopSignals.held."""


@contextmanager
def local_ray(
    config: ClusterConfig, plan: PlacementPlan, logs_dir: Path, options: dict[str, Any], user: User
) -> Iterator[RayThread]:
    """Start a Ray, and end it; its log files stay in `logs_dir`.

    options: more arguments of ray.init. Raises RunError when it does not start.
    """
    with short_lived_folder(logs_dir, user.note) as folder, _token_required(folder, user.note), _on_loopback():
        thread = _start(config, plan, folder / "ray", options, user)
        try:
            user.check()
            if config.dashboard:
                user.note(f"the Ray dashboard at {thread.dashboard} asks for a token: it is in {folder / 'token'}")
            yield thread
        finally:
            thread.stop()


def _start(config: ClusterConfig, plan: PlacementPlan, folder: Path, options: dict[str, Any], user: User) -> RayThread:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    own = {
        "num_cpus": config.num_cpus or max(os.cpu_count() or 1, plan.num_cpus),
        "include_dashboard": config.dashboard,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": str(folder),
        # Ray's own niceness of 15 makes a run crawl on a machine that does anything else besides. And it would start an
        # idle process for each CPU, for tasks: a run has none, and each of its actors gets a process of its own.
        "_system_config": {"worker_niceness": 0, "prestart_worker_first_driver": False},
    }
    thread = RayThread({**options, **own}, is_local=True)
    try:
        thread.start(START_TIMEOUT_S, user.held)
    except Exception as error:  # Ray raises plain Exceptions here, the same for a full disk and for a busy machine
        reason = str(error).splitlines()[0]
        raise RunError(
            f"Ray did not start on this machine: {reason} It gives up after half a minute: is the machine very busy, "
            "or its disk or memory full?"
        ) from error
    return thread


@contextmanager
def _token_required(folder: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Meanwhile a Ray that is started here answers only who has the token in `folder`; its processes find it there.

    Unless the user has said otherwise by RAY_AUTH_MODE=disabled.
    """
    if os.environ.get("RAY_AUTH_MODE", "").lower() == DISABLED:
        note("RAY_AUTH_MODE=disabled: every user of this machine may run commands by way of this run's Ray")
        yield
        return
    before = {name: os.environ.pop(name, None) for name in _AUTH_VARIABLES}
    path = folder / "token"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(_token())
    # Without a mode, ray.init turns tokens on for the cluster that it starts, in this process, too.
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@functools.cache
def _token() -> str:
    """One for the life of this process: Ray reads its token once."""
    return secrets.token_hex(32)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Meanwhile Ray takes 127.0.0.1 for this machine's address, as it does on macOS and Windows.

    On Linux it replaces 127.0.0.1, also where it is told it, by the address of the default route, and listens there.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
