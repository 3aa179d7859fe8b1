"""A worker that does nothing, and answers what a real one would: for measuring what drives it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.actors.score_cache import RewardAnswer
from rollout.records import GroupRequest, GroupRollout, Prompt, Score, Trajectory, UInt8Array

GROUP_SIZE = 8

_TRAJECTORY = Trajectory(
    semantic_prompt_ids=np.zeros(32, np.int32),
    cot_ids=np.zeros(24, np.int32),
    cot_logprobs=np.zeros(24, np.float32),
    image_prompt_ids=np.zeros(48, np.int32),
    image_ids=np.zeros(64, np.int32),
    image_logprobs=np.zeros(64, np.float32),
    cot_text="a red star",
    guidance_scale=2.0,
    seed=0,
    cot_versions=np.zeros(24, np.int32),
    image_versions=np.zeros(64, np.int32),
)


class PretendingWorker:
    """Rollout worker and reward replica in one: answers after `work_s` what it was made with."""

    def __init__(self, work_s: float, pings: Counter[str]) -> None:
        self._work_s = work_s
        self._pings = pings
        self._pictures: UInt8Array = np.zeros((GROUP_SIZE, 8, 8, 3), np.uint8)

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def ping(self) -> str:
        self._pings["sent"] += 1
        return "here"

    async def roll_group(self, request: GroupRequest) -> tuple[GroupRollout, UInt8Array]:
        await asyncio.sleep(self._work_s)
        return GroupRollout(request, (_TRAJECTORY,) * request.group_size, "rollout", 0.0, self._work_s), self._pictures

    async def score(self, pictures: Any, prompts: Sequence[Prompt], plans: Any, only: Any) -> RewardAnswer:
        return RewardAnswer([Score(0.5)] * len(prompts))
