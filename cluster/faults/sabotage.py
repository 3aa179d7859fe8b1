"""Rewards that misbehave when they are told to: a fault that is no death.

harness ─► FOLDER/PID: `reward-fails` ─► that replica fails at every call from then on, until it is replaced

reward-fails   raises at every call
reward-slow    takes SLOW_S longer for every call, and answers rightly
reward-shape   returns one score too few
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from configs.schema import RunConfig
from rewards.calling import Answer
from rewards.registry import applicability, create_reward
from rollout.records import Prompt, UInt8Array

FAILS, SLOW, SHAPE = "reward-fails", "reward-slow", "reward-shape"
ORDERS: Final = (FAILS, SLOW, SHAPE)
SLOW_S: Final = 2.0
MIN_REPLICAS: Final = 2
"""So that another replica can score what one fails."""


class SabotagedReward:
    """The reward of a kind and its options, until an order for this process lies in `folder`."""

    def __init__(self, device: str, kind: str, folder: str, options: Mapping[str, Any] | None = None) -> None:
        self._reward = create_reward(kind, options or {}, device)
        self._order = Path(folder) / str(os.getpid())

    @staticmethod
    def applies_to(prompt: Prompt, options: Mapping[str, Any]) -> bool:
        """As the reward itself."""
        rule = applicability(options["kind"], options.get("options") or {})
        return rule is None or rule(prompt)

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Answer]:
        """As the reward itself, unless told otherwise."""
        order = self._order.read_text() if self._order.exists() else ""
        if order == FAILS:
            raise RuntimeError("told to fail by the chaos harness")
        if order == SLOW:
            time.sleep(SLOW_S)
        answers = self._reward.score(pictures, prompts)
        return answers[:-1] if order == SHAPE else answers


def orders_of(directory: Path) -> Path:
    """Where the orders of a harness lie, in its own directory."""
    return directory / "orders"


def give_order(folder: Path, process_id: int, order: str) -> None:
    """Let a replica misbehave from its next call on. It reads the whole order or none."""
    folder.mkdir(exist_ok=True)
    temporary = folder / f"{process_id}.new"
    temporary.write_text(order)
    temporary.replace(folder / str(process_id))


def sabotage(config: RunConfig, folder: Path) -> list[str]:
    """Overrides of the config that put every reward in the harness's hands, with replicas enough.

    Only rewards that score picture by picture, without plans, can be sabotaged.
    """
    overrides = []
    for place, reward in enumerate(config.rewards):
        options = {"kind": reward.implementation, "folder": str(folder), "options": reward.options}
        overrides += [
            f"rewards.{place}.kind={__name__}:{SabotagedReward.__name__}",
            f"rewards.{place}.options={json.dumps(options)}",
        ]
        if reward.replicas.min < MIN_REPLICAS:
            overrides.append(f"rewards.{place}.replicas={max(MIN_REPLICAS, reward.replicas.max)}")
    return overrides
