"""The file of scores: a line a picture. Nothing that lies there already is lost without being asked for.

OUTPUT.jsonl           {"image", "prompt", "prompt_id", "scores": {reward: {"value", "parts"} | {"error"} | null}}
OUTPUT.skipped.jsonl   {"image", "reason"}: what could not be scored at all
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from configs.errors import ConfigError, DataError, RewardError
from rewards.calling import Answer
from rewards.pictures.pairs import Pair, Skipped

Line = dict[str, Any]


def as_line(pair: Pair, answers: Mapping[str, Answer]) -> Line:
    """The output line of a picture."""
    said: dict[str, dict[str, Any] | None] = {}
    for name, answer in answers.items():
        if isinstance(answer, RewardError):
            said[name] = {"error": str(answer)}
        else:
            said[name] = None if answer.value is None else {"value": answer.value, "parts": dict(answer.parts)}
    return {"image": pair.name, "prompt": pair.prompt.text, "prompt_id": pair.prompt.prompt_id, "scores": said}


class ScoreFile:
    """Writes lines; each window of them is on its way to the disk when `write` returns.

    An existing file is refused, unless it is to be gone on with or to be replaced. It is replaced by the first line
    and not before: scores of an earlier run outlive a model that cannot be loaded.
    """

    def __init__(self, path: Path, prompts: Path, names: Sequence[str], *, resume: bool, overwrite: bool) -> None:
        """prompts: the file of prompts, which is never written to; names: of the rewards, in order.

        Raises DataError when the file may not or cannot be written, ConfigError when it holds other rewards' scores.
        """
        if path.exists() and prompts.exists() and path.samefile(prompts):
            raise DataError(f"--output {path} is the file of the prompts; name another one")
        has_lines = path.exists() and path.stat().st_size > 0
        if has_lines and not (resume or overwrite):
            raise DataError(
                f"{path} holds scores already; --resume goes on with it, --overwrite replaces it, "
                "--output names another file"
            )
        self._path = path
        self._end = 0
        self.lines: list[Line] = []
        """What is in the file already and stays; without the reasons."""
        if has_lines and resume:
            self._read(names)
        self._done = {(line["image"], line["prompt_id"]) for line in self.lines}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{path}: cannot write the scores: {error.strerror or error}") from error

    @property
    def skipped_path(self) -> Path:
        """Where what is skipped is written down."""
        return self._path.with_name(f"{self._path.stem}.skipped.jsonl")

    def is_done(self, pair: Pair) -> bool:
        """Whether a picture's line is in the file that is gone on with."""
        return (pair.name, pair.prompt.prompt_id) in self._done

    def begin(self) -> None:
        """Drop what is to be replaced, or the torn end of what is gone on with."""
        self._file.truncate(self._end)

    def write(self, lines: Sequence[Line]) -> None:
        """Append lines, whole or not at all as far as the disk allows."""
        self._file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self._file.flush()

    def write_skipped(self, skipped: Sequence[Skipped]) -> None:
        """All of them, in place of those of an earlier run; no file when there are none."""
        if not skipped:
            self.skipped_path.unlink(missing_ok=True)
            return
        lines = (json.dumps({"image": e.name, "reason": e.reason}, ensure_ascii=False) + "\n" for e in skipped)
        self.skipped_path.write_text("".join(lines), encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def _read(self, names: Sequence[str]) -> None:
        for number, (line, end) in enumerate(_whole_lines(self._path), start=1):
            try:
                read = json.loads(line)
                scores = read["scores"]
                kept = {"image": read["image"], "prompt_id": read["prompt_id"], "scores": dict(scores)}
            except (ValueError, LookupError, TypeError) as error:
                raise DataError(
                    f"{self._path}:{number}: not a line of scores; --resume cannot go on with it"
                ) from error
            if list(scores) != list(names):
                raise ConfigError(
                    f"{self._path}:{number} holds scores of {', '.join(scores)}, not of {', '.join(names)}; --resume "
                    "goes on with the same rewards"
                )
            for score in filter(None, kept["scores"].values()):
                score.pop("parts", None)
            self.lines.append(kept)
            self._end = end


def _whole_lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """Each line that is whole, and where it ends."""
    end = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield line, end
