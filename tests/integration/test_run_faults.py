"""Runs in which something breaks: what is replaced, what ends the run, and what is saved nevertheless."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest
import ray

from cluster.session.stop_signals import still_alive
from cluster.state.ledger import GroupState
from configs.errors import CheckpointError, DataError, LearnerError, RegistryError, RunError
from tests.integration.training import Outcome, RecordingLog, run_tree, train

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(300)]

RUN_TIMEOUT_S = 240.0
MOODY = "tests.integration.rewards:MoodyReward"
DEADLY = "tests.integration.rewards:DeadlyReward"
QUICK_HEARTBEATS = {"heartbeat_s": 0.5, "heartbeat_timeout_s": 10.0}


def process_of(actor: str) -> psutil.Process:
    """The one process among this one's descendants that Ray has named after an actor's class; while it is at a call,
    the title begins with the actor's own name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and title.startswith("ray::") and actor in title:
                found.append(process)
    (one,) = found
    return one


def kill_actor_at_step_1(role: str) -> Callable[[RecordingLog, str, int], Awaitable[None]]:
    async def act(log: RecordingLog, event: str, number: int) -> None:
        if (event, number) == ("step", 1):
            ray.kill(ray.get_actor(f"{log.directory.name}-{role}"))

    return act


async def train_in_time(*args: object, **kwargs: object) -> Outcome:
    """`train`, which must not hang."""
    return await asyncio.wait_for(train(*args, **kwargs), RUN_TIMEOUT_S)  # type: ignore[arg-type]


def assert_all_groups_trained(outcome: Outcome) -> None:
    config = outcome.config
    assert outcome.error is None
    assert outcome.summary is not None
    assert outcome.summary.status == "finished"
    assert outcome.snapshot is not None
    counts = outcome.snapshot.group_counts
    num_groups = config.run.steps * config.algorithm.groups_per_step
    assert counts[GroupState.TRAINED] == num_groups == sum(counts.values())
    sequences = [
        group.rollout.request.sequence for step in sorted(outcome.log.groups) for group in outcome.log.groups[step]
    ]
    assert sequences == list(range(num_groups))


async def batter(log: RecordingLog, event: str, number: int) -> None:
    """One thing after the other breaks, each after a step of its own, see `battered`."""
    match (event, number):
        case ("step", 1):
            ray.kill(ray.get_actor(f"{log.directory.name}-rollout-0"))
        case ("step", 2):
            ray.kill(ray.get_actor(f"{log.directory.name}-queue"))
        case ("step", 3):
            await log.saving.settle()  # nobody writes into what goes now
            shutil.rmtree(log.directory.samples_dir)
            shutil.rmtree(log.directory.checkpoints_dir)
            log.directory.metrics_path.unlink()
            log.directory.config_path.unlink()
        case ("step", 5):
            (log.checkpoints.directory / "step_000006.partial").write_text("in the place of the folder")
        case ("step", 7):
            process_of("TrajectoryQueueActor").suspend()


