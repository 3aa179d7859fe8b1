"""Scores that were given before, kept in Redis by content.

    pictures, prompts ─► keys ─► MGET ─┬─ known ────────────────────────────► scores, in order
                                       └─ unknown ─► the reward ─► SET ─────►

    bicot:score:DIGEST   string   JSON {"value", "parts"}; value null: does not apply, for KEEP_S after it was written

A key is a digest of all that a score may depend on: the picture's bytes and size, the prompt with its
metadata, the plan where the reward reads it, what computes it with which options, and the source of its module and of
those beside it. (Model
weights enter by their name: a folder whose weights change in place must change its name, too.)

Redis may go at any time: the cache is then left alone for a while, and everything is scored.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from redis import asyncio as redis
from redis.exceptions import RedisError

from configs.local.masking import mask_text
from configs.schema import RewardConfig
from rewards.calling import Answer
from rewards.registry import reward_path
from rewards.worker import RewardFigures
from rollout.records import Prompt, Score, UInt8Array

KEEP_S: Final = 7 * 24 * 3600
SOCKET_TIMEOUT_S: Final = 1.0
LEFT_ALONE_S: Final = 60.0
"""After a failure, before the server is tried again."""

Compute = Callable[[UInt8Array, Sequence[Prompt], Sequence[str] | None], Awaitable[list[Answer]]]


@dataclass(frozen=True, slots=True)
class RewardAnswer:
    """What a replica answers. Produced by `cluster.actors.reward.RewardActor`; consumed by `cluster.groups.scoring`."""

    scores: list[Answer]
    """One a picture; an error where it could not be scored."""
    num_cached: int = 0
    """Of which so many were known before."""
    warning: str | None = None
    """For the user; given once in a replica's life."""
    figures: RewardFigures = field(default_factory=RewardFigures)
    """What the replica did since its last answer."""


class ScoreCache:
    """The scores of one reward. To be used within one event loop."""

    def __init__(self, url: str, reward: RewardConfig) -> None:
        self._shown_url = mask_text(url)
        self._scope = reward_digest(reward)
        self._client = redis.Redis.from_url(
            url, socket_timeout=SOCKET_TIMEOUT_S, socket_connect_timeout=SOCKET_TIMEOUT_S
        )
        self._left_alone_until_s = -math.inf
        self._has_warned = False

    async def score(
        self, compute: Compute, pictures: UInt8Array, prompts: Sequence[Prompt], plans: Sequence[str] | None = None
    ) -> RewardAnswer:
        """The scores of `pictures`, of which `compute` is asked for those that are not known. Errors are not kept.

        plans: what pictures were drawn by, for a reward that reads them; None for one that does not.
        Raises what `compute` raises; never because of Redis.
        """
        shown = [None] * len(prompts) if plans is None else plans
        keys = [
            self._key(picture, prompt, plan) for picture, prompt, plan in zip(pictures, prompts, shown, strict=True)
        ]
        known, warning = await self._read(keys)
        missing = [index for index, key in enumerate(keys) if key not in known]
        answers: dict[str, Answer] = dict(known)
        if missing:
            plans_missing = None if plans is None else [plans[index] for index in missing]
            computed = await compute(pictures[missing], [prompts[index] for index in missing], plans_missing)
            answers |= {keys[index]: answer for index, answer in zip(missing, computed, strict=True)}
            fresh = {key: answers[key] for key in (keys[index] for index in missing)}
            not_written = await self._write({k: a for k, a in fresh.items() if isinstance(a, Score)})
            warning = warning or not_written
        return RewardAnswer([answers[key] for key in keys], len(keys) - len(missing), warning)

    def _key(self, picture: UInt8Array, prompt: Prompt, plan: str | None = None) -> str:
        asked = {name: value for name, value in asdict(prompt).items() if name != "prompt_id"}
        if not prompt.metadata:
            del asked["metadata"]
        if plan is not None:
            asked["plan"] = plan
        digest = hashlib.sha256(f"{self._scope}\0{picture.shape}\0{json.dumps(asked, sort_keys=True)}\0".encode())
        digest.update(picture.tobytes())
        return f"bicot:score:{digest.hexdigest()}"

    async def _read(self, keys: Sequence[str]) -> tuple[dict[str, Score], str | None]:
        if time.monotonic() < self._left_alone_until_s:
            return {}, None
        try:
            texts = await self._client.mget(keys)
        except (RedisError, OSError) as error:
            return {}, self._leave_alone(error)
        known: dict[str, Score] = {}
        warning: str | None = None
        for key, text in zip(keys, texts, strict=True):
            if text is None:
                continue
            if (score := _from_json(text)) is not None:
                known[key] = score
            else:
                warning = warning or self._warn("holds a score that cannot be read")
        return known, warning

    async def _write(self, scores: dict[str, Score]) -> str | None:
        if time.monotonic() < self._left_alone_until_s:
            return None
        try:
            async with self._client.pipeline(transaction=False) as pipe:
                for key, score in scores.items():
                    pipe.set(key, _to_json(score), ex=KEEP_S)
                await pipe.execute()
        except (RedisError, OSError) as error:
            return self._leave_alone(error)
        return None

    def _leave_alone(self, error: Exception) -> str | None:
        self._left_alone_until_s = time.monotonic() + LEFT_ALONE_S
        return self._warn(f"does not answer ({error or type(error).__name__})")

    def _warn(self, what: str) -> str | None:
        """None after the first time."""
        if self._has_warned:
            return None
        self._has_warned = True
        return f"the score cache at {self._shown_url} {what}; such pictures are scored"


def reward_digest(reward: RewardConfig) -> str:
    """Of all of a reward that its scores depend on, besides picture and prompt.

    Raises ConfigError for an unknown name, ModuleNotFoundError when its package is not there.
    """
    path = reward_path(reward.implementation)
    spec = importlib.util.find_spec(path.partition(":")[0])
    digest = hashlib.sha256(json.dumps([path, reward.options], sort_keys=True, default=str).encode())
    if spec is not None and spec.origin is not None:
        for source in sorted(Path(spec.origin).parent.glob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()


def _from_json(text: str | bytes) -> Score | None:
    """None for what another version of bicot, or another program, has written."""
    try:
        tree = json.loads(text)
        value, parts = tree["value"], tree["parts"]
    except (ValueError, LookupError, TypeError):
        return None
    is_number = isinstance(value, int | float) and math.isfinite(value)
    is_known = (value is None or is_number) and isinstance(parts, dict) and tree.keys() == {"value", "parts"}
    return Score(value, parts) if is_known else None


def _to_json(score: Score) -> str:
    """Parts that JSON does not know become text: they are for people."""
    value = None if score.value is None else float(score.value)
    return json.dumps({"value": value, "parts": dict(score.parts)}, default=str)
