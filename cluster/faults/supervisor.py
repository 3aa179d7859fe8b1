"""A launcher under supervision: started, watched, and started again with the same command when it has ended.

The registry is a Redis server of the harness's own, so that the harness can read it whatever dies.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from cluster.reports import read_metrics
from cluster.reports.metrics import MetricsRow
from cluster.session import PrivateRedis
from cluster.session.ray_connection import PROJECT_ROOT
from cluster.session.stop_signals import still_alive
from configs.errors import RunError
from configs.local.environment import REDIS_URL_VARIABLE

POLL_S = 0.2
T = TypeVar("T")
SHOWN_LINES = 15


@dataclass(slots=True)
class Supervisor:
    """One run, kept going. `timeout_s` bounds every wait; each says what it waited for."""

    config: Path
    overrides: Sequence[str]
    directory: Path
    """The harness's own; the run's is a folder in it."""
    run_name: str
    timeout_s: float
    prefix: Sequence[str] = ()
    """What comes before the launcher's command."""
    num_resumes: int = 0
    redis: PrivateRedis = field(init=False)
    _launcher: subprocess.Popen[bytes] = field(init=False)
    _seen: dict[tuple[int, float], psutil.Process] = field(default_factory=dict, init=False)
    """Every process that the run ever had, by pid and start time."""

    def __post_init__(self) -> None:
        self.redis = self.inside(lambda: PrivateRedis(self.directory / "redis"))
        self._launcher = self._launch()

    @property
    def run_directory(self) -> Path:
        return self.directory / self.run_name

    @property
    def output(self) -> Path:
        return self.directory / "output.txt"

    @property
    def launcher(self) -> psutil.Process:
        return psutil.Process(self._launcher.pid)

    @property
    def is_running(self) -> bool:
        return self._launcher.poll() is None

    def rows(self) -> list[MetricsRow]:
        """metrics.jsonl as it stands."""
        path = self.run_directory / "metrics.jsonl"
        return read_metrics(path) if path.exists() else []

    @property
    def num_steps(self) -> int:
        """Optimizer steps made."""
        rows = self.rows()
        return int(rows[-1]["step"] or 0) if rows else 0

    def keep_going(self) -> None:
        """Look after the run: note its processes, and resume it when the launcher has ended."""
        if self.is_running:
            self.note_processes()
            return
        if not (self.run_directory / "config.yaml").exists():
            raise RunError(f"the run ended before it began:\n{self.last_lines()}")
        if not self.redis.is_running:
            self.inside(self.redis.stop)
            self.redis = self.inside(lambda: PrivateRedis(self.directory / "redis"))
        self.num_resumes += 1
        self._launcher = self._launch()

    def inside(self, call: Callable[[], T]) -> T:
        """Call it where the registry's server can be reached."""
        return call()

    def find_processes(self) -> list[psutil.Process]:
        """All that end with the run. Raises psutil.NoSuchProcess when the launcher has ended."""
        return [self.launcher, *self.launcher.children(recursive=True)]

    def note_processes(self) -> None:
        """Remember the run's processes, to look for those that outlive it."""
        try:
            for process in self.find_processes():
                self._seen[process.pid, process.create_time()] = process
        except psutil.NoSuchProcess:
            return  # it ends just now; what it started was noted before

    def wait_until(self, is_so: Callable[[], bool], what: str, keep_going: bool = True) -> float:
        """Seconds until `is_so`, meanwhile keeping the run going. Raises RunError, naming what was waited for."""
        started = time.monotonic()
        while not is_so():
            if keep_going:
                self.keep_going()
            if time.monotonic() - started > self.timeout_s:
                raise RunError(f"waited {self.timeout_s:g} s for {what}; the run's last words:\n{self.last_lines()}")
            time.sleep(POLL_S)
        return time.monotonic() - started

    def run_for(self, duration_s: float) -> float:
        """Let the run go on for a while, looking after it; returns how long it was."""
        end = time.monotonic() + duration_s
        return self.wait_until(lambda: time.monotonic() >= end, "time to pass")

    def stop(self) -> int:
        """End the run in good order; returns its exit code."""
        self.note_processes()
        self._launcher.terminate()
        self.wait_until(lambda: not self.is_running, "the run to end after SIGTERM", keep_going=False)
        return self._launcher.returncode

    def orphans(self) -> list[psutil.Process]:
        """Processes of the run that have outlived it, after a short time to end."""
        return still_alive(self._seen.values(), patience_s=20)

    def close(self) -> None:
        """End whatever is left."""
        self.note_processes()
        for process in self._seen.values():
            if process.is_running():
                process.kill()
        self._launcher.wait()
        self.inside(self.redis.stop)

    def last_lines(self) -> str:
        lines = self.output.read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:])

    def _launch(self) -> subprocess.Popen[bytes]:
        sets = [argument for override in self.overrides for argument in ("--set", override)]
        command = [sys.executable, "-m", "cluster.launch", "--config", str(self.config), "--resume", "auto", *sets]
        # By the environment: on a command line, all users would see it.
        return self.start_process([*self.prefix, *command], {REDIS_URL_VARIABLE: self.redis.url})

    def start_process(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start the launcher; what it prints goes to `output`."""
        with self.output.open("ab") as file:
            return subprocess.Popen(
                command,
                cwd=PROJECT_ROOT,
                env={**os.environ, **environment},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