@pytest.fixture(scope="module")
def battered(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run in which much breaks, and that ends well. The tests look at what became of each:

    after step 1   the rollout worker is killed
               2   the trajectory queue is killed
               3   samples, checkpoints, metrics and config are removed from the run's directory
               5   the place of the checkpoint of step 6 is taken
               7   the process of the queue is frozen
    """
    tree = run_tree(
        "battered",
        tmp_path_factory.mktemp("battered"),
        run={"steps": 8},
        checkpoint={"every_steps": 2, "keep_last": 9},
        samples={"every_steps": 2},
        cluster=QUICK_HEARTBEATS,
    )
    return asyncio.run(train_in_time(tree, batter))


def test_whatever_breaks_no_group_is_lost_and_every_step_is_made_once(battered: Outcome) -> None:
    assert_all_groups_trained(battered)
    assert [row["step"] for row in battered.rows] == list(range(1, 9))


def test_a_killed_rollout_worker_is_replaced(battered: Outcome) -> None:
    notes = battered.log.notes
    assert any("rollout-0 died" in note and "starting another in its place" in note for note in notes)
    last_workers = {group.rollout.worker_id for group in battered.log.groups[8]}
    assert last_workers == {"rollout-1"}
    assert all((row["staleness/max"] or 0) <= 1 for row in battered.rows), "the newcomer had the live weights"


def test_a_killed_queue_is_replaced(battered: Outcome) -> None:
    deaths = [note for note in battered.log.notes if "the trajectory queue died" in note]
    assert len(deaths) == 2, "the first of them killed, the second one frozen"
    assert "was silent" not in deaths[0]


def test_a_frozen_queue_is_replaced_within_the_heartbeats_time_out(battered: Outcome) -> None:
    assert any("the trajectory queue died (was silent for 10 s)" in note for note in battered.log.notes)


def test_a_run_directory_that_is_removed_is_made_again(battered: Outcome) -> None:
    assert any("was removed or replaced while the run goes on" in note for note in battered.log.notes)
    assert battered.directory.config_path.is_file()
    assert (battered.directory.checkpoints_dir / "step_000004" / "manifest.json").is_file()
    assert (battered.directory.samples_dir / "step_000004.png").is_file()


def test_a_checkpoint_that_cannot_be_written_is_tried_again_after_the_next_step(battered: Outcome) -> None:
    names = [path.name for path in battered.log.checkpoints.all()]
    assert names == ["step_000004", "step_000007", "step_000008"]
    notes = battered.log.notes
    assert sum("no checkpoint of step 6, tried again after the next step" in note for note in notes) == 1
    assert [row["checkpoints_failed"] for row in battered.rows[3:]] == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("injure", [psutil.Process.kill, pytest.param(psutil.Process.suspend, marks=pytest.mark.proof)])
async def test_a_rollout_worker_whose_engine_died_or_freezes_is_replaced(
    tmp_path: Path, injure: Callable[[psutil.Process], None]
) -> None:
    injured: list[psutil.Process] = []

    async def act(log: RecordingLog, event: str, number: int) -> None:
        if (event, number) == ("step", 1):
            descendants = psutil.Process().children(recursive=True)
            engines = [
                process for process in descendants if "EngineCore" in " ".join([process.name(), *process.cmdline()])
            ]
            assert engines, "vLLM has an engine process"
            for engine in engines:
                injure(engine)
                injured.append(engine)

    tree = run_tree(
        "engine-lost", tmp_path, run={"steps": 3}, rollout={"engine": "vllm"}, cluster={"heartbeat_timeout_s": 10.0}
    )
    outcome = await train_in_time(tree, act)
    assert_all_groups_trained(outcome)
    assert {group.rollout.worker_id for group in outcome.log.groups[3]} == {"rollout-1"}
    assert any("rollout-0" in note and "starting another" in note for note in outcome.log.notes)
    alive = still_alive(injured, patience_s=20)
    assert not alive, "a frozen engine keeps its memory for as long as it is there"


async def test_groups_whose_reward_fails_are_given_up_by_name_and_replaced(tmp_path: Path) -> None:
    words = ["red", "cursed", "green", "hollow", "grey", "blue", "black", "white"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a {word} picture\n" for word in words))
    tree = run_tree(
        "moody",
        tmp_path,
        data={"train": str(prompts), "shuffle": False},
        rollout={"max_attempts": 2},
        rewards=[{"name": MOODY, "cpus_per_replica": 0.1, "retries": 0}],
    )
    outcome = await train_in_time(tree)
    assert_all_groups_trained(outcome)
    trained = [group.rollout.request.prompt.text.split()[1] for step in (1, 2) for group in outcome.log.groups[step]]
    assert (trained[0], trained[2]) == ("red", "green")
    assert (trained[1], trained[3]) == ("blue", "white")  # four places on: beyond the run's end
    reasons: dict[str, set[str]] = {}
    for request, reason in outcome.log.failures:
        reasons.setdefault(request.prompt.prompt_id, set()).add(reason)
    assert {prompt_id: {reason.partition(" (")[0] for reason in of_one} for prompt_id, of_one in reasons.items()} == {
        "prompts.txt:2": {f"reward '{MOODY}' failed on prompts.txt:2: ValueError: this picture is cursed"},
        "prompts.txt:4": {f"reward '{MOODY}' failed on prompts.txt:4: a score must be a finite number, not nan"},
    }
    assert (outcome.rows[-1]["groups_rolled_again"], outcome.rows[-1]["images_left_out"]) == (0, 0)
    summary = json.loads(outcome.directory.summary_path.read_text())
    assert (summary["groups_failed"], summary["groups_given_up"]) == (4, 2)
    assert sum("another prompt takes its place" in note for note in outcome.log.notes) == 2


async def test_a_dead_registry_ends_the_run_with_a_clear_error_and_a_checkpoint(tmp_path: Path) -> None:
    server_ids: list[int] = []

    async def act(log: RecordingLog, event: str, number: int) -> None:
        if (event, number) == ("step", 1):
            os.kill(server_ids[0], signal.SIGKILL)

    outcome = await train_in_time(
        run_tree("registry-killed", tmp_path, run={"steps": 5000}, registry={"patience_s": 3}),
        act,
        on_redis=lambda redis: server_ids.append(redis.process_id),
    )
    assert isinstance(outcome.error, RegistryError)
    assert "redis://:***@127.0.0.1" in str(outcome.error)
    assert "check that the Redis server runs" in str(outcome.error)
    summary = json.loads(outcome.directory.summary_path.read_text())
    assert summary["status"] == "failed"
    assert summary["error"].startswith("RegistryError: ")
    assert (Path(summary["checkpoint"]) / "config.json").is_file()


async def test_a_registry_that_is_dead_when_the_learner_dies_is_not_taken_for_another_dead_learner(
    tmp_path: Path,
) -> None:
    server_ids: list[int] = []

    async def act(log: RecordingLog, event: str, number: int) -> None:
        if (event, number) == ("step", 1):
            os.kill(server_ids[0], signal.SIGKILL)
            ray.kill(ray.get_actor(f"{log.directory.name}-learner-0"))

    outcome = await train_in_time(
        run_tree("both-killed", tmp_path, run={"steps": 5000, "max_restarts": 9}, registry={"patience_s": 2}),
        act,
        on_redis=lambda redis: server_ids.append(redis.process_id),
    )
    assert isinstance(outcome.error, RegistryError)
    restarts = [note for note in outcome.log.notes if "(run.max_restarts)" in note]
    assert len(restarts) == 1
    assert "a learner rank died" in restarts[0]


async def test_a_dead_learner_rank_ends_the_run_with_a_clear_error(tmp_path: Path) -> None:
    outcome = await train_in_time(
        run_tree("learner-killed", tmp_path, run={"steps": 50, "max_restarts": 0}), kill_actor_at_step_1("learner-0")
    )
    assert isinstance(outcome.error, LearnerError)
    assert re.search("a learner rank died during (train_step|the wait for the groups of step 1)", str(outcome.error))
    summary = json.loads(outcome.directory.summary_path.read_text())
    assert (summary["status"], summary["steps"], summary["checkpoint"]) == ("failed", 1, None)


async def test_a_learner_that_freezes_in_a_step_and_dies_in_a_checkpoint_is_started_again(tmp_path: Path) -> None:
    """Frozen: long before a step may end (`run.step_timeout_s`)."""
    murders: list[asyncio.Task[None]] = []

    async def kill_in_checkpoint(log: RecordingLog) -> None:
        while not (log.checkpoints.directory / "step_000004.partial").exists():
            await asyncio.sleep(0.001)
        ray.kill(ray.get_actor(f"{log.directory.name}-learner-life1-0"))

    async def act(log: RecordingLog, event: str, number: int) -> None:
        if (event, number) == ("step", 3) and not murders:
            process_of("LearnerActor").suspend()
            murders.append(asyncio.create_task(kill_in_checkpoint(log)))

    tree = run_tree(
        "learner-restarted", tmp_path, run={"steps": 5}, checkpoint={"every_steps": 2}, cluster=QUICK_HEARTBEATS
    )
    outcome = await train_in_time(tree, act)
    assert_all_groups_trained(outcome)
    assert [row["step"] for row in outcome.rows] == [1, 2, 3, 4, 5]
    assert [row["weight_version"] for row in outcome.rows] == [1, 2, 3, 4, 5]
    assert all((row["staleness/max"] or 0) <= 1 for row in outcome.rows)
    restarts = [note for note in outcome.log.notes if "(run.max_restarts) from step 2" in note]
    assert [note.partition("restart ")[2][:6] for note in restarts] == ["1 of 3", "2 of 3"]
    assert "rank 0 was silent for 10 s" in restarts[0]
    assert "was silent" not in restarts[1]
    assert outcome.snapshot is not None
    assert outcome.snapshot.life == 3


async def test_a_run_of_which_no_update_can_be_applied_ends_with_the_reason(tmp_path: Path) -> None:
    tree = run_tree(
        "learns-nothing",
        tmp_path,
        run={"steps": 50},
        algorithm={"max_staleness": 0, "advantage_normalization": "group_mean_only"},
        rewards=[{"name": "tests.integration.rewards:HugeReward", "cpus_per_replica": 0.1}],
    )
    outcome = await train_in_time(tree)
    assert isinstance(outcome.error, RunError)
    assert "the policy learns no more: 3 steps in a row made no update" in str(outcome.error)
    summary = json.loads(outcome.directory.summary_path.read_text())
    assert (summary["status"], summary["steps"]) == ("failed", 3)
    told = [note for note in outcome.log.notes if "the weights stay as they were" in note]
    assert [note.split(":")[0] for note in told] == ["step 1", "step 2", "step 3"]


async def test_checkpoints_that_fail_again_and_again_end_the_run_with_their_reason(tmp_path: Path) -> None:
    async def act(log: RecordingLog, event: str, number: int) -> None:
        if event == "step" and number == 1:  # later steps may be made before the failure is heard of
            log.checkpoints.directory.rename(tmp_path / "elsewhere")
            log.checkpoints.directory.write_text("in the place of the folder")

    tree = run_tree("disk-stays-full", tmp_path, run={"steps": 50}, checkpoint={"every_steps": 1, "max_failures": 1})
    outcome = await train_in_time(tree, act)
    assert isinstance(outcome.error, CheckpointError)
    assert "1 checkpoints in a row failed (checkpoint.max_failures)" in str(outcome.error)
    assert json.loads(outcome.directory.summary_path.read_text())["status"] == "failed"


@pytest.mark.proof  # five replicas, with ever longer pauses between them; quickly in tests/unit/cluster/pools
async def test_a_reward_that_kills_every_replica_ends_the_run_with_its_name(tmp_path: Path) -> None:
    reward = {"name": DEADLY, "cpus_per_replica": 0.1, "retries": 0}
    tree = run_tree("deadly", tmp_path, rollout={"max_attempts": 20}, rewards=[reward])
    outcome = await train_in_time(tree)
    assert isinstance(outcome.error, RunError)
    assert "DeadlyReward workers in a row were lost before they had answered one call" in str(outcome.error)


async def test_prompts_that_are_all_too_long_are_refused_by_name(tmp_path: Path) -> None:
    tree = run_tree("too-long", tmp_path, rollout={"max_prompt_tokens": 5})
    outcome = await train_in_time(tree)
    assert isinstance(outcome.error, DataError)
    assert "shapes:train:40: no prompt is left" in str(outcome.error)
    assert "max_prompt_tokens" in str(outcome.error)
