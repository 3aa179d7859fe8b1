"""The Ray actor around one replica of a benchmark's scorer."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.actors.network import use_network_of_node
from cluster.actors.sources import check_same_sources
from cluster.actors.spawning import node_id
from configs.errors import RewardError
from rewards.benchmarks.protocol import Answer, Asked, Item, Scorer, ScorerOptions


@dataclass(frozen=True, slots=True)
class SentFile:
    """An official file on its way to a scorer. Produced by `PoolScorer`, consumed by `ScorerActor`."""

    item: Item
    number: int
    """Its place in `item.files`."""
    suffix: str
    """Of its name, with the dot: .png."""
    data: bytes
    """What it holds."""


class ScorerActor:
    """Scores files that come with the call: it shares no folder with the launcher.

    asyncio, so that it answers heartbeats while its scorer, in a thread, looks at pictures.
    """

    def __init__(self, name: str, options: ScorerOptions) -> None:
        """name: of the benchmark. options: files that they name are on this node, too."""
        self._name, self._options = name, options
        self._scorer: Scorer | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> Mapping[str, Any]:
        """Load the models; returns what they are. Raises ConfigError and ModelError."""
        use_network_of_node()
        check_same_sources()
        from rewards.benchmarks import make_benchmark

        benchmark = make_benchmark(self._name)
        self._scorer = await asyncio.to_thread(benchmark.open_scorer, self._options)
        return self._scorer.about()

    async def score(self, files: Sequence[SentFile]) -> list[Answer | RewardError]:
        """One answer a file, in order. Raises RewardError for what is wrong with all of them."""
        async with self._turn:
            try:
                return await asyncio.to_thread(self._score, files)
            except RewardError:
                raise
            except Exception as error:
                raise RewardError(f"scorer of {self._name}: {type(error).__name__}: {error}") from error

    def _score(self, files: Sequence[SentFile]) -> list[Answer | RewardError]:
        if self._scorer is None:
            raise RewardError(f"the scorer of {self._name} has not been started")
        with tempfile.TemporaryDirectory(prefix="bicot-scorer-") as folder:
            asked = []
            for place, file in enumerate(files):
                path = Path(folder) / f"{place}{file.suffix}"
                path.write_bytes(file.data)
                asked.append(Asked(file.item, file.number, path))
            answers = {one.path: answer for one, answer in self._scorer.answers(asked)}
            return [answers[one.path] for one in asked]

    async def ping(self) -> str:
        return node_id()

    async def close(self) -> None:
        """Free what the scorer holds."""
        if self._scorer is not None:
            self._scorer.close()
