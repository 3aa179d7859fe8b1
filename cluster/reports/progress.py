"""What a person sees of a run while it goes on.

    on a terminal   one live line: a stage of the start-up, then steps, reward, speed, time left
    elsewhere       plain lines, for logs: each step, and what a stage has done every ten seconds

Neither ever ends a run: what the output cannot show or take is dropped.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self, TextIO, cast

import numpy as np
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cluster.reports.metrics import RewardChange, RunSummary
from configs.local.masking import mask_text

STAGE_LINE_EVERY_S: Final = 10.0
STEP_LINE_EVERY_S: Final = 1.0
_SMOOTHED_STEPS: Final = 10
_TIMED_STEPS: Final = 20
_BAR_WIDTH: Final = 24
_STATUS_STYLES: Final[Mapping[str, str]] = {"finished": "bold green", "stopped": "bold yellow", "failed": "bold red"}


class Progress:
    """The one display of a run; `with` shows it and puts the terminal right again, whatever happens.

    total_steps: optimizer steps of the whole run; stream: standard output by default.
    """

    def __init__(
        self, total_steps: int, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total_steps = total_steps
        self._clock = clock
        output = _ForgivingStream(stream if stream is not None else sys.stdout)
        self._console = Console(file=cast(IO[str], output), highlight=False, soft_wrap=True)
        self._is_live = output.isatty() and output.is_unicode and not self._console.is_dumb_terminal
        self._stage: _Stage | None = None
        self._made: _StepsMade | None = None
        self._rewards: list[float] = []
        self._step_times_s: deque[float] = deque(maxlen=_TIMED_STEPS)
        self._last_step_line_s = -math.inf
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=5,
            transient=True,
            redirect_stdout=stream is None,
            redirect_stderr=stream is None,
        )

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def stage(self, name: str, done: int | None = None, total: int | None = None, detail: str = "") -> None:
        """Say what the run is busy with when it makes no steps, and how far it is.

        May be called as often as there is news. done and total: of whatever unit; both or none.
        """
        if self._stage is None or self._stage.name != name:
            self._end_stage()
            self._stage = _Stage(name, started_s=self._clock())
        self._stage.done, self._stage.total, self._stage.detail = done, total, detail
        if not self._is_live:
            self._print_stage(self._stage)

    def step(self, metrics: Mapping[str, float]) -> None:
        """Show a step's metrics, with keys as in `cluster.reports.metrics`; all but `step` may be missing."""
        self._end_stage()
        if math.isfinite(reward := metrics.get("reward/mean", math.nan)):
            self._rewards.append(reward)
        if math.isfinite(duration_s := metrics.get("time/step_s", math.nan)):
            self._step_times_s.append(duration_s)
        step = int(metrics["step"])
        self._made = made = _StepsMade(step, self._describe(metrics, step))
        is_due = step >= self._total_steps or self._clock() - self._last_step_line_s >= STEP_LINE_EVERY_S
        if not self._is_live and is_due:
            self._last_step_line_s = self._clock()
            self._console.print(Text("  ".join([f"step {step}/{self._total_steps}", *made.parts])))

    def note(self, text: str) -> None:
        """Put a line above the display, to stay: a warning, a group that failed. Without what is a secret in it."""
        self._console.print(Text(mask_text(text)))

    def finish(self, summary: RunSummary, run_path: Path | None = None) -> None:
        """End the display and print how the run ended, and where its files are."""
        self._end_stage()
        self._live.stop()
        self._console.print()
        self._console.print(
            Text.assemble(
                (summary.status, _STATUS_STYLES.get(summary.status, "bold")),
                f": {summary.steps:,} steps, {summary.images:,} images in {format_duration(summary.wall_s)} "
                f"({summary.images_per_s:.1f} images/s)",
            )
        )
        if summary.error:
            self._console.print(Text(summary.error, style="red"))
        if summary.groups_failed:
            self._console.print(
                f"failed attempts at a group: {summary.groups_failed}; groups given up: {summary.groups_given_up}"
            )
        self._console.print(_reward_table(summary))
        for line in _verdict(summary):
            self._console.print(line)
        if (slowest := summary.slowest_reward) is not None:
            self._console.print(
                Text(f"slowest reward       {slowest.name}, {slowest.images_per_s:.1f} images/s a replica")
            )
        if summary.critical_path is not None:
            self._console.print(Text(f"time went to         {summary.critical_path.describe()}"))
        if run_path is not None:
            self._console.print(Text(f"pictures and curves  {run_path}"))
        if summary.checkpoint:
            self._console.print(Text(f"trained model        {summary.checkpoint}"))

    def _end_stage(self) -> None:
        if self._stage is not None and self._is_live:
            took = format_duration(self._clock() - self._stage.started_s)
            self._console.print(Text.assemble(("✓ ", "green"), self._stage.name, (f"  {took}", "dim")))
        self._stage = None

    def _print_stage(self, stage: _Stage) -> None:
        is_complete = stage.done is not None and stage.done == stage.total
        is_due = self._clock() - stage.last_line_s >= STAGE_LINE_EVERY_S
        if is_due or (is_complete and not stage.is_completion_shown):
            stage.last_line_s = self._clock()
            stage.is_completion_shown = is_complete
            self._console.print(Text("  ".join(filter(None, [f"{stage.name} {stage.count}".rstrip(), stage.detail]))))

    def _render(self) -> RenderableType:
        """The live line, cut to the width of the terminal. Runs in the display's own thread, so it only
        reads what the methods above have put in place whole."""
        line = Table.grid(padding=(0, 1))
        for _ in range(4):
            line.add_column(no_wrap=True, overflow="ellipsis")
        width = min(_BAR_WIDTH, max(8, self._console.width // 5))
        stage, made = self._stage, self._made
        if stage is not None:
            bar = "" if stage.total is None else ProgressBar(stage.total, stage.done or 0, width=width)
            took = format_duration(self._clock() - stage.started_s)
            tail = "  ".join(filter(None, [stage.count, stage.detail, took]))
            line.add_row(stage.spinner, stage.name, bar, Text(tail, style="dim"))
        elif made is not None:
            bar = ProgressBar(self._total_steps, made.step, width=width)
            line.add_row("training", bar, f"{made.step}/{self._total_steps}", Text("  ".join(made.parts)))
        return line

    def _describe(self, metrics: Mapping[str, float], step: int) -> list[str]:
        parts = [self._describe_reward()] if self._rewards else []
        for key, text in (
            ("images_per_s", "{:.1f} images/s"),
            ("staleness/mean", "staleness {:.1f}"),
            ("kl", "kl {:.4f}"),
        ):
            if math.isfinite(value := metrics.get(key, math.nan)):
                parts.append(text.format(value))
        if self._step_times_s:
            left_s = (self._total_steps - step) * float(np.mean(self._step_times_s))
            parts.append(f"{format_duration(left_s)} left")
        return parts

    def _describe_reward(self) -> str:
        """Mean of the last few steps, and how far it is above the mean of as many first steps."""
        count = min(_SMOOTHED_STEPS, max(1, len(self._rewards) // 2))
        reward = float(np.mean(self._rewards[-count:]))
        if len(self._rewards) < 2:
            return f"reward {reward:.3f}"
        change = reward - float(np.mean(self._rewards[:count]))
        if not self._is_live:
            return f"reward {reward:.3f} ({change:+.3f})"
        return f"reward {reward:.3f} {'↑' if change >= 0 else '↓'}{abs(change):.3f}"


@dataclass(frozen=True, slots=True)
class _StepsMade:
    """How many steps are made, and what to say of the last."""

    step: int
    parts: list[str]


class _Stage:
    """What the run is busy with when it makes no steps."""

    def __init__(self, name: str, started_s: float) -> None:
        self.name = name
        self.started_s = started_s
        self.done: int | None = None
        self.total: int | None = None
        self.detail = ""
        self.last_line_s = -math.inf
        self.is_completion_shown = False
        self.spinner = Spinner("dots")

    @property
    def count(self) -> str:
        return "" if self.done is None else f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"


class _ForgivingStream:
    """Writes to a stream that may be closed, gone, or unable to show a character, and never raises for it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    @property
    def is_unicode(self) -> bool:
        return self.encoding.lower().replace("-", "").startswith("utf")

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError is what a closed stream raises
            self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        return self._stream.fileno()


def format_duration(seconds: float) -> str:
    """42 s, 5 min 07 s, 3 h 20 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _reward_table(summary: RunSummary) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("reward", style="bold")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    rows = {name.replace("_", " "): change for name, change in summary.evaluation.items()}
    rows["training (first, last tenth)"] = RewardChange(summary.reward_first, summary.reward_last)
    for name, change in rows.items():
        table.add_row(name, _number(change.before), _number(change.after), _change(change))
    return table


def _verdict(summary: RunSummary) -> Iterator[Text]:
    """What training did, in a line for each evaluation set: "heldout, 192 prompts: 0.58 → 0.92; full marks ..."."""
    for name, change in summary.evaluation.items():
        if change.before is None or change.after is None:
            continue
        parts = [f"reward {change.before:.2f} → {change.after:.2f}"]
        for reward, (before, after) in change.perfect.items():
            # Of a reward that never gives full marks (HPS's lie around 0.3) there is nothing to say.
            if before is not None and after is not None and max(before, after) > 0:
                label = "right in every detail" if len(change.perfect) == 1 else f"full marks by {reward}"
                parts.append(f"{label}: {before:.0%} → {after:.0%}")
        prompts = f", {change.num_prompts} prompts" if change.num_prompts else ""
        yield Text(f"{name.replace('_', ' ')}{prompts}: {'; '.join(parts)}", style="bold")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _change(change: RewardChange) -> Text:
    if change.before is None or change.after is None:
        return Text("–")
    difference = change.after - change.before
    return Text(f"{difference:+.3f}", style="green" if difference > 0 else "red")
