"""The chaos harness without a run: what can be injured, what is chosen, and what counts as broken."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import psutil
import pytest

from cluster.chaos import KINDS, overrides_of, parse, share_of
from cluster.faults import hosts
from cluster.faults.harness import injure_many
from cluster.faults.injuries import Freeze, Starve, choose
from cluster.faults.invariants import check_ledger, check_metrics, check_rewards
from cluster.faults.recovery import Recovery
from cluster.faults.sabotage import FAILS, SHAPE, give_order, sabotage
from cluster.faults.storage import (
    DISK_FULL,
    SHARED_MEMORY_MIB,
    Full,
    own_shared_memory,
    shared_memory_of,
    small_disk,
    why_no_small_disk,
)
from cluster.faults.supervisor import Supervisor
from cluster.faults.victims import Victim, kind_of
from cluster.reports.metrics import MetricsRow
from cluster.state.ledger import GroupState
from cluster.state.registry import RunSnapshot
from configs.load import DEFAULT_CONFIG, load_config
from rewards.calling import WrongAnswerError
from rewards.registry import create_reward
from rollout.records import Prompt
from rollout.shapes import load_split
from tests.waiting import wait_until


def row(step: int, loss: float | None = 0.1, version: int | None = None) -> MetricsRow:
    return {"step": step, "weight_version": step if version is None else version, "loss": loss}


def snapshot(step: int, **counts: int) -> RunSnapshot:
    return RunSnapshot(
        status="stopped",
        num_steps=10,
        groups_per_step=4,
        dashboard=None,
        job=None,
        started_s=0.0,
        progress={"step": step, "weight_version": step},
        workers={},
        group_counts={state: counts.get(state.value, 0) for state in GroupState},
        life=1,
        given_up={},
    )


@dataclass(frozen=True)
class FakeProcess:
    pid: int


def victim(kind: str, pid: int) -> Victim:
    return Victim(kind, cast(psutil.Process, FakeProcess(pid)))


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("ray::RolloutActor.roll_group", "rollout"),
        ("ray::RewardActor", "reward"),
        ("VLLM::EngineCore", "engine"),
        ("ray::LearnerActor.train_step", "learner"),
        ("ray::IDLE", None),
        ("raylet --raylet_socket_name=x", None),
        ("", None),
    ],
)
def test_a_process_is_known_by_its_title(title: str, kind: str | None) -> None:
    assert kind_of(title) == kind


def choose_many(victims: Sequence[Victim], num: int, seed: int) -> list[Victim]:
    rng = random.Random(seed)
    so_far: list[Victim] = []
    for _ in range(num):
        chosen = choose(victims, rng, Counter(each.kind for each in so_far))
        assert chosen is not None
        so_far.append(chosen)
    return so_far


def test_every_kind_comes_up_equally_often_however_many_processes_another_has() -> None:
    victims = [victim("reward", pid) for pid in range(50)] + [victim("learner", 100), victim("redis", 101)]
    for seed in range(20):
        assert set(Counter(each.kind for each in choose_many(victims, 12, seed)).values()) == {4}
    assert choose([], random.Random(0), {}) is None


def test_a_kind_that_cannot_be_injured_yet_does_not_hold_up_the_others() -> None:
    chosen = choose([victim("reward", 1)], random.Random(0), {"reward": 7, "learner": 0})
    assert chosen is not None
    assert chosen.kind == "reward"


def test_the_same_seed_chooses_the_same_injuries() -> None:
    victims = [victim(kind, pid) for pid, kind in enumerate(KINDS)]
    assert choose_many(victims, 30, 3) == choose_many(victims, 30, 3)
    assert choose_many(victims, 30, 3) != choose_many(victims, 30, 4)


def test_a_frozen_process_answers_again_when_the_freeze_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "while True: print(input(), flush=True)"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        freeze = Freeze("rollout", psutil.Process(child.pid))
        freeze.inflict()
        wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED, 5, "it is not frozen")
        freeze.end()
        child.stdin.write("awake\n")
        child.stdin.flush()
        assert child.stdout.readline() == "awake\n"
    finally:
        child.kill()
        child.wait()
    freeze.end()  # of a process that is gone


@pytest.mark.skipif(why_no_small_disk() is not None, reason="only root may mount a small file system")
def test_a_full_disk_takes_no_byte_more_and_is_free_again_after(tmp_path: Path) -> None:
    with small_disk(tmp_path):
        disk = Full(DISK_FULL, tmp_path)
        disk.inflict()
        with pytest.raises(OSError, match="No space left"), (tmp_path / "more").open("wb", buffering=0) as file:
            file.write(b"x")
        disk.end()
        (tmp_path / "more").write_bytes(b"x")
        disk.end()
    assert not (tmp_path / "more").exists()


@pytest.mark.skipif(why_no_small_disk() is not None, reason="only root may mount a small file system")
def test_a_command_with_shared_memory_of_its_own_sees_it_full_and_nobody_else_does() -> None:
    child = subprocess.Popen([*own_shared_memory(), "sh", "-c", "df --output=size /dev/shm; read line"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert child.stdout is not None
        assert [child.stdout.readline().strip() for _ in range(2)][1] == str(SHARED_MEMORY_MIB << 10)
        seen = shared_memory_of(psutil.Process(child.pid))
        (seen / "mark").touch()
        assert not Path("/dev/shm/mark").exists()
    finally:
        child.kill()
        child.wait()


def test_a_starved_process_gets_memory_again_when_the_injury_ends() -> None:
    code = """
