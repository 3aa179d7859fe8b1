"""A chunk that cannot be scored is halved until the file at fault is alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from cluster.evaluation.bridge import Bridge, StoppedError
from cluster.evaluation.scorer_actor import ScorerActor, SentFile
from cluster.evaluation.scoring import CHUNK, MAX_TRIES, score_in_parts
from cluster.pools.remote_errors import WorkerLostError
from configs.errors import RewardError
from rewards.benchmarks import make_benchmark
from rewards.benchmarks.encoding import write_picture
from rewards.benchmarks.protocol import Answer, Item, ScorerOptions
from tests.unit.rewards.benchmarks.worlds import right_picture


def files(num: int) -> list[SentFile]:
    item = Item("key", "prompt", "tag", tuple(f"{number}.png" for number in range(num)))
    return [SentFile(item, number, ".png", b"") for number in range(num)]


class Replicas:
    """Dies of one file, or as often as it is told."""

    def __init__(self, is_deadly: Callable[[int], bool], num_deaths: int = 10**6) -> None:
        self.is_deadly, self.num_deaths, self.calls = is_deadly, num_deaths, list[list[int]]()

    async def call(self, chunk: Sequence[SentFile]) -> list[Answer | RewardError]:
        numbers = [file.number for file in chunk]
        self.calls.append(numbers)
        if self.num_deaths and any(map(self.is_deadly, numbers)):
            self.num_deaths -= 1
            raise WorkerLostError("scorer-0 died during a call")
        return [{"number": number} for number in numbers]


def score(replicas: Replicas, num: int) -> list[Answer | RewardError]:
    return asyncio.run(score_in_parts(replicas.call, files(num)))


def test_a_file_that_kills_its_replica_costs_no_other_file() -> None:
    replicas = Replicas(lambda number: number == 5)
    answers = score(replicas, CHUNK)
    assert str(answers[5]) == "scorer-0 died during a call"
    assert [answer for place, answer in enumerate(answers) if place != 5] == [
        {"number": number} for number in range(CHUNK) if number != 5
    ]
    assert sum(5 in numbers for numbers in replicas.calls) == MAX_TRIES


def test_a_replica_that_dies_once_costs_nothing() -> None:
    replicas = Replicas(lambda number: True, num_deaths=1)
    assert score(replicas, 3) == [{"number": 0}, {"number": 1}, {"number": 2}]
    assert replicas.calls == [[0, 1, 2], [0, 1], [2]]


def test_a_single_file_is_tried_as_often() -> None:
    replicas = Replicas(lambda number: True)
    assert isinstance(score(replicas, 1)[0], RewardError)
    assert replicas.calls == [[0]] * MAX_TRIES


def test_an_actor_scores_what_is_sent_and_tells_what_it_cannot_read(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.evaluation.scorer_actor.check_same_sources", lambda: None)
    monkeypatch.setattr("cluster.evaluation.scorer_actor.use_network_of_node", lambda: None)
    item = make_benchmark("shapes").read_data(None).items[0]
    path = tmp_path_factory.mktemp("pictures") / "0.png"
    write_picture(right_picture(item.record), path)

    async def ask() -> list[Answer | RewardError]:
        actor = ScorerActor("shapes", ScorerOptions())
        with pytest.raises(RewardError, match="has not been started"):
            await actor.score([])
        await actor.start()
        sent = [SentFile(item, number, ".png", data) for number, data in enumerate((path.read_bytes(), b"no picture"))]
        return await actor.score(sent)

    answers = asyncio.run(ask())
    assert isinstance(answers[1], RewardError)
    assert make_benchmark("shapes").grade(item, answers[0])["correct"] == 1.0  # type: ignore[arg-type]


def test_who_waits_for_a_bridge_that_closes_is_told() -> None:
    async def story() -> str:
        bridge = Bridge()

        async def close_soon() -> None:
            await asyncio.sleep(0.01)
            bridge.close()

        closing = asyncio.create_task(close_soon())
        waiting = asyncio.to_thread(bridge.wait, asyncio.sleep(60))
        with pytest.raises(StoppedError):
            await waiting
        await closing
        with pytest.raises(StoppedError):
            bridge.begin(asyncio.sleep(60))
        return "told"

    assert asyncio.run(story()) == "told"
