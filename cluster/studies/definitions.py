"""The questions that `python -m cluster.study` answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cluster.studies.runs import Arm, Study

STUDIES: Final[Mapping[str, Study]] = {
    "staleness": Study(
        question="How stale may trajectories be?",
        arms=tuple(Arm(f"stale-{lag}", (f"algorithm.max_staleness={lag}",)) for lag in (0, 1, 4)),
        curves=("behaviour_kl", "kl"),
        columns=("staleness/mean", "kl", "images_per_s"),
    ),
}
