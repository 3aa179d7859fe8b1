"""The launcher as people use it: a process of its own that is interrupted, and a Ray job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration.own_cluster import free_port
from tests.integration.training import run_tree

ROOT = Path(__file__).resolve().parents[2]
STEP_TIMEOUT_S = 240.0
END_TIMEOUT_S = 120.0
ENDLESS = 100_000
"""More steps than a test waits for."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


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
        _, alive = psutil.wait_procs(started, timeout=20)
        return exit_code, alive


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


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Starts launchers; whatever of them is left at the end is killed."""
    launched: list[Launched] = []

    def start(**sections: Mapping[str, Any]) -> Launched:
        output = tmp_path / "output.txt"
        command = [sys.executable, "-m", "cluster.launch", "--config", str(write_config(tmp_path, **sections))]
        with output.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        launched.append(Launched(process, output, tmp_path / "runs" / "launched"))
        return launched[-1]

    yield start
    for each in launched:
        if each.process.poll() is None:
            for process in [*psutil.Process(each.process.pid).children(recursive=True), each.process]:
                process.kill()
            each.process.wait()


def test_ctrl_c_saves_a_checkpoint_and_leaves_no_process(launch: Callable[..., Launched]) -> None:
    launched = launch(run={"steps": ENDLESS}, rollout={"engine": "vllm"})
    launched.wait_for_line("step 1/")
    exit_code, alive = launched.interrupt(signal.SIGINT)
    assert exit_code == 130, launched.text
    assert alive == []
    assert "Traceback" not in launched.text
    assert "stopping after this step" in launched.text
    summary = launched.summary
    assert summary["status"] == "stopped"
    assert 1 <= summary["steps"] < ENDLESS
    assert (Path(summary["checkpoint"]) / "model.safetensors").is_file()
    assert (launched.run / "curves.png").is_file()
    assert list((launched.run / "logs" / "ray").glob("worker-*")), "Ray's logs are kept"


def test_ctrl_c_during_the_start_ends_at_once_and_leaves_no_process(launch: Callable[..., Launched]) -> None:
    launched = launch()
    launched.wait_for_line("starting learner, rollout workers and rewards")
    exit_code, alive = launched.interrupt(signal.SIGINT)
    assert exit_code == 130, launched.text
    assert alive == []
    assert "Traceback" not in launched.text
    assert (launched.summary["status"], launched.summary["checkpoint"]) == ("stopped", None)


def test_sigterm_while_ray_starts_leaves_no_process(launch: Callable[..., Launched]) -> None:
    launched = launch()
    launched.wait_for_line("starting Redis and Ray")
    exit_code, alive = launched.interrupt(signal.SIGTERM)
    assert exit_code == 143, launched.text
    assert alive == []
    assert "Traceback" not in launched.text


@pytest.fixture
def job_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Ray head with a dashboard, and the environment in which `ray job` finds it."""
    folder = tmp_path_factory.mktemp("r")
    dashboard_port = free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=8"),
        *("--node-ip-address=127.0.0.1", f"--port={free_port()}", f"--temp-dir={folder}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}", f"--object-store-memory={300 << 20}"),
        *(f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"),
    ]
    with (folder / "head.txt").open("wb") as output:
        head = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_until(
            lambda: "--block" in (folder / "head.txt").read_text(),
            120,
            lambda: (folder / "head.txt").read_text(),
            head,
        )
        yield {**environment, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard_port}"}
    finally:
        if head.poll() is None:
            processes = psutil.Process(head.pid).children(recursive=True)
            head.terminate()
            head.wait(60)
            _, alive = psutil.wait_procs(processes, timeout=20)
            for process in alive:
                process.kill()


def ray_job(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ray")), "job", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=STEP_TIMEOUT_S)


def test_a_ray_job_trains_shows_its_log_and_saves_a_checkpoint_when_it_is_stopped(
    job_environment: dict[str, str], tmp_path: Path
) -> None:
    config = write_config(tmp_path)
    # Ray kills a job that does not end within 3 s of being stopped, unless told otherwise.
    patience = ("--runtime-env-json", json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}}))
    entry = ("--working-dir", ".", *patience, "--", sys.executable, "-m", "cluster.launch", "--config", str(config))
    finished = ray_job(job_environment, "submit", *entry)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "step 2/2" in finished.stdout
    assert json.loads((tmp_path / "runs" / "launched" / "summary.json").read_text())["status"] == "finished"

    steps = ("--set", f"run.steps={ENDLESS}")
    submitted = ray_job(job_environment, "submit", "--no-wait", "--submission-id", "endless", *entry, *steps)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while "step 1/" not in ray_job(job_environment, "logs", "endless").stdout:
        assert time.monotonic() < deadline
        time.sleep(1)
    stopped = ray_job(job_environment, "stop", "endless")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    summary = json.loads((tmp_path / "runs" / "launched-2" / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert (Path(summary["checkpoint"]) / "model.safetensors").is_file()
