"""Connecting to Ray: a local cluster of our own, the cluster of the job we are in, or a named one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from ray.exceptions import RayError

from cluster.session.local_ray import OBJECT_STORE_BYTES, User, local_ray
from cluster.session.nodes import check_cluster
from cluster.session.placement import PlacementPlan
from cluster.session.ray_address import JOB_VARIABLE, RayPlace, find_ray_address, knock, no_answer, this_job
from cluster.session.ray_thread import RayThread
from configs.errors import PlacementError
from configs.schema import ClusterConfig

CONNECT_TIMEOUT_S: Final = 60.0
PROJECT_ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def ray_session(
    config: ClusterConfig,
    plan: PlacementPlan,
    logs_dir: Path,
    user: User | None = None,
    object_store_bytes: int = OBJECT_STORE_BYTES,
) -> Iterator[RayPlace]:
    """Connect, check that the plan fits, and disconnect at the end; a local Ray ends with it, and leaves
    its log files in `logs_dir`. user: is told what there is to tell, and may stop the start.

    Raises PlacementError when there is no cluster at the address, or when it is too small and cannot
    grow; RunError when a local Ray does not start.
    """
    knock(config.address)
    address, source = find_ray_address(config.address)
    # Actors import bicot from where the launcher did, installed or not; vLLM's own processes inherit it.
    search_path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH", "")]))
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if JOB_VARIABLE not in os.environ:
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": search_path}}
    user = user or User()
    with ExitStack() as stack:
        if address is None:
            of_local = {**options, "object_store_memory": object_store_bytes}
            place = RayPlace(stack.enter_context(local_ray(config, plan, logs_dir, of_local, user)).dashboard, None)
        else:
            thread = _connect(address, source, options, user)
            stack.callback(thread.stop)
            place = RayPlace(thread.dashboard, this_job())
            if str(place):
                user.note(f"in the Ray dashboard: {place}")
        if not config.autoscaling:
            check_cluster(plan)
        yield place


def _connect(address: str, source: str, options: dict[str, Any], user: User) -> RayThread:
    thread = RayThread({"address": address, **options}, is_local=False)
    try:
        thread.start(CONNECT_TIMEOUT_S, user.held)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError, RayError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PlacementError(no_answer(address, source, reason)) from error
    user.check()
    return thread
