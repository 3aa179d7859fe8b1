"""Whether one node can hold all ranks of the learner."""

from __future__ import annotations

import pytest

from cluster.learning.rank_placement import bundle_of, fits_one_node
from configs.schema import RunConfig

NODES = [{"CPU": 8.0}, {"CPU": 64.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 8.0, "memory": 1e11}]


@pytest.mark.parametrize(
    ("bundle", "num", "fits"),
    [
        ({"CPU": 1.0, "GPU": 1.0}, 8, True),
        ({"CPU": 4.0, "GPU": 1.0}, 8, False),
        ({"CPU": 2.0, "GPU": 1.0}, 8, True),
        ({"CPU": 1.0, "GPU": 1.0}, 9, False),
        ({"CPU": 8.0}, 8, True),
        ({"GPU": 0.5}, 16, True),
        ({"GPU": 0.1}, 80, True),
    ],
)
def test_one_node_holds_all_ranks_or_not(bundle: dict[str, float], num: int, fits: bool) -> None:
    assert fits_one_node(bundle, num, NODES) is fits


def test_a_rank_that_asks_for_nothing_still_has_a_place() -> None:
    config = RunConfig.model_validate(
        {
            "model": {"path": "org/model", "dtype": "float32"},
            "data": {"train": "shapes:train"},
            "rewards": [{"name": "shapes"}],
            "learner": {"cpus_per_rank": 0},
        }
    )
    assert bundle_of(config) == {"CPU": 0.001}
