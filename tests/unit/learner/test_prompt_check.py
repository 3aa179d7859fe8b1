"""A worker that asks with another chat template, tokenizer or words than the learner is found, which log-probabilities
cannot show: tests/unit/learner/test_parity_faults.py holds the faults that they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from configs.errors import LearnerError
from configs.schema import RunConfig
from learner.prompt_check import NUM_FATAL, PromptCheck
from rollout.prompts import Conversation
from rollout.records import GroupRollout
from tests.records import make_request, make_trajectory
from tests.tiny_models import tiny_janus_folder

GROUP_SIZE = 2


def config_of(**rollout: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"path": str(tiny_janus_folder()), "dtype": "float32"},
            "data": {"train": "shapes:train"},
            "rewards": [{"name": "shapes"}],
            "rollout": {"max_prompt_tokens": 96, "max_cot_tokens": 8, **rollout},
            "parity": {"every_steps": 3},
        }
    )


def conversation_of(config: RunConfig) -> Conversation:
    return Conversation.of_run(config.model.path, config.rollout)


def check_of(**rollout: Any) -> PromptCheck:
    return PromptCheck(config_of(**rollout), conversation_of(config_of(**rollout)))


def roll(
    worker_id: str,
    text: str = "word1 word2",
    *,
    version: int = 0,
    staleness: int = 0,
    has_cot: bool = True,
    **rollout: Any,
) -> GroupRollout:
    """A group as a worker with this `rollout` would have asked for it, all of an older version."""
    config = config_of(**rollout)
    conversation, request = conversation_of(config), make_request(0, GROUP_SIZE, text)
    old = make_trajectory(version - staleness, version - staleness, num_cot=5)
    cot = conversation.decode_cot(old.cot_ids) if has_cot else ""
    asked = replace(
        old,
        semantic_prompt_ids=conversation.semantic_prompt(request.prompt.text),
        image_prompt_ids=conversation.image_prompt(request.prompt.text, cot, config.rollout.max_cot_tokens),
    )
    return GroupRollout(request, (asked,) * GROUP_SIZE, worker_id, 0.0, 1.0)


@pytest.mark.parametrize("staleness", [0, 1, 4])
def test_workers_that_ask_as_the_learner_does_pass(staleness: int) -> None:
    groups = [roll("rollout-0", version=staleness, staleness=staleness), roll("rollout-1", version=staleness)]
    assert check_of().judge(groups, [roll("rollout-0", has_cot=False)], staleness) is None


@pytest.mark.parametrize("staleness", [0, 1, 4])
@pytest.mark.parametrize(
    "fault",
    [
        {"roles": ["User", "Assistant"]},
        {"system_prompt": "You paint."},
        {"instruction": "Draw {prompt}"},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_a_worker_that_asks_otherwise_ends_the_run_and_is_named(fault: Mapping[str, Any], staleness: int) -> None:
    """Also where no token of the batch is of the learner's version, so that no log-probability is compared."""
    groups = [
        roll("rollout-0", version=staleness, staleness=staleness),
        roll("rollout-1", version=staleness, staleness=staleness, **fault),
    ]
    with pytest.raises(LearnerError, match="worker rollout-1, prompt 'word1 word2': ") as caught:
        check_of().judge(groups, [], staleness)
    assert "rollout-0" not in str(caught.value)


def test_the_message_shows_both_from_the_first_token_that_differs() -> None:
    with pytest.raises(LearnerError) as caught:
        check_of(instruction="Draw {prompt}").judge([roll("rollout-0")], [], 0)
    assert "from token " in str(caught.value)
    theirs, ours = str(caught.value).split("'word1 word2': ")[1].split(" on, the learner's ")
    assert theirs.split("'")[1] != ours.split("'")[1]


def test_another_tokenizer_is_found_by_the_plan_in_the_image_prompt() -> None:
    group = roll("rollout-0")
    (asked, *_) = group.trajectories
    shifted = replace(asked, cot_ids=np.flip(asked.cot_ids))  # the same ids mean other words
    with pytest.raises(LearnerError, match="other tokens than the learner's"):
        check_of().judge([replace(group, trajectories=(shifted,) * GROUP_SIZE)], [], 0)


def test_a_probe_is_looked_at_too() -> None:
    probe = roll("rollout-2", has_cot=False, roles=["User", "Assistant"])
    with pytest.raises(LearnerError, match="worker rollout-2"):
        check_of().judge([roll("rollout-0")], [probe], 1)


def test_a_prompt_that_is_too_long_for_the_learner_alone_is_named() -> None:
    with pytest.raises(LearnerError, match=r"the learner could not ask it: prompt .* takes \d+ tokens"):
        check_of(max_prompt_tokens=8, max_cot_tokens=1).judge([roll("rollout-0", "word3 " * 12)], [], 0)


def test_a_worker_that_comes_later_is_noted_and_does_not_end_the_run() -> None:
    check, sound, wrong = check_of(), roll("rollout-0"), roll("rollout-1", roles=["User", "Assistant"])
    for version in range(NUM_FATAL):
        assert check.judge([sound], [], version) is None
    notes = [check.judge([sound, wrong], [], version) for version in range(NUM_FATAL, NUM_FATAL + 5)]
    assert [note is not None for note in notes] == [True, False, False, True, False]
    assert "worker rollout-1" in str(notes[0])
