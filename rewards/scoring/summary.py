"""What came of scoring a folder, in a table: numbers only, so that it stays small however many pictures there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from rewards.pictures.pairs import Skipped

NUM_SHOWN: Final = 20
"""Of what was skipped, and of what failed."""


@dataclass(slots=True)
class _Column:
    values: list[float] = field(default_factory=list)
    num_inapplicable: int = 0
    num_failed: int = 0


@dataclass(slots=True)
class Summary:
    """Fed with the lines that were written."""

    names: Sequence[str]
    _columns: dict[str, _Column] = field(init=False)
    _failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._columns = {name: _Column() for name in self.names}

    @property
    def num_failed(self) -> int:
        return sum(column.num_failed for column in self._columns.values())

    def add(self, line: Mapping[str, Any]) -> None:
        """Count the scores of one picture."""
        for name, score in line["scores"].items():
            column = self._columns[name]
            if score is None:
                column.num_inapplicable += 1
            elif "error" in score:
                column.num_failed += 1
                if len(self._failures) < NUM_SHOWN:
                    self._failures.append(score["error"])
            else:
                column.values.append(score["value"])

    def show(self, skipped: Sequence[Skipped], skipped_path: Path, console: Console) -> None:
        """Print a row a reward, what failed and what was skipped."""
        table = Table("reward", *("mean", "std", "min", "max", "pictures", "not applicable", "failed"), expand=False)
        table.columns[0].overflow = "fold"
        for name, column in self._columns.items():
            values = np.array(column.values)
            numbers = [values.mean(), values.std(), values.min(), values.max()] if len(values) else []
            cells = [f"{number:.4f}" for number in numbers] or ["-"] * 4
            table.add_row(name, *cells, *map(str, (len(values), column.num_inapplicable, column.num_failed)))
        console.print(table)
        shown = [str(entry) for entry in skipped[:NUM_SHOWN]]
        _list(f"{len(skipped)} skipped", shown, len(skipped), f"all of them: {skipped_path}", console)
        _list(f"{self.num_failed} failed", self._failures, self.num_failed, "all of them are in the scores", console)


def _list(title: str, shown: Sequence[str], num: int, where_all_are: str, console: Console) -> None:
    if not num:
        return
    console.print(f"{title}:", style="yellow")
    for text in shown:
        console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)
    if num > len(shown):
        console.print(f"  and {num - len(shown)} more", highlight=False)
    console.print(f"  {where_all_are}", markup=False, highlight=False, soft_wrap=True)
