"""Vision-language models on a server as judges."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.judge.logprob_judge import LogprobJudgeReward as LogprobJudgeReward
    from rewards.judge.unified_reward import UnifiedReward as UnifiedReward
    from rewards.judge.vlm_judge import VlmJudgeReward as VlmJudgeReward

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "logprob_judge": ["LogprobJudgeReward"],
        "unified_reward": ["UnifiedReward"],
        "vlm_judge": ["VlmJudgeReward"],
    },
)
