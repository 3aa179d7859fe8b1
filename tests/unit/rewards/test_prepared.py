"""Rewards that prepare a batch apart score it as they do in one go; small models of their own classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster.benchmarks.reward_models.small_models import SMALL_MODELS
from cluster.benchmarks.reward_models.tables import PROMPT, WITHOUT_FILES
from rewards.registry import REGISTERED, create_reward
from tests.pictures import tiled_pictures

SERVERS = {"vlm_judge", "logprob_judge", "unified_reward", "http"}
IN_ONE_GO = {"geneval"}
"""Its CLIP sees what its detector finds, so that little can be prepared."""


def test_every_shipped_reward_is_measured() -> None:
    assert {*SMALL_MODELS, *WITHOUT_FILES} == set(REGISTERED) - SERVERS


@pytest.mark.parametrize("name", sorted(set(SMALL_MODELS) - IN_ONE_GO))
def test_what_is_prepared_apart_gives_the_same_scores(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reward = create_reward(name, SMALL_MODELS[name](tmp_path), "cpu")
    assert reward.prepares
    pictures, prompts = tiled_pictures(2), [PROMPT] * 2
    in_one_go = reward.score(pictures, prompts)
    assert reward.score(pictures, prompts, prepared=reward.prepare(pictures, prompts)) == in_one_go
