"""Small records for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rollout.prompts import Conversation
from rollout.records import GroupRequest, GroupRollout, Int32Array, Prompt, ScoredGroup, Trajectory


def make_request(sequence: int = 0, group_size: int = 2, text: str = "a red star") -> GroupRequest:
    return GroupRequest(
        sequence=sequence,
        attempt=0,
        prompt=Prompt(prompt_id=f"test:{sequence}", text=text),
        group_size=group_size,
        images_per_cot=1,
        seed=sequence,
    )


def make_trajectory(oldest: int = 0, newest: int = 0, num_cot: int = 3, num_image: int = 4) -> Trajectory:
    rng = np.random.default_rng(num_cot * 100 + num_image)
    return Trajectory(
        semantic_prompt_ids=np.array([1, 8, 9], np.int32),
        cot_ids=rng.integers(8, 20, num_cot).astype(np.int32),
        cot_logprobs=-rng.random(num_cot).astype(np.float32),
        image_prompt_ids=np.array([1, 8, 9, 4], np.int32),
        image_ids=rng.integers(0, 16, num_image).astype(np.int32),
        image_logprobs=-rng.random(num_image).astype(np.float32),
        cot_text="red star top left",
        guidance_scale=2.0,
        seed=7,
        cot_versions=np.full(num_cot, oldest, np.int32),
        image_versions=np.full(num_image, newest, np.int32),
    )


def asked_tokens(conversation: Conversation, prompt: str, cot_ids: Int32Array) -> dict[str, Int32Array]:
    """Fields of a trajectory with this CoT, as a worker asks for it: other tokens are refused by the parity gate."""
    return {
        "semantic_prompt_ids": conversation.semantic_prompt(prompt),
        "cot_ids": cot_ids,
        "image_prompt_ids": conversation.image_prompt(prompt, conversation.decode_cot(cot_ids)),
    }


def make_scored_group(
    sequence: int = 0, rewards: Sequence[float] = (0.0, 1.0), oldest: int = 0, newest: int = 0
) -> ScoredGroup:
    trajectories = tuple(make_trajectory(oldest, newest, num_cot=2 + i) for i in range(len(rewards)))
    column = np.array(rewards, np.float32)
    return ScoredGroup(
        rollout=GroupRollout(make_request(sequence, len(rewards)), trajectories, "rollout-0", 10.0, 12.5),
        rewards=column,
        reward_columns={"shapes": column},
        explanations=tuple(f"shapes {value:.2f}" for value in rewards),
        scored_s=0.25,
    )
