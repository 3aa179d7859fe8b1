"""Weights on their way through a real Ray: what the store holds is what they were when they were exported."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import ray
import torch

from rollout.records import WeightBucket
from rollout.weights.buckets import view_bucket

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Learner:
    """Gives its weights without copying them, as `LearnerActor.export_weights` does, and goes on at once."""

    def export(self) -> Iterator[WeightBucket]:
        weight = torch.empty(100_000)  # too large for Ray to carry beside its store
        for version in range(4):
            weight.fill_(version)
            yield view_bucket([("weight", weight), ("small", weight[:3])])
            weight.fill_(-1)


async def test_a_bucket_that_shares_the_learners_memory_is_in_the_store_before_the_learner_goes_on() -> None:
    learner = ray.remote(Learner).options(num_cpus=0.1).remote()
    references = [each async for each in learner.export.options(num_returns="streaming").remote()]
    for version, bucket in enumerate([await each for each in references]):
        values = [array.view(np.float32) for array in bucket.arrays]
        assert [(array.min(), array.max()) for array in values] == [(version, version)] * 2
        assert not any(array.flags.writeable for array in bucket.arrays)