for size in iter(input, ""):
    try:
        print("ok" if bytearray(int(size)) else "", flush=True)
    except MemoryError:
        print("none", flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask() -> str:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{1 << 26}\n")
        child.stdin.flush()
        return child.stdout.readline().strip()

    try:
        starve = Starve(psutil.Process(child.pid))
        assert ask() == "ok"
        starve.inflict()
        assert ask() == "none"
        starve.end()
        assert ask() == "ok"
    finally:
        child.kill()
        child.wait()
    starve.end()  # of a process that is gone


def test_a_run_whose_redis_was_killed_has_recovered_when_it_was_resumed_and_not_by_steps_made_without_it() -> None:
    class Steps:
        num_steps = 5
        num_resumes = 0

        def rows(self) -> list[MetricsRow]:
            return [{"groups_rolled_again": 0}]

    run = Steps()
    recovery = Recovery(cast(Supervisor, run), "redis", "redis")
    run.num_steps = 12
    assert not recovery.is_over(), "it makes steps for as long as its patience lasts"
    run.num_resumes = 1
    assert not recovery.is_over()
    run.num_steps = 10  # of the checkpoint
    assert not recovery.is_over()
    run.num_steps = 14
    assert recovery.is_over()
    fault = recovery.fault(1.0)
    assert (fault.resumed, fault.step, fault.steps_redone) == (True, 5, 2)


def test_ctrl_c_ends_the_injuries_and_keeps_what_was_survived() -> None:
    class Interrupted:
        num_steps = 1

        def wait_until(self, is_so: Callable[[], bool], what: str) -> float:
            assert is_so()
            return 0.0

        def run_for(self, duration_s: float) -> float:
            raise KeyboardInterrupt

    assert injure_many(cast(Supervisor, Interrupted()), list, 3, 0) == []


def test_injuries_are_shared_between_one_machine_and_hosts_by_their_kinds() -> None:
    assert share_of(40, ["a"] * 18, ["a"] * 20) == 36
    assert share_of(3, [], ["a"]) == 0
    assert share_of(3, ["a"], ["a"]) == 3


def test_steps_that_are_whole_and_in_order_break_nothing() -> None:
    assert check_metrics([row(step) for step in range(1, 6)]) == []
    assert check_metrics([]) == []


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([row(1), row(3)], "line 2 has 3"),
        ([row(1), row(2), row(2)], "line 3 has 2"),
        ([row(1), row(2, version=1)], "weight versions do not go up"),
        ([row(1), row(2, loss=None)], r"not finite at steps \[2\]"),
    ],
)
def test_a_step_that_is_missing_or_made_twice_or_not_finite_is_named(rows: list[MetricsRow], complaint: str) -> None:
    assert any(re.search(complaint, text) for text in check_metrics(rows))


