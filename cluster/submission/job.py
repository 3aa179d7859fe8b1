"""A run as a Ray job: what is asked of the cluster, its log while it runs, and the exit code that it ends with."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import ConfigError, PlacementError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

STOPPED = 143
"""Exit code of a job that was stopped: Ray keeps none, and SIGTERM is what it sends."""
POLL_S = 1.0
MAX_QUIET_POLLS = 60
"""So many times in a row the dashboard may not answer before its job is given up."""


@dataclass(frozen=True, slots=True)
class JobRequest:
    """What `ray job submit` would be told."""

    run: str
    """run.name of the config."""
    config: str
    """Path of the config, relative to `working_dir`."""
    overrides: tuple[str, ...]
    working_dir: Path
    excludes: tuple[str, ...]
    python: str
    """The interpreter on the cluster."""
    entrypoint_cpus: float
    """Above 0 the launcher goes to a node that has so many CPUs to give, else to the head."""
    stop_grace_s: int
    """How long a stopped job may take for its last checkpoint before Ray kills it."""

    @property
    def entrypoint(self) -> str:
        """The shell command: begins the run, or goes on with the one of that name."""
        sets = [word for override in self.overrides for word in ("--set", override)]
        words = (self.python, "-m", "cluster.launch", "--config", self.config, "--resume", "auto", *sets)
        return shlex.join(words)

    @property
    def runtime_env(self) -> dict[str, Any]:
        """Ray's runtime environment of the job."""
        return {
            "working_dir": str(self.working_dir),
            "excludes": list(self.excludes),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(self.stop_grace_s)},
        }

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the dashboard's page of jobs shows beside the job."""
        commit = _commit_of(self.working_dir)
        return {"run": self.run, "config": self.config, **({"commit": commit} if commit else {})}


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the dashboard at an address; None: RAY_API_SERVER_ADDRESS, RAY_ADDRESS or this machine's Ray.

    Raises PlacementError when nobody answers there, or does not let us in.
    """
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or "this machine"
        raise PlacementError(
            f"no Ray dashboard lets us in at {where}: {error}; give its address by --address http://HOST:8265, and "
            "where the cluster asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        ) from error


def submit(client: JobSubmissionClient, request: JobRequest) -> str:
    """Hand a job in; returns its submission id: the run's name, with a number from the second on.

    Raises ConfigError when a job of that run has not ended, PlacementError when the cluster refuses the job.
    """
    jobs = {job.submission_id: job for job in client.list_jobs() if job.submission_id}
    for job_id, job in jobs.items():
        if (job.metadata or {}).get("run") == request.run and not job.status.is_terminal():
            raise ConfigError(
                f"job {job_id} of run '{request.run}' is {job.status.value.lower()} on this cluster; two launchers "
                f"cannot share a run. Watch it: ray job logs --follow {job_id}. Or name another run: --set run.name=…"
            )
    try:
        return client.submit_job(
            entrypoint=request.entrypoint,
            submission_id=free_id(request.run, set(jobs)),
            runtime_env=request.runtime_env,
            metadata=dict(request.metadata),
            entrypoint_num_cpus=request.entrypoint_cpus or None,
        )
    except (RuntimeError, ValueError) as error:
        raise PlacementError(f"the cluster refused the job: {error}") from error


def free_id(run: str, taken: set[str]) -> str:
    """`run`, or `run-2`, `run-3` …: a submission id is used once in the life of a cluster."""
    number = 1
    while (name := run if number == 1 else f"{run}-{number}") in taken:
        number += 1
    return name


async def follow(client: JobSubmissionClient, job_id: str, show: Callable[[str], None]) -> int:
    """Show a job's log until it ends; returns the exit code of its command, 143 where it was stopped.

    A connection that breaks is made again, and what was shown is not shown twice.
    Raises PlacementError when the dashboard is silent for `MAX_QUIET_POLLS` polls while the job runs.
    """
    shown = quiet = 0
    while True:
        try:
            seen = 0
            async for text in client.tail_job_logs(job_id):
                seen += len(text)
                if seen > shown:
                    show(text[len(text) - (seen - shown) :])
                    shown = seen
            info = await asyncio.to_thread(client.get_job_info, job_id)
            quiet = 0
        except (OSError, RuntimeError) as error:
            quiet += 1
            if quiet > MAX_QUIET_POLLS:
                raise PlacementError(f"the dashboard at {client.get_address()} answers no more: {error}") from error
        else:
            if info.status.is_terminal():
                return exit_code(info.status.value, info.driver_exit_code, info.message, show)
        await asyncio.sleep(POLL_S)


def exit_code(status: str, driver_exit_code: int | None, message: str | None, show: Callable[[str], None]) -> int:
    """The exit code of an ended job; says why where its command never had one."""
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return STOPPED
    if driver_exit_code is None:
        show(f"the job failed before its command ended: {message}\n")
    return driver_exit_code or 1


def check_is_packed(paths: Sequence[str], folder: Path, names: frozenset[str]) -> None:
    """Refuse files of the working directory that an ignore file leaves out: the job would look for them in vain.

    paths: as the config has them. names: of the package. Raises ConfigError for the first that is missing.
    """
    for path in paths:
        if not os.path.isabs(path) and (folder / path).is_file() and path not in names:
            raise ConfigError(
                f"'{path}' of the config is in {folder}, but .gitignore, .rayignore or --exclude leaves it out of what "
                "travels with the job; put it onto storage that the nodes share, or let it travel"
            )


def _commit_of(folder: Path) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
