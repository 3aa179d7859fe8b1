"""Every error bicot raises on purpose, in one tree.

    BicotError
    ├── ConfigError         a config field is wrong: names the field, the value, the remedy
    ├── DataError           a data set is wrong: names the file and, where there is one, the line
    ├── ModelError          a model folder or hub id cannot be used
    ├── RolloutError        a trajectory could not be generated
    ├── RewardError         a picture could not be scored: names the reward
    │   ├── RewardTimeoutError  the reward did not answer in time: its replica is stuck, and of no more use
    │   ├── RewardBrokenError   its replica can score nothing more: the GPU's context is lost, or it has ended
    │   └── NoRewardAppliesError  no reward has anything to say of a prompt, and no further try will change that
    ├── LearnerError        an optimizer step could not be made
    │   └── CheckpointError     a checkpoint could not be written, say to a full disk: the learner itself is well
    ├── LibraryError        an installed library lacks what bicot uses of it: names it, its version, what is missing
    ├── WeightSyncError     weights could not be published or loaded
    ├── RegistryError       Redis cannot be reached or refused a command
    ├── LedgerError         a group's account does not add up: the run must not go on
    ├── PlacementError      the cluster cannot hold what the config asks for
    └── RunError            the run as a whole cannot go on

The tree lives in `configs` because it is the only package every other one may import.
`ValueError` is for a caller's wrong argument, `assert` for our own invariants.
"""

from __future__ import annotations


class BicotError(Exception):
    """Base of all errors bicot raises on purpose; the message is meant for the user."""


class ConfigError(BicotError):
    """A config field is wrong. The message names the field, the value and the remedy."""


class DataError(BicotError):
    """A data set cannot be used. The message names the file and the line."""


class ModelError(BicotError):
    """A model folder or hub id cannot be used. The message names it."""


class RolloutError(BicotError):
    """A trajectory could not be generated."""


class RewardError(BicotError):
    """A picture could not be scored. The message names the reward."""


class RewardTimeoutError(RewardError):
    """A reward did not answer in time. Its thread cannot be stopped, so its replica has to be replaced."""


class RewardBrokenError(RewardError):
    """A replica of a reward can score nothing more, and has to be replaced."""


class NoRewardAppliesError(RewardError):
    """No reward has anything to say of a prompt."""


class LearnerError(BicotError):
    """An optimizer step could not be made."""


class CheckpointError(LearnerError):
    """A checkpoint could not be written. The learner is as it was, and the next try may succeed."""


class LibraryError(BicotError):
    """An installed library is not one that bicot works with. The message names it, its version and what is missing."""


class WeightSyncError(BicotError):
    """Weights could not be published or loaded."""


class RegistryError(BicotError):
    """Redis cannot be reached, or refused a command. The message names the URL without its password."""


class LedgerError(BicotError):
    """A group would be counted, or trained on, in a way that cannot be right. The message names it."""


class PlacementError(BicotError):
    """The cluster cannot hold what the config asks for."""


class RunError(BicotError):
    """The run as a whole cannot go on."""
