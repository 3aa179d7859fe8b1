"""The order in which nodes load weights."""

from __future__ import annotations

import math

import pytest

from cluster.learning.waves import waves


def test_one_worker_of_each_node_comes_first_and_each_wave_doubles() -> None:
    items = [(f"n{index // 2}", index) for index in range(20)]  # ten nodes with two workers each
    served = list(waves(items))
    assert [len(wave) for wave in served] == [1, 2, 4, 3, 10]
    assert sorted(item for wave in served[:-1] for item in wave) == list(range(0, 20, 2))


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 8, 62, 100])
def test_no_wave_is_larger_than_the_number_of_nodes_that_can_serve_it(num_nodes: int) -> None:
    served = list(waves([(f"n{index}", index) for index in range(num_nodes)]))
    have_it = 1  # the learner's node
    for wave in served:
        assert len(wave) <= have_it
        have_it += len(wave)
    assert have_it == num_nodes + 1
    assert len(served) == math.ceil(math.log2(num_nodes + 1))


def test_workers_whose_node_is_not_known_yet_are_served_and_count_as_alone() -> None:
    served = list(waves([("", 1), ("n0", 2), ("", 3)]))
    assert [len(wave) for wave in served] == [1, 2]
    assert sorted(item for wave in served for item in wave) == [1, 2, 3]
    assert list(waves([])) == []
