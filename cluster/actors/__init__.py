"""What runs in other processes: thin Ray actors around plain classes that know nothing of Ray."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from cluster.actors.learner import LearnerActor as LearnerActor
    from cluster.actors.reward import RewardActor as RewardActor
    from cluster.actors.rollout import RolloutActor as RolloutActor
    from cluster.actors.rollout import spawn_rollout as spawn_rollout
    from cluster.actors.spawning import spawn as spawn

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "learner": ["LearnerActor"],
        "reward": ["RewardActor"],
        "rollout": ["RolloutActor", "spawn_rollout"],
        "spawning": ["spawn"],
    },
)
