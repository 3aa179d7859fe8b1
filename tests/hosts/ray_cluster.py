"""A launcher on one of several hosts."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.faults.host_ray import GCS_PORT
from cluster.faults.hosts import Host
from cluster.session.ray_connection import PROJECT_ROOT
from tests.waiting import wait_until

STOPPED = 128 + signal.SIGTERM
CONFIG = PROJECT_ROOT / "configs" / "shapes_cpu.yaml"


@dataclass
class Launch:
    """A launcher that runs, or has run."""

    host: Host
    process: subprocess.Popen[bytes]
    log: Path
    run_dir: Path
    """As this machine sees it."""

    @property
    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(errors="replace"))

    def num_steps(self) -> int:
        path = self.run_dir / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def steps(self) -> list[int]:
        """Those that metrics.jsonl holds, when the run has ended."""
        return [json.loads(line)["step"] for line in (self.run_dir / "metrics.jsonl").read_text().splitlines()]

    def wait_for_steps(self, num_steps: int, timeout_s: float = 500) -> None:
        wait_until(
            lambda: self.num_steps() >= num_steps or self.process.poll() is not None,
            timeout_s,
            f"{self.num_steps()} of {num_steps} steps after {timeout_s:.0f} s:\n{self.text}",
        )
        assert self.num_steps() >= num_steps, self.text

    def wait(self, timeout_s: float = 600) -> int:
        """The exit code. A launcher that does not end is killed, and fails the test with what it said."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            raise AssertionError(f"the launcher did not end within {timeout_s:.0f} s:\n{self.text}") from None

    def stop(self) -> None:
        """As a user does: the run ends in good order."""
        self.process.terminate()
        assert self.wait() == STOPPED, self.text


def base_settings(head: Host, model: str) -> dict[str, Any]:
    """A small run: two groups of four a step, the tiny Janus, one learner rank, rollout by transformers."""
    return {
        "cluster.address": f"{head.address}:{GCS_PORT}",
        "cluster.heartbeat_s": 2,
        "cluster.heartbeat_timeout_s": 20,
        "run.steps": 3,
        # For a machine that may be busy with other work.
        "run.start_timeout_s": 500,
        "run.step_timeout_s": 400,
        "model.path": model,
        "model.tiny": None,
        "warm_start": None,
        "algorithm.groups_per_step": 2,
        "algorithm.group_size": 4,
        "learner.micro_batch_size": 8,
        "learner.cpus_per_rank": 1.5,
        "data.evaluation": {},
        "samples.every_steps": 100,
        "checkpoint.every_steps": 2,
        "rollout.engine": "transformers",
        "rollout.cpus_per_worker": 1,
        "rewards.0.cpus_per_replica": 0,  # else it may take the room of the rollout worker, on hosts as small as these
    }


def host_with(hosts: Collection[Host], actor: str) -> Host:
    """The host on which an actor of that class runs, or will when the one that was lost has been replaced."""
    found: list[Host] = []

    def is_somewhere() -> bool:
        found.extend(host for host in hosts if runs(host, actor))
        return bool(found)

    wait_until(is_somewhere, 120, f"no host runs {actor}")
    return found[0]


def runs(host: Host, actor: str) -> bool:
    for process in host.processes():
        with suppress(psutil.NoSuchProcess):
            if actor in " ".join([process.name(), *process.cmdline()]):
                return True
    return False


def launch(host: Host, name: str, run_dir: str, seen_as: Path, settings: Mapping[str, Any]) -> Launch:
    """Start `cluster.launch` on `host`. run_dir: as the host sees it; seen_as: the same folder seen from outside."""
    every = {"run.name": name, "run.dir": run_dir, **settings}
    sets = [f"--set={key}={json.dumps(value)}" for key, value in every.items()]
    return _launch(host, name, seen_as / name, ["--config", str(CONFIG), *sets])


def resume(host: Host, name: str, run_dir: str, seen_as: Path, settings: Mapping[str, Any]) -> Launch:
    sets = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    return _launch(host, f"{name}-resumed", seen_as / name, ["--resume", f"{run_dir}/{name}", *sets])


def _launch(host: Host, log: str, run_dir: Path, arguments: list[str]) -> Launch:
    process, path = host.start([sys.executable, "-m", "cluster.launch", *arguments], f"{log}.log")
    return Launch(host, process, path, run_dir)
