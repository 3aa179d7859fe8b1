"""The display of a run, on a terminal and in a log."""

from __future__ import annotations

import dataclasses
import io
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.reports import Progress
from cluster.reports.metrics import RewardChange, RunSummary
from cluster.reports.progress import format_duration

ROOT = Path(__file__).resolve().parents[4]
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
SUMMARY = RunSummary(
    status="finished",
    steps=12,
    images=12800,
    wall_s=372.1,
    images_per_s=34.4,
    evaluation={"unseen_pairs": RewardChange(0.45, 0.58), "heldout": RewardChange(0.5, None)},
    reward_first=0.5,
    reward_last=0.48,
    checkpoint="/runs/trial/checkpoints/step_000012",
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def step_metrics(step: int) -> dict[str, float]:
    return {
        "step": step,
        "reward/mean": 0.5 + 0.01 * step,
        "images_per_s": 38.2,
        "staleness/mean": 0.5,
        "kl": 0.0123,
        "time/step_s": 60.0,
    }


def test_a_log_gets_one_line_a_step() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(3, log, clock) as progress:
        for step in (1, 2, 3):
            clock.now_s += 60
            progress.step(step_metrics(step))
    assert log.getvalue().splitlines() == [
        "step 1/3  reward 0.510  38.2 images/s  staleness 0.5  kl 0.0123  2 min 00 s left",
        "step 2/3  reward 0.520 (+0.010)  38.2 images/s  staleness 0.5  kl 0.0123  1 min 00 s left",
        "step 3/3  reward 0.530 (+0.020)  38.2 images/s  staleness 0.5  kl 0.0123  0 s left",
    ]


def test_very_quick_steps_share_a_line_but_the_last_one_always_shows() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(50, log, clock) as progress:
        for step in range(1, 51):
            clock.now_s += 0.125
            progress.step(step_metrics(step))
    shown = [int(line.split()[1].split("/")[0]) for line in log.getvalue().splitlines()]
    assert shown == [*range(1, 50, 8), 50]


def test_a_stage_shows_at_its_start_every_ten_seconds_and_when_complete() -> None:
    log, clock = io.StringIO(), Clock()
    with Progress(3, log, clock) as progress:
        for done in range(0, 901, 25):
            progress.stage("warm start: VQ model", done, 900, f"loss {1 / (1 + done):.3f}")
            clock.now_s += 1
        progress.stage("warm start: VQ model", 900, 900)
        progress.stage("starting rollout workers")
        progress.stage("starting rollout workers")
    assert log.getvalue().splitlines() == [
        "warm start: VQ model 0/900  loss 1.000",
        "warm start: VQ model 250/900  loss 0.004",
        "warm start: VQ model 500/900  loss 0.002",
        "warm start: VQ model 750/900  loss 0.001",
        "warm start: VQ model 900/900  loss 0.001",
        "starting rollout workers",
    ]


def test_metrics_that_are_missing_or_not_finite_are_left_out() -> None:
    log = io.StringIO()
    with Progress(2, log) as progress:
        progress.step({"step": 1, "reward/mean": float("nan"), "kl": float("inf")})
    assert log.getvalue().strip() == "step 1/2"


def test_a_note_is_shown_as_it_is_however_long() -> None:
    log = io.StringIO()
    text = "group 31 failed [bold] (attempt 1 of 4): " + "x" * 300
    with Progress(2, log) as progress:
        progress.note(text)
    assert log.getvalue() == text + "\n"


def test_the_end_shows_rewards_before_and_after_and_where_things_are() -> None:
    log = io.StringIO()
    with Progress(12, log) as progress:
        progress.finish(SUMMARY, Path("/runs/" + "long/" * 30 + "trial"))
    text = log.getvalue()
    assert "finished: 12 steps, 12,800 images in 6 min 12 s (34.4 images/s)" in text
    assert re.search(r"unseen pairs +0\.450 +0\.580 +\+0\.130", text)
    assert re.search(r"heldout +0\.500 +– +–", text)
    assert re.search(r"training .*0\.500 +0\.480 +-0\.020", text)
    assert "/runs/" + "long/" * 30 + "trial" in text
    assert "/runs/trial/checkpoints/step_000012" in text


def test_the_verdict_names_rewards_and_full_marks_of_what_gives_any() -> None:
    change = RewardChange(0.581, 0.923, perfect={"shapes": (0.21, 0.78)}, num_prompts=192)
    quiet = RewardChange(0.3, 0.31, perfect={"hps": (0.0, 0.0), "shapes": (0.5, 0.25)}, num_prompts=8)
    log = io.StringIO()
    with Progress(12, log) as progress:
        progress.finish(dataclasses.replace(SUMMARY, evaluation={"heldout": change, "quiet": quiet}))
    text = log.getvalue()
    assert "heldout, 192 prompts: reward 0.58 → 0.92; right in every detail: 21% → 78%" in text
    assert "quiet, 8 prompts: reward 0.30 → 0.31; full marks by shapes: 50% → 25%\n" in text


def test_an_output_that_is_closed_or_ascii_never_raises() -> None:
    closed = io.StringIO()
    closed.close()
    ascii_bytes = io.BytesIO()
    for stream in (closed, io.TextIOWrapper(ascii_bytes, encoding="ascii", write_through=True)):
        with Progress(2, stream) as progress:
            progress.stage("starting")
            progress.note("reward ↑ für 猫")
            progress.step(step_metrics(1))
            progress.finish(SUMMARY)
    assert b"reward ? f?r ?" in ascii_bytes.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (372.1, "6 min 12 s"), (12000, "3 h 20 min"), (-3, "0 s")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def run_on_a_terminal(code: str, interrupt_after: str | None = None) -> tuple[str, int]:
    """What a script writes to a terminal of its own, and its exit status."""
    terminal, its_end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=its_end, stdout=its_end, stderr=its_end, env=environment
    )
    os.close(its_end)
    output = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # Linux says so when the other end of a terminal is closed
            break
        if not piece:
            break
        output += piece
        if interrupt_after and interrupt_after.encode() in output:
            interrupt_after = None
            process.send_signal(signal.SIGINT)
    os.close(terminal)
    return output.decode(), process.wait(30)


def test_a_terminal_shows_stage_bar_notes_and_what_libraries_print() -> None:
    text, status = run_on_a_terminal(
        "from cluster.reports.progress import Progress\n"
        "with Progress(4) as progress:\n"
        "    progress.stage('warm start', 5, 10); progress._live.refresh()\n"
        "    progress.step({'step': 2, 'reward/mean': 0.5, 'time/step_s': 3.0}); progress._live.refresh()\n"
        "    progress.note('a group failed'); print('printed by a library')\n"
    )
    assert status == 0
    for expected in (
        "warm start",
        "5/10",
        "✓",
        "training",
        "2/4",
        "6 s left",
        "a group failed",
        "printed by a library",
    ):
        assert expected in text
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)


def test_ctrl_c_gives_the_terminal_back() -> None:
    text, status = run_on_a_terminal(
        "import time\nfrom cluster.reports.progress import Progress\n"
        "with Progress(4) as progress:\n"
        "    progress.step({'step': 1}); progress.note('waiting')\n"
        "    while True: time.sleep(0.05)\n",  # short ones: a signal just before a sleep shows after it only
        interrupt_after="waiting",
    )
    assert status != 0
    assert "KeyboardInterrupt" in text
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
