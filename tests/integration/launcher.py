"""A launcher as a process of its own, as people start it: watched, signalled, and ended with the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cluster.session.stop_signals import still_alive
from tests.integration.training import run_tree

ROOT = Path(__file__).resolve().parents[2]
STEP_TIMEOUT_S = 240.0
END_TIMEOUT_S = 120.0
ENDLESS = 100_000
"""More steps than a test waits for."""


@dataclass
class Launched:
    """A launcher that runs in a session of its own, as in a terminal."""

    process: subprocess.Popen[bytes]
    output: Path
    run: Path

    def wait_for_line(self, text: str) -> None:
        wait_until(lambda: text in self.text, STEP_TIMEOUT_S, lambda: f"no '{text}' in\n{self.text}", self.process)

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def summary(self) -> Mapping[str, Any]:
        summary: Mapping[str, Any] = json.loads((self.run / "summary.json").read_text())
        return summary

    def interrupt(self, number: signal.Signals) -> tuple[int, list[psutil.Process]]:
        """Signal the whole process group, as a terminal does; returns the exit code and what is still alive."""
        started = psutil.Process(self.process.pid).children(recursive=True)
        os.killpg(self.process.pid, number)
        exit_code = self.process.wait(END_TIMEOUT_S)
        return exit_code, still_alive(started, patience_s=20)


def assert_saves_and_ends(launched: Launched, number: signal.Signals, code: int) -> None:
    """Signal a run that makes steps as a terminal, systemd and Slurm do: Ray's processes, which get the signal, too,
    must outlive it until the checkpoint is written."""
    exit_code, alive = launched.interrupt(number)
    assert exit_code == code, launched.text
    assert alive == []
    assert "Traceback" not in launched.text
    assert "stopping after this step" in launched.text
    summary = launched.summary
    assert summary["status"] == "stopped"
    assert 1 <= summary["steps"] < ENDLESS
    assert (Path(summary["checkpoint"]) / "model.safetensors").is_file()
    assert (launched.run / "curves.png").is_file()
    assert list((launched.run / "logs" / "ray").glob("worker-*")), "Ray's logs are kept"


def wait_until(
    is_so: Callable[[], bool], timeout_s: float, complaint: Callable[[], str], process: subprocess.Popen[bytes]
) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if process.poll() is not None:
            pytest.fail(f"it ended with {process.returncode}: {complaint()}")
        if time.monotonic() > deadline:
            pytest.fail(complaint())
        time.sleep(0.1)


def write_config(tmp_path: Path, **sections: Mapping[str, Any]) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(run_tree("launched", tmp_path / "runs", **sections)))
    return path


@contextmanager
def launchers(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Starts launchers; whatever of them is left at the end is killed.

    The launcher has the tests' environment but for RAY_AUTH_MODE: it asks for a token, as it does for everybody.
    arguments: more of its command line; environment: what is added to its own; sections: of its config.
    """
    launched: list[Launched] = []

    def start(*arguments: str, environment: Mapping[str, str] | None = None, **sections: Mapping[str, Any]) -> Launched:
        output = tmp_path / f"output-{len(launched)}.txt"
        config = write_config(tmp_path, **sections)
        command = [sys.executable, "-m", "cluster.launch", "--config", str(config), *arguments]
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**inherited, **(environment or {})},
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        launched.append(Launched(process, output, tmp_path / "runs" / "launched"))
        return launched[-1]

    try:
        yield start
    finally:
        for each in launched:
            if each.process.poll() is None:
                for process in [*psutil.Process(each.process.pid).children(recursive=True), each.process]:
                    process.kill()
                each.process.wait()
