"""A run as a Ray job, against a client that answers as Ray's documentation says. The real one: `test_launch.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.launch import build_parser as launch_parser
from cluster.submission import job
from cluster.submission.job import JobRequest, exit_code, follow, free_id, submit
from cluster.submit import build_parser, read_request
from configs.errors import ConfigError, PlacementError

ROOT = Path(__file__).resolve().parents[4]
REQUEST = JobRequest("mine", "configs/a.yaml", ("run.steps=2",), ROOT, (), "python", 1, 600)


class Status(SimpleNamespace):
    value: str

    def is_terminal(self) -> bool:
        return self.value in ("SUCCEEDED", "FAILED", "STOPPED")


class Client:
    """Its log comes in pieces; a None among them breaks the connection, and the next one begins from the start."""

    def __init__(self, pieces: list[str | None] = [], status: str = "SUCCEEDED", code: int | None = 0) -> None:  # noqa: B006
        self.pieces, self.status, self.code = pieces, status, code
        self.jobs: list[Any] = []
        self.submitted: dict[str, Any] = {}
        self.broken = 0

    def list_jobs(self) -> list[Any]:
        return self.jobs

    def submit_job(self, **arguments: Any) -> str:
        self.submitted = arguments
        return str(arguments["submission_id"])

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for number, piece in enumerate(self.pieces):
            if piece is None and number >= self.broken:
                self.broken = number + 1
                raise RuntimeError("WebSocket connection closed unexpectedly")
            if piece is not None:
                yield piece

    def get_job_info(self, job_id: str) -> Any:
        return SimpleNamespace(status=Status(value=self.status), driver_exit_code=self.code, message="no such node")

    def get_address(self) -> str:
        return "http://head:8265"


def entry(job_id: str, run: str, status: str) -> Any:
    return SimpleNamespace(submission_id=job_id, metadata={"run": run}, status=Status(value=status))


def test_the_command_begins_the_run_or_goes_on_with_it_and_is_one_that_the_launcher_takes() -> None:
    assert REQUEST.entrypoint == "python -m cluster.launch --config configs/a.yaml --resume auto --set run.steps=2"
    assert launch_parser().parse_args(REQUEST.entrypoint.split()[3:]).set == ["run.steps=2"]


def test_a_stopped_job_has_time_for_its_checkpoint() -> None:
    assert REQUEST.runtime_env["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "600"}


def test_a_submission_id_is_the_runs_name_with_a_number_from_the_second_on() -> None:
    assert free_id("mine", set()) == "mine"
    assert free_id("mine", {"mine", "mine-2", "mine-4"}) == "mine-3"


def test_two_launchers_never_share_a_run() -> None:
    client = Client()
    client.jobs = [entry("mine", "mine", "FAILED"), entry("mine-2", "mine", "RUNNING")]
    with pytest.raises(ConfigError, match=r"job mine-2 of run 'mine' is running on this cluster"):
        submit(client, REQUEST)  # type: ignore[arg-type]
    client.jobs[1].status.value = "STOPPED"
    assert submit(client, REQUEST) == "mine-3"  # type: ignore[arg-type]
    assert client.submitted["metadata"]["run"] == "mine"
    assert client.submitted["entrypoint_num_cpus"] == 1


def test_a_connection_that_breaks_is_made_again_and_nothing_is_shown_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "POLL_S", 0.0)
    shown: list[str] = []
    client = Client(["step 1\n", None, "step 2\n", None, "step 3\n"])
    assert asyncio.run(follow(client, "mine", shown.append)) == 0  # type: ignore[arg-type]
    assert "".join(shown) == "step 1\nstep 2\nstep 3\n"


def test_a_dashboard_that_is_gone_for_good_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "POLL_S", 0.0)
    client = Client([None] * (2 * job.MAX_QUIET_POLLS))
    with pytest.raises(PlacementError, match="the dashboard at http://head:8265 answers no more"):
        asyncio.run(follow(client, "mine", lambda text: None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", None, 143)],
)
def test_the_exit_code_is_the_launchers_own(status: str, driver: int | None, code: int) -> None:
    said: list[str] = []
    assert exit_code(status, driver, "the entrypoint's node is gone", said.append) == code
    assert bool(said) == (status == "FAILED" and driver is None)


def test_a_config_that_would_not_travel_is_refused(tmp_path: Path) -> None:
    options = build_parser().parse_args(
        ["--config", str(ROOT / "configs/shapes_cpu.yaml"), "--working-dir", str(tmp_path)]
    )
    with pytest.raises(ConfigError, match="would not travel with the job"):
        read_request(options)


def test_the_size_and_the_plan_are_told_before_anything_travels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    request = read_request(build_parser().parse_args(["--config", "configs/janus_pro_7b_cluster.yaml"]))
    assert (request.run, request.config) == ("janus_pro_7b_cluster", "configs/janus_pro_7b_cluster.yaml")
    assert "and 32 GPUs" in capsys.readouterr().out