def test_a_ledger_adds_up_when_each_step_has_its_groups_and_the_rest_is_under_way() -> None:
    assert check_ledger(snapshot(3, trained=12, queued=4, dispatched=4), groups_per_step=4, max_in_flight=8) == []


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        (snapshot(3, trained=13), "13 groups are trained, but 3 steps take 12"),
        (snapshot(3, trained=11), "11 groups are trained"),
        (snapshot(3, trained=12, queued=9), "9 groups are under way"),
        (snapshot(3, trained=12, scored=-1), "counts below 0"),
    ],
)
def test_a_ledger_that_does_not_add_up_is_named(state: RunSnapshot, complaint: str) -> None:
    assert any(complaint in text for text in check_ledger(state, groups_per_step=4, max_in_flight=8))


def test_a_reward_replica_may_be_killed_or_told_to_misbehave() -> None:
    assert parse(["--kinds", "reward-fails,reward-slow", "reward"]).kinds == ["reward-fails", "reward-slow", "reward"]
    away = [reason for reason in (why_no_small_disk(), hosts.why_not()) if reason is not None]
    assert len(parse([]).kinds) == len(KINDS) - 2 * len(away)
    with pytest.raises(SystemExit):
        parse(["--kinds", "reward-fails,rewards"])


PICTURES = np.zeros((4, 64, 64, 3), np.uint8)


def test_a_sabotaged_reward_is_itself_until_it_is_told_otherwise(tmp_path: Path) -> None:
    config = load_config("configs/shapes_cpu.yaml")
    sabotaged = load_config("configs/shapes_cpu.yaml", sabotage(config, tmp_path))
    (reward,) = sabotaged.rewards
    assert (reward.name, reward.replicas.min) == ("shapes", 2)
    made = create_reward(reward.implementation, reward.options, "cpu")
    prompts = list(load_split("train", 4))
    expected = create_reward("shapes", {}, "cpu").score(PICTURES, prompts)
    assert made.score(PICTURES, prompts) == expected
    assert not made.applies_to(Prompt("a:1", "a text alone"))
    give_order(tmp_path, os.getpid() + 1, FAILS)
    assert made.score(PICTURES, prompts) == expected
    give_order(tmp_path, os.getpid(), SHAPE)
    with pytest.raises(WrongAnswerError, match="3 scores for 4 pictures"):
        made.score(PICTURES, prompts)
    give_order(tmp_path, os.getpid(), FAILS)
    with pytest.raises(RuntimeError, match="told to fail"):
        made.score(PICTURES, prompts)


def test_groups_that_rewards_alone_have_cost_are_named() -> None:
    rows: list[MetricsRow] = [{**row(step), "groups_rolled_again": 0} for step in range(1, 101)]
    assert check_rewards(snapshot(100, trained=400), rows, groups_per_step=4) == []
    rows[-1]["groups_rolled_again"] = 5
    (complaint,) = check_rewards(snapshot(100, trained=400), rows, groups_per_step=4)
    assert complaint == "5 groups were drawn again, of 400: more than one in a hundred"
    lost = replace(snapshot(100, trained=400), given_up={"a:1": {"sequence": 3, "reason": "no luck"}})
    rows[-1]["groups_rolled_again"] = 4
    assert "prompt a:1 was given up" in check_rewards(lost, rows, groups_per_step=4)[0]


def test_steps_of_the_default_config_are_small_and_all_else_is_as_it_is_given(tmp_path: Path) -> None:
    assert parse([]).config == DEFAULT_CONFIG
    small = load_config(DEFAULT_CONFIG, overrides_of(DEFAULT_CONFIG, ())).algorithm
    assert (small.groups_per_step, small.group_size) == (4, 4)
    given = load_config(DEFAULT_CONFIG, overrides_of(DEFAULT_CONFIG, ["algorithm.groups_per_step=6"])).algorithm
    assert (given.groups_per_step, given.group_size) == (6, 4)
    own = tmp_path / "own.yaml"
    shutil.copy(DEFAULT_CONFIG, own)
    theirs = load_config(str(own), overrides_of(str(own), ())).algorithm
    assert (theirs.groups_per_step, theirs.group_size) == (16, 8)
