"""UnifiedReward (Wang et al. 2025, arXiv 2503.05236) on an OpenAI-compatible server, asked as each version was trained.

    version   models                           what it says                               the score
    llava     UnifiedReward-7b, -7b-v1.5       "Final Score: 4.5"                         that, 1 to 5
    qwen      UnifiedReward-qwen-3b, -7b       which elements are there, "Final Score:"   that, 1 to 5
    2         UnifiedReward-2.0-qwen...        alignment, coherence and style             their mean, 1 to 5

A question is part of a model's input format; these are the authors' (github.com/CodeGoat24/UnifiedReward).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from configs.errors import ConfigError, RewardError
from rewards.judge.vlm_judge import VlmJudgeReward, find_number
from rollout.records import Score

LOWEST, HIGHEST = 1.0, 5.0
_NUMBER = r"\W*(\d+(?:\.\d+)?)"
FINAL_SCORE = rf"Final Score:{_NUMBER}"
AXES = ("Alignment", "Coherence", "Style")
_TWO_CRITERIA = (
    "You are given a text caption and a generated image based on that caption. Your task is to evaluate this image "
    "based on two key criteria:\n"
    "1. Alignment with the Caption: Assess how well this image aligns with the provided caption. Consider the accuracy "
    "of depicted objects, their relationships, and attributes as described in the caption.\n"
    "2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail preservation, color "
    "accuracy, and overall aesthetic appeal.\n"
)
_TASK = "Your task is provided as follows:\nText Caption: [{prompt}]"
QUESTIONS: Mapping[str, str] = {
    "llava": f"{_TWO_CRITERIA}Based on the above criteria, assign a score from 1 to 5 after 'Final Score:'.\n{_TASK}",
    "qwen": (
        f"{_TWO_CRITERIA}"
        "Extract key elements from the provided text caption, evaluate their presence in the generated image using the "
        "format: 'element (type): value' (where value=0 means not generated, and value=1 means generated), and assign "
        f"a score from 1 to 5 after 'Final Score:'.\n{_TASK}"
    ),
    "2": (
        "You are presented with a generated image and its associated text caption. Your task is to analyze the image "
        "across multiple dimensions in relation to the caption. Specifically:\n"
        "Provide overall assessments for the image along the following axes (each rated from 1 to 5):\n"
        "- Alignment Score: How well the image matches the caption in terms of content.\n"
        "- Coherence Score: How logically consistent the image is (absence of visual glitches, object distortions, "
        "etc.).\n"
        "- Style Score: How aesthetically appealing the image looks, regardless of caption accuracy.\n\n"
        "Output your evaluation using the format below:\n\n"
        "Alignment Score (1-5): X\nCoherence Score (1-5): Y\nStyle Score (1-5): Z\n\n"
        f"{_TASK}"
    ),
}
"""Version -> its question."""


class UnifiedReward(VlmJudgeReward):
    """UnifiedReward's score of each picture, 1 to 5.

    model: its name on the server. version: `qwen`, `llava` or `2`, which has to fit the model. Other options are those
    of vlm_judge, but for what the model was trained on: question, pattern and range.
    """

    name = "unified_reward"

    def __init__(
        self,
        device: str,
        url: str,
        model: str = "CodeGoat24/UnifiedReward-qwen-7b",
        version: str = "qwen",
        api_key_env: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        image_format: str = "png",
        num_parallel: int = 32,
        timeout_s: float = 30.0,
        retries: int = 2,
        backoff_s: float = 1.0,
    ) -> None:
        version = str(version)
        if version not in QUESTIONS:
            raise ConfigError(
                f"rewards[].options.version of unified_reward is '{version}'; set it to one of {', '.join(QUESTIONS)}"
            )
        super().__init__(
            device,
            url,
            model,
            api_key_env,
            question=QUESTIONS[version],
            pattern=FINAL_SCORE,
            lowest=LOWEST,
            highest=HIGHEST,
            rescale=False,
            extra_body=extra_body,
            image_format=image_format,
            num_parallel=num_parallel,
            timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
        )
        self._has_axes = version == "2"

    def _read(self, reply: str) -> Score:
        if not self._has_axes:
            return super()._read(reply)
        numbers: dict[str, float] = {}
        for axis in AXES:
            pattern = re.compile(rf"{axis} Score\s*(?:\(1\s*-\s*5\))?\s*:{_NUMBER}", re.IGNORECASE)
            try:
                numbers[axis.lower()] = find_number(pattern, reply, LOWEST, HIGHEST)
            except RewardError as error:
                raise RewardError(f"{axis}: {error}") from error
        return Score(sum(numbers.values()) / len(numbers), parts={**numbers, "reply": reply})
