"""Runs in bfloat16 at small steps, where a version is sent as few changes (`weight_sync.delta`): token by token what a
run makes that sends all weights; also when one of them is damaged on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.actor import ActorHandle

from cluster.learning import ObjectStoreSync, broadcast_sync
from rollout.records import WeightVersion
from rollout.weights.delta import Changes, DeltaBucket
from tests.integration.test_run import deterministic_tree
from tests.integration.training import Outcome, train

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]

NUM_STEPS = 6


def small_steps(name: str, directory: Path, **sections: Any) -> Outcome:
    tree = deterministic_tree(name, directory)
    changed = {"run": {"steps": NUM_STEPS}, "model": {"dtype": "bfloat16"}, "learner": {"lr": 1e-5}, **sections}
    outcome = asyncio.run(train({**tree, **{key: {**tree.get(key, {}), **fields} for key, fields in changed.items()}}))
    assert outcome.error is None
    return outcome


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return small_steps("whole", tmp_path_factory.mktemp("runs"))


def drawn_by(outcome: Outcome) -> list[tuple[bytes, ...]]:
    """Tokens and the engine's log-probabilities of all trajectories, which every weight of the engine has a part in."""
    groups = [group for step in range(1, NUM_STEPS + 1) for group in outcome.log.groups[step]]
    return [
        tuple(array.tobytes() for array in (one.cot_ids, one.cot_logprobs, one.image_ids, one.image_logprobs))
        for group in groups
        for one in group.rollout.trajectories
    ]


def assert_same(changes: Outcome, whole: Outcome) -> None:
    for key in ("loss", "reward/mean", "kl", "grad_norm"):
        assert [row[key] for row in changes.rows] == [row[key] for row in whole.rows]
    assert drawn_by(changes) == drawn_by(whole)
    assert not changes.log.failures


@pytest.mark.proof
@pytest.mark.parametrize("colocate", [False, True], ids=["apart", "in turns"])
def test_few_changes_make_the_same_run_token_by_token(whole: Outcome, tmp_path: Path, colocate: bool) -> None:
    changes = small_steps("changes", tmp_path, weight_sync={"delta": True}, rollout={"colocate": colocate})
    assert_same(changes, whole)
    assert len({row["grad_norm"] for row in whole.rows}) == NUM_STEPS, "the weights change"
    shares = [row.get("sync/changed_share") for row in changes.rows]
    assert shares[0] is None, "the first version has none before it"
    assert all(share is not None and 0 < share < 0.5 for share in shares[1:])
    assert max(row["sync/sent_mb"] or 0.0 for row in changes.rows[1:]) < 0.5 * (changes.rows[0]["sync/sent_mb"] or 0.0)


class DamagingSync(ObjectStoreSync):
    """In whose store one value of the changes of version 3 becomes another one, for whoever loads them."""

    async def take(
        self, ranks: Sequence[ActorHandle], version: WeightVersion, listening: Sequence[ActorHandle] = ()
    ) -> None:
        await super().take(ranks, version)
        if version.number == 3:
            buckets = self._sent[-1].buckets
            buckets[0] = ray.put(damaged(await buckets[0]))


def damaged(bucket: DeltaBucket) -> DeltaBucket:
    contents = list(bucket.contents)
    index, changes = next(
        (i, each) for i, each in enumerate(contents) if isinstance(each, Changes) and each.values.size
    )
    values = changes.values.copy()
    values[0] ^= 1
    contents[index] = replace(changes, values=values)
    return replace(bucket, contents=tuple(contents))


@pytest.mark.proof
@pytest.mark.parametrize("colocate", [False, True], ids=["apart", "in turns"])
def test_a_version_that_is_damaged_for_all_workers_makes_the_same_run(
    whole: Outcome, tmp_path: Path, colocate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broadcast_sync, "ObjectStoreSync", DamagingSync)
    changes = small_steps("damaged", tmp_path, weight_sync={"delta": True}, rollout={"colocate": colocate})
    assert_same(changes, whole)
    assert [row.get("sync/changed_share") is None for row in changes.rows] == [True, False, True, False, False, False]
    (note,) = (note for note in changes.log.notes if "damaged" in note)
    assert note.startswith("weight version 3 is damaged or lost: the changes of weight '")
