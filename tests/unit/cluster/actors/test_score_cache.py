"""What the key of a cached score depends on, and what it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.actors.score_cache import ScoreCache, _from_json, _to_json, reward_digest
from configs.errors import RewardError
from configs.schema import RewardConfig
from rollout.records import CountInfo, Prompt, Score

PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
PROMPT = Prompt(prompt_id="a:1", text="a red star", nouns=("star",))


def key(picture: Any = PICTURE, prompt: Prompt = PROMPT, **fields: Any) -> str:
    cache = ScoreCache("redis://127.0.0.1:1/0", RewardConfig(**{"name": "shapes", **fields}))
    return cache._key(picture, prompt)


def test_the_same_picture_of_the_same_prompt_has_the_same_key_wherever_the_prompt_stood() -> None:
    assert key() == key(PICTURE.copy(), replace(PROMPT, prompt_id="b:7"))
    assert key() == key(weight=3.0, batch_size=2, timeout_s=1.0)


@pytest.mark.parametrize(
    "other",
    [
        {"picture": PICTURE + 1},
        {"picture": PICTURE.reshape(2, 8, 3)},
        {"prompt": replace(PROMPT, text="a red ring")},
        {"prompt": replace(PROMPT, nouns=("ring",))},
        {"prompt": replace(PROMPT, numeracy_info=(CountInfo("star", 2),))},
        {"name": "hps"},
        {"options": {"model": "other"}},
    ],
)
def test_whatever_a_score_depends_on_changes_the_key(other: dict[str, Any]) -> None:
    assert key(**other) != key()


def test_a_change_of_the_rewards_own_code_changes_its_digest(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taste_of_mine.py").write_text("class Taste: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = reward_digest(RewardConfig(name="taste_of_mine:Taste"))
    (tmp_path / "taste_of_mine.py").write_text("class Taste: bias = 1\n")
    assert reward_digest(RewardConfig(name="taste_of_mine:Taste")) != before


class Stored:
    """A server that holds the same text under every key, and takes all that is written."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.written: list[str] = []

    async def mget(self, keys: Sequence[str]) -> list[bytes]:
        return [self.text] * len(keys)

    def pipeline(self, transaction: bool) -> Stored:
        return self

    async def __aenter__(self) -> Stored:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def set(self, key: str, text: str, ex: int) -> None:
        self.written.append(text)

    async def execute(self) -> None:
        return None


@pytest.mark.parametrize(
    "text",
    [
        b'{"value": 0.5, "parts": {}, "new_field": 1}',
        b"not json",
        b"[1]",
        b"7",
        b'{"parts": {}}',
        b'{"value": "high", "parts": {}}',
        b'{"value": 0.0, "parts": {}, "applicable": false}',
        b'{"value": NaN, "parts": {}}',
        b'{"value": 0.5, "parts": []}',
        b"\xff\xfe",
    ],
)
async def test_a_score_that_cannot_be_read_is_scored_again_and_told_of_once(text: bytes) -> None:
    async def compute(pictures: Any, prompts: Sequence[Prompt], plans: Any) -> list[Score]:
        return [Score(0.25)] * len(prompts)

    cache = ScoreCache("redis://127.0.0.1:1/0", RewardConfig(name="shapes"))
    stored = Stored(text)
    cache._client = stored  # type: ignore[assignment]
    first = await cache.score(compute, np.stack([PICTURE, PICTURE + 1]), [PROMPT, PROMPT])
    assert first.scores == [Score(0.25)] * 2
    assert first.num_cached == 0
    assert first.warning is not None
    assert "holds a score that cannot be read" in first.warning
    assert len(stored.written) == 2
    assert (await cache.score(compute, PICTURE[None], [PROMPT])).warning is None
    stored.text = stored.written[0].encode()
    assert (await cache.score(compute, PICTURE[None], [PROMPT])).num_cached == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[0.5]",
        '{"value": 0.5}',
        '{"value": "0.5", "parts": {}}',
        '{"value": 0.0, "parts": {}, "applicable": false}',
        '{"value": NaN, "parts": {}}',
        '{"value": 0.5, "parts": {}, "confidence": 1}',
    ],
)
def test_what_another_version_wrote_counts_as_unknown(text: str) -> None:
    assert _from_json(text) is None


@pytest.mark.parametrize("score", [Score(0.5, {"found": ["star"]}), Score(None)])
def test_a_score_comes_back_as_it_was_kept(score: Score) -> None:
    assert _from_json(_to_json(score)) == score


def test_metadata_and_the_plan_that_a_reward_reads_are_part_of_the_key() -> None:
    noted = replace(PROMPT, metadata={"ocr_text": "STAR"})
    cache = ScoreCache("redis://127.0.0.1:1/0", RewardConfig(name="shapes"))
    keys = [cache._key(PICTURE, *asked) for asked in ((PROMPT,), (noted,), (PROMPT, "a plan"), (PROMPT, "another"))]
    assert len(set(keys)) == 4
    assert key(name="taste", kind="shapes") == key(), "what computes it counts, and not what it is called"


def test_errors_are_not_kept_and_only_what_is_unknown_is_computed() -> None:
    asked: list[tuple[int, Any]] = []

    async def compute(pictures: Any, prompts: Any, plans: Any) -> list[Any]:
        asked.append((len(pictures), plans))
        return [Score(float(len(plan))) if plan != "bad" else RewardError("no luck") for plan in plans]

    async def scenario() -> list[Any]:
        cache = ScoreCache("redis://127.0.0.1:1/0", RewardConfig(name="shapes"))
        cache._client = FakeRedis()  # type: ignore[assignment]
        pictures = np.stack([PICTURE] * 3)
        return [await cache.score(compute, pictures, [PROMPT] * 3, ["a", "bad", "ccc"]) for _ in range(2)]

    first, second = asyncio.run(scenario())
    assert asked == [(3, ["a", "bad", "ccc"]), (1, ["bad"])]
    for answer in (first, second):
        assert [str(score) if isinstance(score, RewardError) else score.value for score in answer.scores] == [
            1.0,
            "no luck",
            3.0,
        ]
    assert (first.num_cached, second.num_cached) == (0, 2)


class FakeRedis:
    """MGET and a pipeline of SETs, in memory."""

    def __init__(self) -> None:
        self.stored: dict[str, str] = {}

    async def mget(self, keys: Any) -> list[str | None]:
        return [self.stored.get(key) for key in keys]

    def pipeline(self, transaction: bool) -> FakeRedis:
        return self

    async def __aenter__(self) -> FakeRedis:
        return self

    async def __aexit__(self, *_: Any) -> None:
        return None

    def set(self, key: str, value: str, ex: int) -> None:
        self.stored[key] = value

    async def execute(self) -> None:
        return None
