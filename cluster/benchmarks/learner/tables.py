"""The tables of `python -m cluster.bench learner`."""

from __future__ import annotations

from cluster.benchmarks.learner.checkpoints import measure_checkpoints
from cluster.benchmarks.learner.logprob_memory import measure_memory
from cluster.benchmarks.learner.speed import measure_speed
from cluster.benchmarks.report import Scope, Table


def measure(scope: Scope) -> list[Table]:
    """All of them, one after the other."""
    return [measure_memory(), measure_speed(scope), measure_checkpoints(scope)]
