"""The first run as a new user makes it: the shipped config and model, and what README and the docs say of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.load import DEFAULT_CONFIG
from tests.integration.launcher import ROOT, Launched, launchers

MINUTES = 60.0
pytestmark = [pytest.mark.slow, pytest.mark.proof, pytest.mark.timeout(50 * MINUTES)]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    with launchers(tmp_path) as start:
        yield start


def test_the_first_run_ends_with_pictures_that_are_right(launch: Callable[..., Launched], tmp_path: Path) -> None:
    names = ("run.name=launched", f"run.dir={tmp_path / 'runs'}")
    launched = launch("--config", str(DEFAULT_CONFIG), *(word for name in names for word in ("--set", name)))
    assert launched.process.wait(40 * MINUTES) == 0, launched.text
    summary = launched.summary
    assert summary["heldout_reward_before"] <= 0.60
    assert summary["heldout_reward_after"] >= 0.90
    assert summary["unseen_pairs_reward_after"] >= summary["unseen_pairs_reward_before"] + 0.2
    assert summary["heldout_perfect"]["shapes"]["after"] >= 3 * summary["heldout_perfect"]["shapes"]["before"]
    assert "right in every detail" in launched.text

    command = (sys.executable, "-m", "scripts.draw_shown_prompts", "--model", summary["checkpoint"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=5 * MINUTES)
    assert shown.returncode == 0, shown.stdout + shown.stderr
