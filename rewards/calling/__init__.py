"""Calling a reward, whatever it was written as: a class, a function, a callable, a coroutine."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rewards.calling.answers import Answer as Answer
    from rewards.calling.answers import WrongAnswerError as WrongAnswerError
    from rewards.calling.loaded import LoadedReward as LoadedReward

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "answers": ["Answer", "WrongAnswerError"],
        "loaded": ["LoadedReward"],
    },
)
