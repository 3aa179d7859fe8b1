"""What the key of a cached score depends on, and what it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cluster.actors.score_cache import ScoreCache, reward_digest
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
        b'{"value": 0.5, "parts": {}, "applicable": true, "new_field": 1}',
        b"not json",
        b"[1]",
        b"7",
        b'{"parts": {}}',
        b'{"value": "high", "parts": {}, "applicable": true}',
        b'{"value": null, "parts": {}, "applicable": true}',
        b'{"value": NaN, "parts": {}, "applicable": true}',
        b'{"value": 0.5, "parts": [], "applicable": true}',
        b"\xff\xfe",
    ],
)
async def test_a_score_that_cannot_be_read_is_scored_again_and_told_of_once(text: bytes) -> None:
    async def compute(pictures: Any, prompts: Sequence[Prompt]) -> list[Score]:
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
