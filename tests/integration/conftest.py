"""One Ray cluster for all integration tests of a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.short_folder import short_folder

PROJECT_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with more logical CPUs than the machine has: the tests' actors mostly wait."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    with short_folder() as directory:
        ray.init(
            num_cpus=16,
            include_dashboard=False,
            object_store_memory=300 << 20,
            runtime_env={"env_vars": {"PYTHONPATH": str(PROJECT_ROOT), "OMP_NUM_THREADS": "1"}},
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=str(directory),
            # Ray's own niceness of 15 would tie the tests' speed to what else runs; nobody uses its idle processes.
            _system_config={"worker_niceness": 0, "prestart_worker_first_driver": False},
            _node_ip_address="127.0.0.1",
        )
        yield
        ray.shutdown()
