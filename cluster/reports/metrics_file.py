"""metrics.jsonl as its run writes it: all steps are in memory, too, and the file is made again from there.

write ─► rows ─► file                     a disk that is full now may have room after the next step
           └──── the whole file again     where somebody has removed it, or its disk has gone and come back
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.reports.metrics import METRIC_PREFIXES, METRICS, MetricsRow, finite_or_none, read_metrics


class MetricsWriter:
    """Appends one line a step; each is on its way to the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        """Creates the file, or goes on with it: a line that a killed run has left half written is dropped.

        Raises DataError for another line that is broken.
        """
        self._path = path
        path.touch()
        _drop_torn_line(path)
        self._rows = read_metrics(path)
        self._open()

    @property
    def rows(self) -> Sequence[MetricsRow]:
        """Of all steps, in order; those that could not be written, too."""
        return self._rows

    def write(self, metrics: Mapping[str, float]) -> bool:
        """False when the file was not there any more, so that it was made again, with its folder.

        Raises ValueError for a key that no table documents, and OSError when the disk takes no more: the row is kept,
        and written with the next one.
        """
        unknown = [key for key in metrics if key not in METRICS and not key.startswith(tuple(METRIC_PREFIXES))]
        if unknown:
            names = ", ".join(sorted(unknown))
            raise ValueError(f"undocumented metrics {names}; add them to cluster.reports.metrics.METRICS")
        self._rows.append({key: finite_or_none(value) for key, value in metrics.items()})
        if (is_there := self._is_there()) and not self._is_outdated:
            self._append(self._rows[self._num_written :])
        else:
            self._make_again()
        return is_there

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`: those steps are made again.

        Raises OSError when the disk takes no more: the file is then made again with the next step.
        """
        kept = [row for row in self._rows if (row["step"] or 0) <= step]
        if len(kept) < len(self._rows) or not self._is_there():
            self._rows, self._is_outdated = kept, True
            self._make_again()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        # Without a buffer: what does not fit on the disk must not come out of it later, in part.
        self._file = self._path.open("ab", buffering=0)
        self._num_written = len(self._rows)
        self._is_outdated = False

    def _is_there(self) -> bool:
        """Whether the path still leads to the file that is open."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except OSError:
            return False

    def _append(self, rows: Sequence[MetricsRow]) -> None:
        data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
        whole = os.fstat(self._file.fileno()).st_size
        try:
            while data:
                data = data[self._file.write(data) or 0 :]
        except OSError:
            os.ftruncate(self._file.fileno(), whole)
            raise
        self._num_written = len(self._rows)

    def _make_again(self) -> None:
        """All rows into a new file, which then takes the place of the old one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(self._path.name + ".tmp")
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in self._rows)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self._path)
        self._file.close()
        self._open()


def _drop_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
