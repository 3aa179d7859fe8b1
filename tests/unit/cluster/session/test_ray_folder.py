"""The folder of a local Ray, and those of launchers that were killed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster.session.ray_folder import PREFIX, find_base, short_lived_folder, sweep_killed
from configs.errors import RunError
from configs.local.owned_folder import OWNER, SOCKET_BYTES


@pytest.fixture
def notes() -> list[str]:
    return []


def leave_behind(base: Path, logs_dir: str, name: str = "killed") -> Path:
    folder = base / f"{PREFIX}{name}"
    logs = folder / "ray" / "session_latest" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text("last words")
    (folder / OWNER).write_text(logs_dir)
    return folder


def test_the_folder_is_its_owners_only_and_keeps_its_logs(tmp_path: Path, notes: list[str]) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    with short_lived_folder(logs, notes.append) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert (folder / OWNER).read_text() == str(logs)
        (folder / "ray" / "session_latest" / "logs").mkdir(parents=True)
        (folder / "ray" / "session_latest" / "logs" / "gcs_server.out").write_text("hello")
        sweep_killed(folder.parent, notes.append)
        assert folder.exists(), "its launcher is alive"
    assert not folder.exists()
    assert (logs / "ray" / "gcs_server.out").read_text() == "hello"


def test_what_a_killed_launcher_left_is_swept_with_its_processes_and_its_logs_are_kept(
    tmp_path: Path, notes: list[str]
) -> None:
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    folder = leave_behind(tmp_path, str(logs))
    environment = {**os.environ, "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    code = "import sys; print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=-1, stdout=-1) as agent:
        assert agent.stdout is not None
        agent.stdout.readline()
        sweep_killed(tmp_path, notes.append)
        assert agent.wait(20) != 0
    assert not folder.exists()
    assert (logs / "ray" / "raylet.out").read_text() == "last words"
    assert "was left by a launcher that was killed" in notes[0]


def test_one_that_is_being_made_or_is_no_ones_stays(tmp_path: Path, notes: list[str]) -> None:
    folders = [leave_behind(tmp_path, "", "new"), leave_behind(tmp_path, "", "old")]
    (folders[1] / OWNER).unlink()
    sweep_killed(tmp_path, notes.append)
    assert all(folder.exists() for folder in folders)
    assert notes == []


def test_a_long_tmpdir_is_left_for_tmp_and_said_so(
    tmp_path: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert find_base() == Path("/tmp")
    with short_lived_folder(tmp_path, notes.append) as folder:
        assert len(str(folder / "ray/session_2026-11-27_12-36-39_324283_15227/sockets/plasma_store")) < SOCKET_BYTES
    assert any("TMPDIR" in note for note in notes)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != "/tmp")
    with pytest.raises(RunError, match="set TMPDIR to a folder with a shorter name"):
        find_base()
