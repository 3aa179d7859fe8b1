"""The launcher as people use it: a process of its own that is interrupted, and a Ray job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.report import read_run
from cluster.session import PrivateRedis
from cluster.status import main as status
from cluster.watch.mirror import Mirror
from configs.local.ports import free_port
from tests.integration.launcher import (
    ENDLESS,
    ROOT,
    STEP_TIMEOUT_S,
    Launched,
    assert_saves_and_ends,
    launchers,
    wait_until,
    write_config,
)
from tests.integration.own_cluster import head_process
from tests.short_folder import short_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    with launchers(tmp_path) as start:
        yield start


@pytest.mark.proof  # SIGTERM, with the same assertions, ends the run of test_security.py
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_to_all_its_processes_saves_a_checkpoint_and_leaves_no_process(
    launch: Callable[..., Launched], number: signal.Signals, code: int
) -> None:
    launched = launch(run={"steps": ENDLESS}, rollout={"engine": "vllm"})
    launched.wait_for_line("step 1/")
    assert_saves_and_ends(launched, number, code)


@pytest.mark.proof
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
def job_environment() -> Iterator[dict[str, str]]:
    """A Ray head with a dashboard, and the environment in which `ray job` finds it."""
    dashboard_port = free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    environment["RAY_DASHBOARD_STARTUP_TIMEOUT_S"] = "180"  # Ray's own minute was short beside the other tests, once
    options = [
        *("--num-cpus=8", f"--port={free_port()}", f"--object-store-memory={300 << 20}"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"),
        *(f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"),
    ]
    with short_folder() as folder, head_process(folder, environment, *options, f"--temp-dir={folder}"):
        yield {**environment, "RAY_ADDRESS": f"http://127.0.0.1:{dashboard_port}"}


def ray_job(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ray")), "job", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=STEP_TIMEOUT_S)


@contextmanager
def submitted(environment: Mapping[str, str], config: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m cluster.submit` of a config, whose folder travels; ends with the test."""
    command = [sys.executable, "-m", "cluster.submit", "--config", str(config), "--working-dir", str(config.parent)]
    with output.open("wb") as file:
        sender = subprocess.Popen([*command, "--python", sys.executable], env=environment, stdout=file, stderr=file)
    try:
        yield sender
    finally:
        sender.kill()
        sender.wait()


def test_a_ray_job_trains_to_its_end_and_shows_its_log_and_its_page_is_in_redis(
    job_environment: dict[str, str], tmp_path: Path
) -> None:
    with PrivateRedis(tmp_path / "redis") as redis:
        config = write_config(tmp_path, registry={"redis_url": redis.url})
        entry = ("--working-dir", ".", "--", sys.executable, "-m", "cluster.launch", "--config", str(config))
        finished = ray_job(job_environment, "submit", *entry)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        mirror = Mirror.of(redis.url, "launched", tmp_path / "elsewhere")
        mirror.refresh()
        there = read_run(mirror.path)
        assert (there.status, there.step, bool(there.sample_steps)) == ("finished", 2, True)
    assert "step 2/2" in finished.stdout
    assert f"draw with it: python -m rollout.generate --model {tmp_path / 'runs' / 'launched'}" in finished.stdout
    assert json.loads((tmp_path / "runs" / "launched" / "summary.json").read_text())["status"] == "finished"


@pytest.mark.proof
def test_a_submitted_run_is_followed_names_its_job_and_saves_a_checkpoint_when_it_is_stopped(
    job_environment: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    travels = tmp_path / "travels"
    travels.mkdir()
    endless = write_config(travels, run={"name": "endless", "steps": ENDLESS, "dir": str(tmp_path / "runs")})
    output = tmp_path / "submit.txt"
    with submitted(job_environment, endless, output) as sender:
        wait_until(lambda: "step 1/" in output.read_text(), STEP_TIMEOUT_S, output.read_text, sender)
        page = f"{job_environment['RAY_ADDRESS']}/#/jobs/endless"
        assert f"in the Ray dashboard: {page}" in output.read_text()
        assert status([str(tmp_path / "runs" / "endless")]) == 0
        assert f"in Ray   job endless {page}" in capsys.readouterr().out
        stopped = ray_job(job_environment, "stop", "endless")
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        assert sender.wait(STEP_TIMEOUT_S) == 143, output.read_text()
    summary = json.loads((tmp_path / "runs" / "endless" / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert (Path(summary["checkpoint"]) / "model.safetensors").is_file()


@pytest.mark.proof
def test_a_job_whose_launcher_is_lost_goes_on_when_the_same_job_is_submitted_again(
    job_environment: dict[str, str], tmp_path: Path
) -> None:
    """As KubeRay's backoffLimit does it, with the command of docs/clusters.md."""
    config = write_config(tmp_path, run={"steps": 6}, checkpoint={"every_steps": 2})
    launcher = (sys.executable, "-m", "cluster.launch", "--config", str(config), "--resume", "auto")
    entry = ("--working-dir", ".", "--", *launcher)
    first = ray_job(job_environment, "submit", "--no-wait", "--submission-id", "first", *entry)
    assert first.returncode == 0, first.stdout + first.stderr
    run = tmp_path / "runs" / "launched"
    deadline = time.monotonic() + STEP_TIMEOUT_S
    while not (run / "checkpoints" / "step_000002").exists():
        assert time.monotonic() < deadline, ray_job(job_environment, "logs", "first").stdout
        time.sleep(0.2)
    (launched,) = [process for process in psutil.process_iter() if _command_line(process)[-5:] == list(launcher)[-5:]]
    launched.kill()
    while "failed" not in (status := ray_job(job_environment, "status", "first")).stdout + status.stderr:
        assert time.monotonic() < deadline, status.stdout
        time.sleep(0.5)
    again = ray_job(job_environment, "submit", *entry)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "going on from step " in again.stdout
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 6)
    finished = ray_job(job_environment, "submit", *entry)
    assert finished.returncode == 0
    assert "this run has made all its 6 steps" in finished.stdout


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
