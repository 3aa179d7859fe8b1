"""What all judged benchmarks share: a judge's name and address, and the official script with its questions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from configs.errors import ConfigError, DataError
from rewards.benchmarks.judged.scorer import (
    BACKOFF_S,
    NUM_PARALLEL,
    PATIENCE_S,
    RETRIES,
    TIMEOUT_S,
    JudgeProtocol,
    JudgeScorer,
    last_reply,
)
from rewards.benchmarks.judged.script import OfficialScript
from rewards.benchmarks.protocol import Answer, Data, Graded, Item, ScorerOptions, Values
from rewards.benchmarks.provenance import sha256_of
from rewards.benchmarks.statistics import Measure
from rewards.clients import JsonClient, read_api_key
from rewards.clients.json_client import check_url


class ServedBenchmark(ABC):
    """A benchmark whose pictures a vision-language model on a server looks at."""

    name: str
    title: str
    repository: str
    needs: str
    picture_score: str
    judges: ClassVar[tuple[str, ...]]
    """Names of the official judge; the first is asked for unless told otherwise."""
    script: ClassVar[str]
    """The official script, by its path within the user's copy."""
    files: ClassVar[Mapping[str, str]]
    """Path within the user's copy -> SHA-256, of prompts and script."""
    settings: Mapping[str, str] = {
        "num_parallel": f"pictures that are asked about at once; default: {NUM_PARALLEL}",
        "timeout_s": f"seconds for one reply; default: {TIMEOUT_S:g}",
        "retries": f"further tries where the server does not answer; default: {RETRIES}",
        "backoff_s": f"seconds before the first of them; doubles with each; default: {BACKOFF_S:g}",
    }

    @abstractmethod
    def items(self, files: Mapping[str, Path]) -> tuple[Item, ...]:
        """The prompts, from the files by their names. Raises DataError."""

    @abstractmethod
    def grade(self, item: Item, answer: Answer) -> Values:
        """See `Benchmark.grade`."""

    @abstractmethod
    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """See `Benchmark.measures`."""

    def read_data(self, path: Path | None) -> Data:
        """Prompts and script of a user's copy. Raises DataError."""
        places = self._find(path)
        hashes = {name: sha256_of(place) for name, place in places.items()}
        changed = [f"{name} is not the official file" for name, found in hashes.items() if found != self.files[name]]
        return Data(self.items(places), hashes, tuple(changed))

    def _find(self, path: Path | None) -> dict[str, Path]:
        if path is None:
            raise DataError(f"{self.name} needs --data: {self.needs}")
        places = {}
        for name in self.files:
            place = next((one for one in (path / name, path / Path(name).name) if one.is_file()), None)
            if place is None:
                raise DataError(f"--data {path} lacks {name}; {self.name} needs {self.needs}")
            places[name] = place
        return places

    def variant(self, options: ScorerOptions) -> Mapping[str, str]:
        """Another judge than the official one. Raises ConfigError without an address."""
        if not options.judge_url:
            raise ConfigError(f"{self.name} needs --judge-url: an OpenAI-compatible server with {self.judges[0]}")
        check_url(options.judge_url, "--judge-url", "http://localhost:8000/v1")
        judge = self.judge(options)
        return {} if judge in self.judges else {"judge": judge}

    def judge(self, options: ScorerOptions) -> str:
        """The model that is asked for."""
        return options.judge_model or self.judges[0]

    def num_parallel(self, options: ScorerOptions) -> int:
        """Pictures that are asked about at once."""
        return int(options.settings.get("num_parallel", NUM_PARALLEL))

    def connect(self, options: ScorerOptions) -> JsonClient:
        """A client of the server. Raises ConfigError."""
        assert options.judge_url is not None
        number = {name: float(value) for name, value in options.settings.items()}
        return JsonClient(
            url=f"{options.judge_url.rstrip('/')}/chat/completions",
            timeout_s=number.get("timeout_s", TIMEOUT_S),
            retries=int(number.get("retries", RETRIES)),
            backoff_s=number.get("backoff_s", BACKOFF_S),
            api_key=read_api_key(options.judge_key_env, "--judge-key-env"),
            patience_s=PATIENCE_S,
        )


class JudgedBenchmark(ServedBenchmark):
    """One whose judge gives a picture one reply, to the questions of an official script."""

    request: ClassVar[Mapping[str, Any]]
    """Fields of each request, as the script has them."""
    as_jpeg: ClassVar[bool]

    @abstractmethod
    def values(self, item: Item, picture: str) -> Mapping[str, Any]:
        """What the names in the script's messages stand for; picture: in base64."""

    @abstractmethod
    def read(self, reply: str) -> Values:
        """The grades in a reply. Raises RewardError for one that the official script would ask for again."""

    def grade(self, item: Item, answer: Answer) -> Values:
        """See `Benchmark.grade`."""
        return self.read(last_reply(answer))

    def open_scorer(self, options: ScorerOptions) -> JudgeScorer:
        """Connect to the judge. Raises ConfigError and DataError."""
        script = OfficialScript(self._find(options.data)[self.script])
        protocol = JudgeProtocol(
            messages=lambda item, picture: script.messages(self.values(item, picture)),
            settings=self.request,
            as_jpeg=self.as_jpeg,
            read=self.read,
        )
        return JudgeScorer(self.connect(options), self.judge(options), protocol, self.num_parallel(options))
