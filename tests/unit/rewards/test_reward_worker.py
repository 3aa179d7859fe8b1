"""rewards/worker/batches.py: micro-batches, and failures that stay with their own picture."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from configs.errors import ConfigError, RewardBrokenError, RewardError
from configs.schema import RewardConfig
from rewards.worker import RewardWorker
from rollout.records import Prompt, Score, UInt8Array

CALLS: list[tuple[int, ...]] = []
"""Shape of every batch the reward under test was called with."""
CLOSED: list[str] = []
"""What `Closing` was asked."""
OUT_OF_MEMORY = {
    "GPU memory": "CUDA out of memory. Tried to allocate 20.00 GiB",
    "host memory": "DefaultCPUAllocator: can't allocate memory: you tried to allocate 21474836480 bytes. Error code 12",
}
"""As PyTorch says it, by the device."""
CALLED = threading.Event()
RELEASE = threading.Event()
"""Lets a reward that hangs go on."""


@pytest.fixture(autouse=True)
def _fresh() -> None:
    CALLS.clear()
    CLOSED.clear()
    CALLED.clear()
    RELEASE.clear()


class Brightness:
    """Mean of a picture over 255. `misbehave` names what it does for a prompt whose text is `bad`."""

    def __init__(self, device: str, misbehave: str = "", num_failures: int = 10**9) -> None:
        assert device == "cpu"
        self._misbehave = misbehave
        self._failures_left = num_failures

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> Any:
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
            if self._misbehave == "mapping":
                return dict(enumerate(values))
            if self._misbehave == "error":
                pairs = zip(prompts, values, strict=True)
                return [RewardError("no such picture") if p.text == "bad" else v for p, v in pairs]
            if self._misbehave == "cuda":
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            if self._misbehave == "talk":
                raise RuntimeError("first line\n" + "x" * 100_000)
            raised = {"exit": SystemExit, "interrupt": KeyboardInterrupt, "cancel": asyncio.CancelledError}
            if self._misbehave in raised:
                raise raised[self._misbehave]("the server is down")
        if self._misbehave in OUT_OF_MEMORY and len(pictures) > 8:
            raise RuntimeError(OUT_OF_MEMORY[self._misbehave])
        return [Score(value) for value in values]


class Closing:
    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[float]:
        CLOSED.append("score")
        return [0.5] * len(prompts)

    async def close(self) -> None:
        CLOSED.append("close")


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


def values(answers: list[Any]) -> list[float]:
    return [answer.value for answer in answers]


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
        ("raise", r"RuntimeError: the detector fell over \(test_reward_worker.py:\d+, in score\)"),
        ("nan", "a score must be a finite number, not nan"),
        ("error", "no such picture"),
    ],
)
def test_a_bad_picture_costs_itself_and_no_neighbour(misbehave: str, message: str) -> None:
    pictures, prompts = group(20, num_pictures=3)
    prompts[1] = Prompt("bad:20", "bad")
    worker = make_worker(misbehave, batch_size=7, max_wait_ms=10_000)
    first, mixed, last = run(score_together(group(10), (pictures, prompts), group(30)), worker)
    assert values(first) == pytest.approx([10 / 255] * 2)
    assert values([mixed[0], mixed[2]]) == pytest.approx([20 / 255] * 2)
    assert values(last) == pytest.approx([30 / 255] * 2)
    assert isinstance(mixed[1], RewardError)
    assert re.search(f"Brightness' failed on bad:20: {message}", str(mixed[1]))


def test_the_picture_at_fault_is_found_by_halving() -> None:
    worker = make_worker("raise", batch_size=32, max_wait_ms=0)
    pictures, prompts = group(10, num_pictures=32)
    prompts[21] = Prompt("bad:10", "bad")
    (answers,) = run(score_together((pictures, prompts)), worker)
    assert [i for i, answer in enumerate(answers) if isinstance(answer, RewardError)] == [21]
    assert [shape[0] for shape in CALLS] == [32, 16, 16, 8, 4, 4, 2, 1, 1, 2, 8]
    assert (worker.take_figures().num_repeated, worker.take_figures().num_calls) == (32 + 16 + 8 + 4 + 2, 0)


def test_a_reward_that_only_fails_is_not_asked_about_every_picture() -> None:
    (answers,) = run(score_together(group(10, num_pictures=64, text="bad")), make_worker("raise", batch_size=64))
    assert all(isinstance(answer, RewardError) for answer in answers)
    assert len(CALLS) <= 12


@pytest.mark.parametrize(
    ("misbehave", "message"),
    [("short", "returned 5 scores for 6 pictures"), ("mapping", r"a list of one score a picture.*not dict \{0:")],
)
def test_an_answer_of_the_wrong_shape_is_refused_and_not_made_to_fit(misbehave: str, message: str) -> None:
    """Asked about one picture after another, a reward that always returns one number would pass."""
    groups = [group(10), group(20, text="bad"), group(30)]
    results = run(score_together(*groups), make_worker(misbehave, batch_size=6, max_wait_ms=10_000))
    for answers in results:
        assert all(isinstance(answer, RewardError) and re.search(message, str(answer)) for answer in answers)
    assert CALLS == [(6, 4, 4, 3)]


@pytest.mark.parametrize("device", OUT_OF_MEMORY)
def test_the_size_that_fits_is_found_once_and_said_once(device: str) -> None:
    async def scenario(worker: RewardWorker) -> list[str | None]:
        notes = []
        for _ in range(2):
            assert values(await worker.score(*group(51, num_pictures=32))) == pytest.approx([0.2] * 32)
            notes.append(worker.take_note())
        return notes

    first, second = run(scenario, make_worker(device, batch_size=32, max_wait_ms=0))
    assert [shape[0] for shape in CALLS] == [32, 16, 8, 8, 8, 8, *[8] * 4]
    assert first == (
        f"reward '{__name__}:Brightness' ran out of memory with 16 pictures at once and takes 8 from now on; "
        "set its batch_size to 8"
    )
    assert second is None


def test_a_lost_gpu_is_told_apart_from_one_that_is_full() -> None:
    async def scenario(worker: RewardWorker) -> None:
        with pytest.raises(RewardBrokenError, match=r"CUDA error: an illegal memory access"):
            await worker.score(*group(20, text="bad"))

    run(scenario, make_worker("cuda", batch_size=2))
    assert len(CALLS) == 1, "nothing more is asked of it"


@pytest.mark.parametrize("misbehave", ["exit", "interrupt", "cancel"])
def test_nothing_that_a_reward_raises_ends_the_worker(misbehave: str) -> None:
    async def scenario(worker: RewardWorker) -> tuple[list[Any], list[Any]]:
        return await worker.score(*group(20, 1, text="bad")), await worker.score(*group(30))

    failed, scored = run(scenario, make_worker(misbehave, max_wait_ms=0))
    assert isinstance(failed[0], RewardError)
    assert values(scored) == pytest.approx([30 / 255] * 2)


def test_what_a_reward_does_is_counted() -> None:
    async def scenario(worker: RewardWorker) -> None:
        await asyncio.gather(worker.score(*group(10)), worker.score(*group(20, text="bad")))

    worker = make_worker("raise", batch_size=4, max_wait_ms=10_000)
    run(scenario, worker)
    figures = worker.take_figures()
    assert (figures.num_pictures, figures.num_failed, figures.num_calls) == (4, 2, len(CALLS))
    assert figures.num_repeated == 4 + 2
    assert figures.busy_s > 0
    assert figures.queue_s >= 0


def test_an_error_holds_no_picture_and_no_more_text_than_one_can_read() -> None:
    (answers,) = run(score_together(group(10, 1, text="bad")), make_worker("talk", max_wait_ms=0))
    assert len(str(answers[0])) < 1000
    assert answers[0].__cause__ is None
    assert answers[0].__traceback__ is None


class Pairs:
    """Group-wise: the share of the others that a picture is brighter than."""

    def __init__(self) -> None:
        self.closed = False

    def score_group(self, pictures: UInt8Array, prompt: Prompt) -> list[float]:
        CALLS.append(pictures.shape)
        levels = pictures.mean(axis=(1, 2, 3))
        return [float((level > levels).sum()) / (len(levels) - 1) for level in levels]


def test_a_group_wise_reward_sees_one_whole_group_at_a_time() -> None:
    groups = []
    for number in range(3):
        pictures, prompts = group(10 * number, num_pictures=4)
        pictures += np.arange(4, dtype=np.uint8)[:, None, None, None]
        groups.append((pictures, prompts))
    worker = RewardWorker(RewardConfig(name="pairs", kind=f"{__name__}:Pairs", batch_size=3, max_wait_ms=10_000))
    results = run(score_together(*groups), worker)
    assert [values(answers) for answers in results] == [pytest.approx([0, 1 / 3, 2 / 3, 1])] * 3
    assert CALLS == [(4, 4, 4, 3)] * 3


def plan_length(pictures: UInt8Array, prompts: Sequence[Prompt], plans: Sequence[str]) -> list[float]:
    return [float(len(plan)) for plan in plans]


def test_a_reward_that_reads_plans_is_given_each_pictures_own() -> None:
    async def scenario(worker: RewardWorker) -> tuple[list[Any], list[Any]]:
        pictures, prompts = group(10, num_pictures=3)
        return await worker.score(pictures, prompts, ["a", "bb", "ccc"]), await worker.score(pictures, prompts)

    worker = RewardWorker(RewardConfig(name=f"{__name__}:plan_length", max_wait_ms=0))
    with_plans, without = run(scenario, worker)
    assert values(with_plans) == [1, 2, 3]
    assert "reads the plans" in str(without[0])


def test_a_reward_is_closed_with_its_worker() -> None:
    run(score_together(group(10)), RewardWorker(RewardConfig(name=f"{__name__}:Closing")))
    assert CLOSED == ["score", "close"]


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


def test_scores_of_a_group_wise_reward_are_not_to_be_kept() -> None:
    with pytest.raises(ConfigError, match="'pairs' scores the pictures of a group against each other"):
        asyncio.run(RewardWorker(RewardConfig(name="pairs", kind=f"{__name__}:Pairs", cache=True)).start())


def test_scores_of_a_random_reward_are_not_to_be_kept() -> None:
    config = RewardConfig(name=f"{__name__}:Dice", cache=True)
    with pytest.raises(
        ConfigError, match=r"Dice' may score a picture differently another time.*set its cache to false"
    ):
        run(score_together(group(10)), RewardWorker(config))
    (scores,) = run(score_together(group(10)), RewardWorker(config.model_copy(update={"cache": False})))
    assert len(scores) == 2
