"""rewards/worker/batches.py: micro-batches, retries, and failures that stay with their own group."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from configs.errors import ConfigError, RewardError
from configs.schema import RewardConfig
from rewards.worker import RewardWorker
from rollout.records import Prompt, Score, UInt8Array

CALLS: list[tuple[int, ...]] = []
"""Shape of every batch the reward under test was called with."""
CALLED = threading.Event()
RELEASE = threading.Event()
"""Lets a reward that hangs go on."""


@pytest.fixture(autouse=True)
def _fresh() -> None:
    CALLS.clear()
    CALLED.clear()
    RELEASE.clear()


class Brightness:
    """Mean of a picture over 255. `misbehave` names what it does for a prompt whose text is `bad`."""

    def __init__(self, device: str, misbehave: str = "", num_failures: int = 10**9) -> None:
        assert device == "cpu"
        self._misbehave = misbehave
        self._failures_left = num_failures

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        CALLS.append(pictures.shape)
        CALLED.set()
        values = [float(picture.mean()) / 255 for picture in pictures]
        if any(prompt.text == "bad" for prompt in prompts) and self._failures_left > 0:
            self._failures_left -= 1
            if self._misbehave == "raise":
                raise RuntimeError("the detector fell over")
            if self._misbehave == "hang":
                assert RELEASE.wait(timeout=20)
            if self._misbehave == "short":
                values = values[:-1]
            if self._misbehave == "nan":
                values = [float("nan") if p.text == "bad" else v for p, v in zip(prompts, values, strict=True)]
            if self._misbehave == "floats":
                return values  # type: ignore[return-value]
        return [Score(value) for value in values]


class Dice(Brightness):
    is_random = True


def make_worker(misbehave: str = "", num_failures: int = 10**9, **fields: Any) -> RewardWorker:
    options = {"misbehave": misbehave, "num_failures": num_failures}
    return RewardWorker(RewardConfig(name=f"{__name__}:Brightness", options=options, **fields))


def group(level: int, num_pictures: int = 2, text: str = "good", size: int = 4) -> tuple[UInt8Array, list[Prompt]]:
    pictures = np.full((num_pictures, size, size, 3), level, dtype=np.uint8)
    return pictures, [Prompt(prompt_id=f"{text}:{level}", text=text)] * num_pictures


def run(scenario: Callable[[RewardWorker], Any], worker: RewardWorker) -> Any:
    async def whole() -> Any:
        await worker.start()
        try:
            return await asyncio.wait_for(scenario(worker), timeout=20)
        finally:
            RELEASE.set()
            await worker.close()

    return asyncio.run(whole())


def score_together(*groups: tuple[UInt8Array, list[Prompt]]) -> Callable[[RewardWorker], Any]:
    async def scenario(worker: RewardWorker) -> list[Any]:
        return await asyncio.gather(*(worker.score(*one) for one in groups), return_exceptions=True)

    return scenario


def values(scores: list[Score]) -> list[float]:
    return [score.value for score in scores]


def test_scores_come_back_in_the_order_of_the_pictures() -> None:
    pictures = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 2, 3), np.uint8)
    prompts = [Prompt(prompt_id="a", text="a")] * 5
    (scores,) = run(score_together((pictures, prompts)), make_worker(batch_size=2, max_wait_ms=0))
    assert values(scores) == pytest.approx([i / 255 for i in range(5)])


def test_pictures_of_several_groups_share_one_batch() -> None:
    groups = [group(level) for level in (10, 20, 30)]
    results = run(score_together(*groups), make_worker(batch_size=6, max_wait_ms=10_000))
    assert [values(scores) for scores in results] == [pytest.approx([level / 255] * 2) for level in (10, 20, 30)]
    assert CALLS == [(6, 4, 4, 3)]


def test_a_batch_that_does_not_fill_leaves_after_max_wait() -> None:
    (scores,) = run(score_together(group(10)), make_worker(batch_size=64, max_wait_ms=1))
    assert len(scores) == 2
    assert CALLS == [(2, 4, 4, 3)]


def test_a_call_bigger_than_the_batch_is_cut() -> None:
    (scores,) = run(score_together(group(10, num_pictures=7)), make_worker(batch_size=3, max_wait_ms=0))
    assert len(scores) == 7
    assert [shape[0] for shape in CALLS] == [3, 3, 1]


def test_pictures_of_different_sizes_are_not_mixed() -> None:
    groups = [group(10, size=4), group(20, size=8), group(30, size=4)]
    results = run(score_together(*groups), make_worker(batch_size=8, max_wait_ms=1))
    assert sorted(CALLS) == [(2, 8, 8, 3), (4, 4, 4, 3)]
    assert [values(scores)[0] for scores in results] == pytest.approx([10 / 255, 20 / 255, 30 / 255])


@pytest.mark.parametrize(
    ("misbehave", "message"),
    [
        ("raise", "RuntimeError: the detector fell over"),
        ("short", "returned 0 scores for 1 pictures"),
        ("nan", "finite number, not nan"),
        ("floats", "must return a list of Score"),
    ],
)
def test_a_bad_picture_fails_its_own_group_only(misbehave: str, message: str) -> None:
    groups = [group(10), group(20, text="bad"), group(30)]
    first, bad, last = run(score_together(*groups), make_worker(misbehave, batch_size=6, max_wait_ms=10_000, retries=1))
    assert values(first) == pytest.approx([10 / 255] * 2)
    assert values(last) == pytest.approx([30 / 255] * 2)
    assert isinstance(bad, RewardError)
    assert "Brightness' failed on bad:20:" in str(bad)
    assert message in str(bad)
    assert [shape[0] for shape in CALLS[:2]] == [6, 6], "the batch is tried twice before it is taken apart"


def test_a_reward_that_fails_once_is_tried_again() -> None:
    worker = make_worker("raise", num_failures=1, batch_size=2, retries=1)
    (scores,) = run(score_together(group(10, text="bad")), worker)
    assert values(scores) == pytest.approx([10 / 255] * 2)
    assert [shape[0] for shape in CALLS] == [2, 2]


def test_a_reward_without_retries_is_not_tried_again_as_a_batch() -> None:
    worker = make_worker("raise", num_failures=10, batch_size=1, max_wait_ms=0, retries=0)
    (error,) = run(score_together(group(10, num_pictures=1, text="bad")), worker)
    assert isinstance(error, RewardError)
    assert len(CALLS) == 1


def test_a_reward_that_hangs_fails_in_time_and_recovers_when_it_is_free() -> None:
    async def scenario(worker: RewardWorker) -> list[Score]:
        with pytest.raises(RewardError, match=r"bad:20: no answer within timeout_s \(0\.1 s\)"):
            await worker.score(*group(20, text="bad"))
        with pytest.raises(RewardError, match="good:30: no answer"):
            await worker.score(*group(30))
        RELEASE.set()
        return await worker.score(*group(40))

    scores = run(scenario, make_worker("hang", timeout_s=0.1, max_wait_ms=0))
    assert values(scores) == pytest.approx([40 / 255] * 2)


def test_the_event_loop_stays_free_while_the_reward_runs() -> None:
    async def scenario(worker: RewardWorker) -> list[Score]:
        slow = asyncio.create_task(worker.score(*group(20, text="bad")))
        assert await asyncio.to_thread(CALLED.wait, 10)
        assert not slow.done()
        RELEASE.set()
        return await slow

    assert len(run(scenario, make_worker("hang", max_wait_ms=0))) == 2


def test_closing_fails_what_still_waits() -> None:
    async def scenario(worker: RewardWorker) -> None:
        waiting = asyncio.create_task(worker.score(*group(20, text="bad")))
        assert await asyncio.to_thread(CALLED.wait, 10)
        await worker.close()
        with pytest.raises(RewardError, match="was closed before it answered"):
            await waiting
        with pytest.raises(RewardError, match="is not running"):
            await worker.score(*group(20))

    run(scenario, make_worker("hang", max_wait_ms=0))


def test_a_cancelled_call_leaves_its_neighbours_alone() -> None:
    async def scenario(worker: RewardWorker) -> list[Score]:
        cancelled = asyncio.create_task(worker.score(*group(20)))
        kept = asyncio.create_task(worker.score(*group(30)))
        await asyncio.sleep(0)
        cancelled.cancel()
        return await kept

    assert values(run(scenario, make_worker(batch_size=4, max_wait_ms=20))) == pytest.approx([30 / 255] * 2)
    assert CALLS == [(2, 4, 4, 3)]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), "must be uint8"),
        (np.zeros((1, 4, 4, 4), np.uint8), "3 channels"),
        (np.zeros((4, 4, 3), np.uint8), r"\[B, height, width, 3\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), "2 pictures came with 1 prompts"),
        (np.zeros((1, 0, 4, 3), np.uint8), "empty"),
        ([[0]], "NumPy array, not list"),
    ],
)
def test_wrong_pictures_are_refused_before_they_reach_the_reward(pictures: Any, message: str) -> None:
    async def scenario(worker: RewardWorker) -> None:
        with pytest.raises(ValueError, match=message):
            await worker.score(pictures, [Prompt(prompt_id="a", text="a")])

    run(scenario, make_worker())
    assert not CALLS


def test_an_unknown_option_is_refused_at_the_start() -> None:
    worker = RewardWorker(RewardConfig(name=f"{__name__}:Brightness", options={"colour": "red"}))
    with pytest.raises(ConfigError, match="does not take options"):
        asyncio.run(worker.start())


def test_scores_of_a_random_reward_are_not_to_be_kept() -> None:
    config = RewardConfig(name=f"{__name__}:Dice", cache=True)
    with pytest.raises(
        ConfigError, match=r"Dice' may score a picture differently another time.*set its cache to false"
    ):
        run(score_together(group(10)), RewardWorker(config))
    (scores,) = run(score_together(group(10)), RewardWorker(config.model_copy(update={"cache": False})))
    assert len(scores) == 2
