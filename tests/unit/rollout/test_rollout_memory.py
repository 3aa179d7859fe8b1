"""What the script that watches memory counts, and what it refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.rollout_memory import main, resident_mb


def test_a_child_counts_as_engine_core_and_not_as_worker() -> None:
    own, before = resident_mb()
    hold = "block = bytearray(200_000_000); print(len(block), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == b"200000000"
        after, core = resident_mb()
        child.communicate(b"\n")
    assert core - before > 200
    assert abs(after - own) < 100


def test_fewer_requests_than_a_row_is_made_of_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--requests", "10", "--every", "100"])
    assert "--requests 10 --every 100" in capsys.readouterr().err
