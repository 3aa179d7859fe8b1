"""What a reward is. All that a reward of one's own needs can be imported from here.

    class         `score` or `score_group`; made once a replica, with the config's options as keyword arguments, and
                  with `device` ("cpu" or "cuda") where it has a parameter of that name
    function      of pictures and prompts; so are a functools.partial, an object with __call__ and a class whose
                  objects have one. The config's options are further keyword arguments
    async         of any of these: it is awaited

What it returns for a picture is a number, a Score (a number with its reasons), None where it does not apply, or a
RewardError where this picture could not be scored; all of them as a list, a tuple, an array or a tensor.

It may have more, each by itself:

    plans          a parameter of this name is given the plan (semantic CoT) that each picture was drawn by. With a
                   default, the reward can do without: pictures of a folder may have none
    applies_to     static method (prompt, options) -> bool: what is known without a picture. The config's options are
                   a mapping. Prompts to which no reward applies are then left out before a run begins
    is_random      true: it may score the same picture differently another time, and `cache: true` is refused
    prepare        method (pictures, prompts) -> anything: the part of the work that can be done in another thread while
                   the batch before is scored. `score` is then given the result as `prepared`, and None where nothing
                   was prepared
    close          called at the end: a place to end threads and connections

A reward that raises fails for the batch that it was given, which is then halved to find the picture that is at fault;
one that returns a RewardError in a picture's place spares it that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from configs.errors import RewardError as RewardError
from rollout.records import Prompt as Prompt
from rollout.records import Score as Score
from rollout.records import UInt8Array as UInt8Array


class Reward(Protocol):
    """Scores pictures, each by itself."""

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> Sequence[Score | RewardError]:
        """One answer a picture, in order.

        pictures: uint8 [B, height, width, 3], RGB; prompts: the B prompts they were drawn for. Both have been checked.
        The score of a picture must not depend on what else is in the batch.
        """


class GroupReward(Protocol):
    """Scores the pictures of one prompt against each other, such as by the share of duels that each wins."""

    def score_group(self, pictures: UInt8Array, prompt: Prompt) -> Sequence[Score | RewardError]:
        """One answer a picture, in order.

        pictures: uint8 [G, height, width, 3], RGB, all drawn for `prompt`; one only in an evaluation, to which such a
        reward may not apply.
        """
