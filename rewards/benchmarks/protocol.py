"""What a benchmark is: prompts, official files, a scorer that says what it saw, rules that grade it, measures.

    read_data ─► Items ─► (draw, encode) ─► official files ─► Scorer ─► answers ─► grade ─► values ─► measures

A scorer's answers are raw (boxes, replies, probabilities) and kept; `grade` and `measures` are pure, so that rules can
run again without drawing, without a model and without a judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from configs.errors import RewardError
from rewards.benchmarks.statistics import Measure

Answer = Mapping[str, Any]
"""What a scorer saw in one file, as JSON has it."""
Values = Mapping[str, float]
"""The grades of one file by name."""


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt of a benchmark, and the official files that its pictures become."""

    key: str
    """Unique in the benchmark; a name of a folder."""
    prompt: str
    """What is drawn, unchanged."""
    tag: str
    """The category that it is counted in."""
    files: tuple[str, ...]
    """Official paths within the folder of pictures; their ending says the format."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What the official data say of it."""
    cells: int = 1
    """Pictures in a file: 1, or 4 as a grid of two by two."""
    sidecars: Mapping[str, str] = field(default_factory=dict)
    """Other files that the official scripts expect beside the pictures: path -> text."""

    @property
    def num_pictures(self) -> int:
        """Pictures that are drawn of the prompt."""
        return len(self.files) * self.cells


@dataclass(frozen=True, slots=True)
class Data:
    """A benchmark's prompts as read from a user's copy."""

    items: tuple[Item, ...]
    files: Mapping[str, str]
    """Name -> SHA-256 of each file that was read."""
    departures: tuple[str, ...] = ()
    """Files that are not those the published numbers were made with, and others that matter."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One official file to score."""

    item: Item
    number: int
    """Its place in `item.files`."""
    path: Path

    @property
    def file(self) -> str:
        return self.item.files[self.number]


class UnreadableError(RewardError):
    """A judge answered what cannot be read. Its answer is kept, and the picture is asked about again next time."""

    def __init__(self, message: str, answer: Answer) -> None:
        super().__init__(message)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class ScorerOptions:
    """What a user says of the scorer."""

    device: str = "cpu"
    settings: Mapping[str, str] = field(default_factory=dict)
    """`--scorer NAME=VALUE`."""
    judge_url: str | None = None
    judge_model: str | None = None
    judge_key_env: str | None = None
    data: Path | None = None
    """The user's copy of the official files: judges' questions are read from it, too."""


class Scorer(Protocol):
    """Looks at pictures. Holds models, or a connection to a judge."""

    def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Answer | RewardError]]:
        """What it saw in each file, as soon as it has it, in any order; a RewardError costs that file only."""

    def about(self) -> Mapping[str, Any]:
        """Names, hashes and settings of its models, for the result."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True, slots=True)
class Graded:
    """One prompt with the grades of its files; None where a picture is missing or could not be judged."""

    item: Item
    values: tuple[Values | None, ...]


class Benchmark(Protocol):
    """One benchmark's prompts, protocol and aggregation."""

    name: str
    title: str
    repository: str
    """The official one, OWNER/NAME; empty where there is none."""
    needs: str
    """What `--data` has to name, for people."""
    picture_score: str
    """The name among `Values` of a picture's own score, by which prompts are sorted from worst to best."""
    settings: Mapping[str, str]
    """Names of `--scorer` with their meaning."""

    def read_data(self, path: Path | None) -> Data:
        """The prompts of a user's copy. Raises DataError, saying what is missing."""

    def variant(self, options: ScorerOptions) -> Mapping[str, str]:
        """What the scorer has instead of the official one, by kind: empty for the official one. Raises ConfigError."""

    def open_scorer(self, options: ScorerOptions) -> Scorer:
        """Load the models, or connect to the judge. Raises ConfigError or ModelError."""

    def grade(self, item: Item, answer: Answer) -> Values:
        """The official rules on one answer. Raises RewardError when it cannot be read."""

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """Everything that is reported, the overall score first. A missing grade counts as the lowest."""
