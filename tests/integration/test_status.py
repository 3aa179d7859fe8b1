"""What `python -m cluster.status` says of a run, against a real Redis."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.session import PrivateRedis
from cluster.session.private_redis import ADDRESS_NAME
from cluster.state import Registry, RunDirectory
from cluster.state.ledger import GroupState
from cluster.status import main
from configs.schema import RunConfig
from tests.integration.training import run_tree

NAME = "watched"


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(RunConfig.model_validate(run_tree(NAME, tmp_path, run={"steps": 9})))


async def fill(redis_url: str, key: str) -> None:
    """A run in which step 3 is being waited for: of its groups 4 and 5, one is queued and one has failed once."""
    async with Registry(redis_url, key) as registry:
        await registry.ledger.rewind(4)
        await registry.set_run("training", num_steps=9, groups_per_step=2)
        await registry.set_place("http://head:8265/#/jobs/watched", "watched")
        await registry.set_progress(2, 2, {"reward": 0.625})
        await registry.set_worker("rollout-0", "rollout", "READY", 2)
        for state in (GroupState.DISPATCHED, GroupState.SCORED, GroupState.QUEUED):
            await registry.ledger.move(4, state)
        await registry.ledger.move(5, GroupState.DISPATCHED)
        await registry.ledger.give_up(5, 3, "file:9", "the reward failed")
        await registry.ledger.move(5, GroupState.DISPATCHED, attempt=4)
        await registry.ledger.move(5, GroupState.FAILED, attempt=4, reason="a worker died")


@pytest.fixture
def running(directory: RunDirectory) -> Iterator[str]:
    """A launcher's lock, and its private Redis with news in it; gives the address."""
    with ExitStack() as stack:
        stack.enter_context(directory.locked())
        redis = stack.enter_context(PrivateRedis(directory.redis_dir))
        asyncio.run(fill(redis.url, directory.key))
        yield redis.url


def test_a_running_run_is_found_by_its_directory(
    running: str, directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(directory.path)]) == 0
    printed = capsys.readouterr().out
    assert f"run      {NAME}: training, life 1" in printed
    assert "in Ray   job watched http://head:8265/#/jobs/watched" in printed
    assert "step     2 of 9, weight version 2, reward 0.625" in printed
    assert "groups   dispatched 0, failed 1, given up 0, scored 0, queued 1, trained 4" in printed
    assert "gave up  file:9 (group 5): the reward failed" in printed
    assert "worker   rollout-0: READY, weight version 2" in printed
    assert "waiting  step 3 waits for 1 of its 2 groups: 1 failed (5)" in printed


def test_a_run_is_found_by_name_at_a_given_redis(running: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([NAME, "--redis", running, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["run"], told["status"], told["step"], told["num_steps"]) == (NAME, "training", 2, 9)
    assert told["groups"]["trained"] == 4
    assert told["workers"] == {"rollout-0": {"kind": "rollout", "state": "READY", "weight_version": 2}}
    assert main(["nobody", "--redis", running]) == 1
    error = capsys.readouterr().err
    assert "knows no run 'nobody'" in error
    assert running not in error, "the address holds the password"


def test_the_address_of_a_private_redis_is_for_its_owner_only(running: str, directory: RunDirectory) -> None:
    address = directory.redis_dir / ADDRESS_NAME
    assert stat.S_IMODE(address.stat().st_mode) == 0o600
    assert address.read_text().strip() == running


def test_a_run_that_ended_says_how_and_how_to_go_on(
    directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(directory.path)]) == 0
    printed = capsys.readouterr().out
    assert "has ended without a word" in printed
    assert f"python -m cluster.launch --resume {directory.path}" in printed
    directory.summary_path.write_text(json.dumps({"status": "failed", "steps": 4, "error": "LearnerError: it died"}))
    assert main([str(directory.path)]) == 0
    printed = capsys.readouterr().out
    assert "has ended, failed after 4 steps" in printed
    assert "error    LearnerError: it died" in printed
    assert main([str(directory.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_running"] is False


def test_a_place_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "there is no run here" in capsys.readouterr().err
    assert main(["nobody"]) == 2
    assert "is no run directory" in capsys.readouterr().err
