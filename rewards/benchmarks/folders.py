"""The folder of one benchmark run, from which each stage goes on where it was.

    OUTPUT/NAME/run.json                what the pictures were drawn with; a resumed run has to agree with it
               drawn/KEY/0.png …        every picture as it was drawn, without loss
               drawn.jsonl              a line a picture: prompt, plan, seed, guidance scale
               images/                  the official files (--images names another folder)
               answers/METRIC.jsonl     a line a file: what the scorer saw, or why it failed
               scorers/METRIC.json      what the scorer was
               results/METRIC.json      the result

A line or a file is whole or not there, so that a killed run loses what was in flight and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import ConfigError, DataError
from rewards.benchmarks.protocol import Answer, Asked, Item

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_APPENDING = threading.Lock()


class RunFolder:
    """One benchmark's folder under the output folder. Raises DataError when it cannot be made."""

    def __init__(self, root: Path, images: Path | None = None) -> None:
        """images: a folder of pictures that something else drew, in place of its own."""
        self.root = root
        self.images = images or root / "images"
        self.is_foreign = images is not None
        if images is not None and not images.is_dir():
            raise DataError(f"--images {images} is no folder")
        try:
            for name in ("drawn", "answers", "scorers", "results"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"output folder {root} cannot be made: {error}") from error

    def agree(self, settings: Mapping[str, Any]) -> None:
        """Keep what a run is made with, or compare it with what is kept. Raises ConfigError where they differ."""
        path = self.root / "run.json"
        kept = read_json(path)
        if kept is None:
            write_json(path, settings)
            return
        for name in sorted(set(kept) | set(settings)):
            if kept.get(name) != settings.get(name):
                raise ConfigError(
                    f"{self.root} was begun with {name} {kept.get(name)!r}, not {settings.get(name)!r}; go on with "
                    "that, or name another --output-dir"
                )

    def settings(self) -> Mapping[str, Any]:
        """What `agree` has kept."""
        return read_json(self.root / "run.json") or {}

    def drawn(self, item: Item) -> list[Path]:
        """Where the drawn pictures of an item are, or will be."""
        return [self.root / "drawn" / item.key / f"{number}.png" for number in range(item.num_pictures)]

    def needs_drawing(self, item: Item) -> bool:
        """Whether a picture of an item is neither drawn nor an official file."""
        return not all(path.exists() for path in self.drawn(item)) and not all(
            self.find(item, number) for number in range(len(item.files))
        )

    def find(self, item: Item, number: int) -> Path | None:
        """An official file of an item: under its own name, or of a number with other zeros or another ending."""
        return find_picture(self.images / item.files[number])

    def asked(self, items: Sequence[Item]) -> tuple[list[Asked], list[str]]:
        """The files that are there, and the names of those that are not."""
        there, missing = [], []
        for item in items:
            for number, name in enumerate(item.files):
                path = self.find(item, number)
                if path is None:
                    missing.append(name)
                else:
                    there.append(Asked(item, number, path))
        return there, missing


def find_picture(path: Path) -> Path | None:
    """The picture of that name; else one beside it whose name is the same, or the same number, with another ending."""
    if path.is_file():
        return path
    if not path.parent.is_dir():
        return None
    names = [path.with_suffix(suffix) for suffix in IMAGE_SUFFIXES]
    if found := next((name for name in names if name.is_file()), None):
        return found
    if not path.stem.isdecimal():
        return None
    return next(
        (
            other
            for other in sorted(path.parent.iterdir())
            if other.stem.isdecimal() and int(other.stem) == int(path.stem) and other.suffix in IMAGE_SUFFIXES
        ),
        None,
    )


class AnswerFile:
    """Answers of one scorer, by file and content: a picture that has changed is asked about again."""

    def __init__(self, folder: RunFolder, metric: str) -> None:
        self._path = folder.root / "answers" / f"{slug(metric)}.jsonl"
        self._lines: dict[tuple[str, str], Mapping[str, Any]] = {}
        for line in _whole_lines(self._path):
            self._lines[line["file"], line["content"]] = line
        self._hashes: dict[Path, str] = {}

    def content(self, asked: Asked) -> str:
        """A hash of the file."""
        if asked.path not in self._hashes:
            self._hashes[asked.path] = hashlib.sha256(asked.path.read_bytes()).hexdigest()
        return self._hashes[asked.path]

    def line(self, asked: Asked) -> Mapping[str, Any] | None:
        """What is known of a file: `answer`, `error`, or both, of an answer that could not be read."""
        return self._lines.get((asked.file, self.content(asked)))

    def has_answer(self, asked: Asked) -> bool:
        """Whether a file needs no further look. One that failed is tried again."""
        line = self.line(asked)
        return line is not None and "error" not in line

    def add(self, asked: Asked, answer: Answer | None, error: str | None = None) -> None:
        """Keep an answer, why there is none, or why it is of no use."""
        line: dict[str, Any] = {"file": asked.file, "key": asked.item.key, "content": self.content(asked)}
        line |= ({} if answer is None else {"answer": answer}) | ({} if error is None else {"error": error})
        append_line(self._path, line)
        self._lines[line["file"], line["content"]] = line


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """One JSON line, written at once, by one thread at a time. Raises DataError."""
    try:
        with _APPENDING, path.open("a+b") as file:
            # A killed writer may have left half a line; what comes next must not join it.
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            broken = size > 0 and file.read(1) != b"\n"
            file.write((b"\n" if broken else b"") + json.dumps(line, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # half a line of a killed run: its picture is asked about again
        if isinstance(line, dict) and {"file", "content"} <= set(line):
            yield line


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None when there is none. Raises DataError for a broken one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all. Raises DataError."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error


def slug(metric: str) -> str:
    """A metric's name as that of a file."""
    return re.sub(r"[^\w.=-]+", "_", metric).strip("_")
