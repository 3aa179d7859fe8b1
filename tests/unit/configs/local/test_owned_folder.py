"""Temporary folders of processes that were killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from configs.local.owned_folder import OWNER, OwnedFolder, sweep

MAKE = """
import sys
from pathlib import Path
from configs.local.owned_folder import OwnedFolder
folder = OwnedFolder("mine-", Path(sys.argv[1]), "told")
(folder.path / "left").mkdir()
print(folder.path, flush=True)
sys.stdin.read()
"""


def test_a_folder_goes_when_it_is_closed_and_is_swept_only_when_its_process_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAKE, str(tmp_path)]
    heard: list[tuple[Path, str]] = []
    with OwnedFolder("mine-", tmp_path) as own, subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        sweep("mine-", tmp_path, lambda folder, told: heard.append((folder, told)))
        assert (left / "left").is_dir()
        other.kill()
        other.wait()
        sweep("mine-", tmp_path, lambda folder, told: heard.append((folder, told)))
        assert not left.exists()
        assert own.path.is_dir()
    assert heard == [(left, "told")]
    assert not own.path.exists()
    own.close()


def test_what_has_no_owner_or_another_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine-1").mkdir()
    (tmp_path / "yours-1").mkdir()
    (tmp_path / "yours-1" / OWNER).write_text("somebody")
    sweep("mine-", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
