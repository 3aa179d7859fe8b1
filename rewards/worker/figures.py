"""What a replica counts of its work: where a slow or failing reward shows."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class RewardFigures:
    """Sums since they were last taken. They may be added."""

    num_pictures: int = 0
    """That were answered, by a score or by an error."""
    num_failed: int = 0
    """Of which by an error."""
    num_calls: int = 0
    """Of the reward."""
    num_repeated: int = 0
    """Pictures that were shown to it once more, because the batch that they were in had failed."""
    queue_s: float = 0.0
    """From a picture's arrival to its batch, summed over pictures."""
    busy_s: float = 0.0
    """That the reward's thread was at work."""

    def add(self, other: RewardFigures) -> None:
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))
