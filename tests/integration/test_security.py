"""Who else is on the network or on the machine, and what they get from a run: nothing. And how such a run is ended."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tests.integration.launcher import ENDLESS, Launched, assert_saves_and_ends, launchers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

SECRETS = ("s3cr3t-of-a-reward", "s3cr3t-by-reference")
JOB = json.dumps({"entrypoint": "sh -c 'touch {marker}'"})


@pytest.fixture(scope="module")
def home_token() -> str | None:
    return token_at_home()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, home_token: str | None) -> Iterator[Launched]:
    """A run with everything in it that listens (vLLM, two learner ranks, the dashboard), in the middle of its work."""
    with launchers(tmp_path_factory.mktemp("open")) as launch:
        launched = launch(
            environment={"OUTSIDE": SECRETS[1]},
            run={"steps": ENDLESS},
            rollout={"engine": "vllm"},
            learner={"num_ranks": 2, "micro_batch_size": 2, "cpus_per_rank": 0.5, "lr": 1e-3},
            rewards=[
                {
                    "name": "tests.integration.rewards:KeyedReward",
                    "cpus_per_replica": 0.1,
                    "options": {"names": ["API_KEY", "PLAIN"]},
                    "runtime_env": {"env_vars": {"API_KEY": SECRETS[0], "PLAIN": "${OUTSIDE}"}},
                }
            ],
            cluster={"dashboard": True},
        )
        launched.wait_for_line("step 1/")
        yield launched


def processes_of(run: Launched) -> list[psutil.Process]:
    launcher = psutil.Process(run.process.pid)
    return [launcher, *launcher.children(recursive=True)]


def listening(run: Launched) -> dict[tuple[str, int], str]:
    """Address and port of every socket on which a process of the run listens, with the process' name."""
    found = {}
    for process in processes_of(run):
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    address = connection.laddr.ip.removeprefix("::ffff:")
                    found[address, connection.laddr.port] = f"{process.name()} {process.pid}"
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_default_run_listens_on_loopback_only(run: Launched) -> None:
    sockets = listening(run)
    names = {name.split()[0] for name in sockets.values()}
    assert {"raylet", "gcs_server", "redis-server"} <= names
    assert any(name.startswith("ray::LearnerActor") for name in sockets.values()), "the ranks' store"
    outside = {place: name for place, name in sockets.items() if not ip_address(place[0]).is_loopback}
    assert not outside


def test_a_job_without_the_token_is_refused_by_everything_that_speaks_http(run: Launched, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    answers = []
    for (address, port), name in listening(run).items():
        # Not gloo's, between ranks: what is no peer of its would break it. Those of gRPC speak no HTTP/1.
        if not name.startswith(("python", "ray::DashboardAgent", "ray::RuntimeEnvAgent")):
            continue
        for path in ("/api/jobs/", "/api/job_agent/jobs/"):
            request = urllib.request.Request(
                f"http://{address}:{port}{path}",
                data=JOB.replace("{marker}", str(marker)).encode(),
                headers={"Content-Type": "application/json"},
                method="POST",
            )
            try:
                with urllib.request.urlopen(request, timeout=3) as answer:
                    answers.append((address, port, path, answer.status))
            except urllib.error.HTTPError as error:
                answers.append((address, port, path, error.code))
            except (OSError, http.client.HTTPException):
                continue  # it speaks something else
    assert not [answer for answer in answers if answer[3] < 400], "a stranger's job was taken"
    assert len([answer for answer in answers if answer[3] == 401]) >= 2, "dashboard and its agent ask who it is"
    assert not marker.exists()


def test_ray_itself_refuses_who_has_no_token(run: Launched, tmp_path: Path) -> None:
    (gcs,) = [place for place, name in listening(run).items() if name.startswith("gcs_server")]
    stranger = f"from ray._raylet import GcsClient; GcsClient(address='127.0.0.1:{gcs[1]}'); print('let in')"
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    tried = subprocess.run(
        [sys.executable, "-c", stranger], env=environment, capture_output=True, text=True, timeout=120
    )
    assert "let in" not in tried.stdout
    assert "InvalidAuthToken" in tried.stderr


def test_redis_refuses_who_has_no_password(run: Launched) -> None:
    (server,) = [place for place, name in listening(run).items() if name.startswith("redis-server")]
    with (
        redis.Redis(*server, retry=Retry(NoBackoff(), 0)) as stranger,
        pytest.raises(RedisError, match="authenticate"),
    ):
        stranger.ping()


def test_no_secret_is_in_a_file_on_the_screen_or_on_a_command_line(run: Launched) -> None:
    folder = ray_folder(run)
    token = (folder / "token").read_text()
    hidden = [secret.encode() for secret in (*SECRETS, token)]
    files = [path for root in (run.run, folder / "ray") for path in root.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix in (".log", ".out", ".err")]) > 5, "Ray's logs were looked at"
    for path in [*files, run.output]:
        if not path.is_symlink():
            content = path.read_bytes()
            assert not [secret for secret in hidden if secret in content], path
    for process in processes_of(run):
        line = "\0".join(process.cmdline()).encode()
        assert not [secret for secret in hidden if secret in line], process
    assert "${OUTSIDE}" in (run.run / "config.yaml").read_text()


def test_other_users_of_the_machine_can_open_nothing_of_the_run(run: Launched) -> None:
    folder = ray_folder(run)
    modes = {path: path.stat().st_mode & 0o777 for path in (run.run, run.run / "config.yaml", folder, folder / "token")}
    assert list(modes.values()) == [0o700, 0o600, 0o700, 0o600]


def test_no_process_of_its_ray_is_idle(run: Launched) -> None:
    assert not [line for process in processes_of(run) if (line := " ".join(process.cmdline())).startswith("ray::IDLE")]


def test_sigterm_to_all_its_processes_saves_a_checkpoint_and_leaves_no_process(
    run: Launched, home_token: str | None
) -> None:
    """The last test: the run ends here."""
    assert_saves_and_ends(run, signal.SIGTERM, 143)
    assert token_at_home() == home_token, "nothing is left in the user's home"


def token_at_home() -> str | None:
    """Ray's own token in the user's home, which a run neither makes nor changes."""
    path = Path.home() / ".ray" / "auth_token"
    return path.read_text() if path.exists() else None


def ray_folder(run: Launched) -> Path:
    """Of the run's own Ray: it is in the environment of its processes, which only their owner can read."""
    (raylet,) = [process for process in processes_of(run) if process.name() == "raylet"]
    return Path(raylet.environ()["RAY_AUTH_TOKEN_PATH"]).parent
