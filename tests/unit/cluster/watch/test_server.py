"""The page's server: what it answers, what it refuses, and what it sends again."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from cluster.state import RunDirectory
from cluster.watch import server as page_server
from cluster.watch.__main__ import main
from cluster.watch.server import Watched, serve
from tests.runs import add_step, make_run


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path)


@pytest.fixture
def port(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(page_server, "KEPT_S", -1.0)
    with serve(Watched([directory.path]), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(10)


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        return str(answer.read().decode())


def news(port: int, known: dict[str, str]) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(get(port, f"/sections?known={urllib.parse.quote(json.dumps(known))}"))
    return told


def test_only_sections_that_have_changed_come_again(port: int, directory: RunDirectory) -> None:
    page = get(port, "/")
    assert 'data-live="2000"' in page
    assert "12 of 40" in page
    first = news(port, {})
    digests = {name: part["digest"] for name, part in first.items()}
    assert f'id="top" data-digest="{digests["top"]}"' in page
    assert news(port, digests) == {}
    add_step(directory, 13)
    again = news(port, digests)
    assert "13 of 40" in again["top"]["html"]
    assert "curves" in again
    assert "config" not in again


def test_pictures_of_each_step_can_be_had(port: int) -> None:
    assert "a red star, number 1" in get(port, "/samples?run=0&step=12")
    assert get(port, "/metrics.jsonl").count("\n") == 12


def test_rays_dashboard_takes_it_for_what_it_embeds(port: int) -> None:
    assert json.loads(get(port, "/api/health"))["database"] == "ok"
    assert json.loads(get(port, "/api/v1/query?query=vector(1)"))["status"] == "success"
    assert get(port, "/d/rayDefaultDashboard/?orgId=1&kiosk=1&var-Cluster=") == get(port, "/")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/samples?run=0&step=99", 400),
        ("/samples?run=7&step=12", 400),
        ("/samples?run=0&step=../../config", 400),
        ("/sections?known=[", 400),
        ("/config.yaml", 404),
        ("/../config.yaml", 404),
    ],
)
def test_what_is_not_there_is_refused(port: int, path: str, status: int) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(port, path)
    assert refused.value.code == status


def test_it_answers_under_its_own_name_and_to_get_only(port: int) -> None:
    for method, host, status in (("GET", "evil.example", 403), ("POST", "localhost", 501), ("GET", "localhost", 200)):
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request(method, "/metrics.jsonl", headers={"Host": f"{host}:{port}"})
        assert connection.getresponse().status == status
        connection.close()


def test_a_run_that_goes_away_is_said_and_does_not_end_the_server(port: int, directory: RunDirectory) -> None:
    directory.config_path.rename(directory.path / "hidden")
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(port, "/")
    assert refused.value.code == 503
    (directory.path / "hidden").rename(directory.config_path)
    assert "12 of 40" in get(port, "/")


def test_no_run_and_no_port_are_clear_errors(
    port: int, tmp_path: Path, directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "there is no run here" in capsys.readouterr().err
    assert main([str(directory.path), "--port", str(port)]) == 2
    assert f"--port {port}" in capsys.readouterr().err
