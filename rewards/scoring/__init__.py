"""What `python -m rewards.score` consists of: which rewards, which lines, which summary."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.scoring.choice import add_reward_arguments as add_reward_arguments
    from rewards.scoring.choice import check_reward_arguments as check_reward_arguments
    from rewards.scoring.choice import choose_rewards as choose_rewards
    from rewards.scoring.output import ScoreFile as ScoreFile
    from rewards.scoring.summary import Summary as Summary

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "choice": ["add_reward_arguments", "check_reward_arguments", "choose_rewards"],
        "output": ["ScoreFile"],
        "summary": ["Summary"],
    },
)
