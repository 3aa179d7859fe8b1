"""Whole runs through real Ray, vLLM, DeepSpeed and Redis: what they leave behind, what staleness means, and that a
deterministic run is the same bit for bit, through actors and queues or without them, in one go or in two."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from transformers import JanusForConditionalGeneration

from cluster.actors import spawn
from cluster.report import read_run
from cluster.reports.metrics import METRICS
from cluster.reports.timeline import QUEUE, REWARDS, ROLLOUT, read_timeline
from cluster.state.ledger import GroupState
from configs.load import load_config
from rewards.benchmarks.geneval.records import TAGS
from tests.integration.sequential_loop import SequentialLoop
from tests.integration.training import Outcome, RecordingLog, run_tree, train
from tests.tiny_models import tiny_janus_folder
from tests.unit.rewards.benchmarks.judged_data import write_data

NUM_STEPS = 3
BRIGHTNESS = "tests.integration.rewards:MoodyReward"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def asynchronous(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Three steps on vLLM, one step stale at most, evaluated before, after the second, and after; with two benchmarks
    after the second, one of which cannot be scored."""
    official = write_data(tmp_path_factory.mktemp("official"))["geneval_pp"]
    (official / "test_scripts" / "Eval-gpt-4.1-geneval++.py").write_text("no questions to a judge")
    unscored = {"limit": 1, "every_steps": 2, "data": str(official), "judge_url": "http://127.0.0.1:9/v1"}
    tree = run_tree(
        "asynchronous",
        tmp_path_factory.mktemp("runs"),
        run={"steps": NUM_STEPS},
        data={
            "evaluation": {"heldout": "shapes:heldout", "unseen_pairs": "shapes:unseen_pairs"},
            "num_evaluation_prompts": 3,
            "evaluate_every_steps": 2,
            "benchmarks": {"shapes": {"limit": 6, "every_steps": 2}, "geneval_pp": unscored},
        },
        algorithm={"max_staleness": 1},
        rollout={"engine": "vllm"},
        checkpoint={"every_steps": 2},
        samples={"every_steps": 1},
        watching={"trackers": ["tensorboard"]},
        rewards=[{"name": name, "cpus_per_replica": 0.1} for name in ("shapes", BRIGHTNESS)],
    )
    return asyncio.run(train(tree))


def deterministic_tree(name: str, directory: Path) -> dict[str, Any]:
    """Rewarded by brightness, which any two pictures differ in: what is drawn without training deserves 0 for shapes,
    and would teach nothing."""
    return run_tree(
        name,
        directory,
        run={"steps": NUM_STEPS, "deterministic": True},
        algorithm={"max_staleness": 0, "groups_per_step": 3},
        rollout={"engine": "vllm"},
        learner={"micro_batch_size": 3, "zero_stage": 1},
        rewards=[{"name": BRIGHTNESS, "cpus_per_replica": 0.1}],
    )


@pytest.fixture(scope="module")
def deterministic(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A synchronous run with the seed, the prompts and the engine of `asynchronous`."""
    return asyncio.run(train(deterministic_tree("whole", tmp_path_factory.mktemp("runs"))))


def test_a_run_finishes_and_every_group_is_trained_on(asynchronous: Outcome) -> None:
    assert asynchronous.error is None
    assert asynchronous.snapshot is not None
    assert asynchronous.snapshot.status == "finished"
    assert (asynchronous.snapshot.step, asynchronous.snapshot.weight_version) == (NUM_STEPS, NUM_STEPS)
    counts = asynchronous.snapshot.group_counts
    assert counts[GroupState.TRAINED] == NUM_STEPS * 2 == sum(counts.values())


def test_the_run_directory_holds_config_metrics_pictures_and_curves(asynchronous: Outcome) -> None:
    directory = asynchronous.directory
    assert load_config(directory.config_path) == asynchronous.config
    assert [row["step"] for row in asynchronous.rows] == [1, 2, 3]
    health = ("", "/std_in_group", "/no_spread", "/at_min", "/at_max", "/perfect")
    of_each = (*health, "/queue_ms", "/batch_ms", "/images_per_s", "/failed", "/repeated")
    of_rewards = {f"reward/{name}{suffix}" for name in ("shapes", BRIGHTNESS) for suffix in of_each}
    correlation = f"reward_correlation/shapes~{BRIGHTNESS}"
    always = {*METRICS, *of_rewards, correlation, "staleness/share_0"}
    assert always == {key for key in asynchronous.rows[0] if not key.startswith("memory/")}
    for step in range(1, NUM_STEPS + 1):
        with Image.open(directory.samples_path(step)) as picture:
            assert min(picture.size) > 32
    for path in (directory.curves_path, *directory.samples_dir.glob("before_after_*.png")):
        with Image.open(path) as picture:
            picture.verify()
    assert len(list(directory.samples_dir.glob("before_after_*.png"))) == 2
    assert list((directory.path / "trackers" / "tensorboard").glob("events.*"))
    view = read_run(directory.path)
    assert (view.status, list(view.before_after), list(view.sample_steps)) == (
        "finished",
        ["heldout", "unseen_pairs"],
        [1, 2, 3],
    )
    assert {"starting", "waiting", "learning", "syncing", "evaluating"} <= view.phases.keys()
    assert directory.report_path.stat().st_size > 50_000


def test_the_memory_of_launcher_workers_and_learner_is_among_the_metrics(asynchronous: Outcome) -> None:
    seen = [(key, value) for row in asynchronous.rows for key, value in row.items() if key.startswith("memory/")]
    processes = ("launcher", "rollout", "rewards", "learner")
    assert {key for key, _ in seen} == {f"memory/{process}_gb" for process in processes}
    assert all(value is not None and 50e6 < value * 1e9 < psutil.virtual_memory().total for _, value in seen)
    largest = {key: max(value or 0.0 for other, value in seen if other == key) for key, _ in seen}
    assert largest["memory/rollout_gb"] > largest["memory/rewards_gb"], "its engine's processes count, too"


def test_the_timeline_holds_every_group_and_can_be_opened(asynchronous: Outcome) -> None:
    events = json.loads(asynchronous.directory.timeline_path.read_text())
    assert events == read_timeline(asynchronous.directory.timeline_path)
    names = {f"group {sequence}" for sequence in range(NUM_STEPS * 2)}
    for process in (ROLLOUT, REWARDS, QUEUE):
        assert {event["name"] for event in events if event["ph"] == "X" and event["pid"] == process} == names


def test_the_summary_tells_how_the_run_ended(asynchronous: Outcome) -> None:
    summary = json.loads(asynchronous.directory.summary_path.read_text())
    assert (summary["status"], summary["steps"], summary["images"]) == ("finished", NUM_STEPS, NUM_STEPS * 4)
    assert summary["wall_s"] > 0
    assert summary["images_per_s"] == pytest.approx(summary["images"] / summary["wall_s"])
    for name in ("heldout", "unseen_pairs"):
        for when in ("before", "after"):
            assert 0 < summary[f"{name}_reward_{when}"] < 2  # two rewards from 0 to 1
            parts = [summary[f"{name}_rewards"][reward][when] for reward in ("shapes", BRIGHTNESS)]
            assert sum(parts) == pytest.approx(summary[f"{name}_reward_{when}"])
    assert summary["reward_first"] == asynchronous.rows[0]["reward/mean"]
    assert summary["reward_last"] == asynchronous.rows[-1]["reward/mean"]
    assert (summary["groups_failed"], summary["groups_given_up"], summary["error"]) == (0, 0, None)
    assert Path(summary["checkpoint"]) == asynchronous.directory.checkpoints_dir / "step_000003" / "model"


def test_the_second_step_tells_what_has_drifted_on_the_evaluation_sets(asynchronous: Outcome) -> None:
    summary = json.loads(asynchronous.directory.summary_path.read_text())
    evaluated = [{key for key in row if key.startswith("evaluation/")} for row in asynchronous.rows]
    assert (evaluated[0], evaluated[2]) == (set(), set())
    for name in ("heldout", "unseen_pairs"):
        values = {key: asynchronous.rows[1][key] for key in sorted(evaluated[1]) if key.split("/")[1] == name}
        base = f"evaluation/{name}"
        rewards = [f"{base}/{reward}" for reward in ("shapes", BRIGHTNESS)]
        assert set(values) == {f"{key}{suffix}" for key in (base, *rewards) for suffix in ("", "/change")}
        before = {key: (values[key] or 0.0) - (values[f"{key}/change"] or 0.0) for key in (base, *rewards)}
        assert before[base] == pytest.approx(summary[f"{name}_reward_before"])
        for reward in ("shapes", BRIGHTNESS):
            assert before[f"{base}/{reward}"] == pytest.approx(summary[f"{name}_rewards"][reward]["before"])
        assert sum(values[key] or 0.0 for key in rewards) == pytest.approx(values[base])


def test_a_benchmark_is_among_the_metrics_and_one_that_cannot_be_scored_is_a_note(asynchronous: Outcome) -> None:
    keys = [{key for key in row if key.startswith("benchmark/")} for row in asynchronous.rows]
    assert (keys[0], keys[2]) == (set(), set())
    measured = {key.removeprefix("benchmark/shapes/"): asynchronous.rows[1][key] for key in keys[1]}
    assert set(measured) == {"overall", *TAGS, "pictures_correct", "prompts_with_any_correct", "missing"}
    assert measured["missing"] == 0
    folder = asynchronous.directory.path / "benchmarks" / "shapes" / "step_000002"
    result = json.loads((folder / "results" / "shapes.json").read_text())
    assert (result["num_files"], result["is_complete"]) == (24, True)
    assert result["measures"]["overall"]["value"] == measured["overall"]
    assert len(list((folder / "images").rglob("*.png"))) == 24
    assert any("benchmark geneval_pp after step 2 failed: " in note for note in asynchronous.log.notes)


def test_no_trajectory_is_staler_than_allowed(asynchronous: Outcome) -> None:
    for step, groups in asynchronous.log.groups.items():
        for trajectory in (trajectory for group in groups for trajectory in group.rollout.trajectories):
            assert 0 <= trajectory.oldest_weight_version <= trajectory.newest_weight_version <= step - 1
            assert step - 1 - trajectory.oldest_weight_version <= 1
    # The first step's groups are as fresh as can be, and those of the second were begun before it was made.
    assert [row["staleness/max"] for row in asynchronous.rows][:2] == [0, 1]


def test_checkpoints_are_plain_folders_with_weights_that_have_learned(asynchronous: Outcome) -> None:
    folders = sorted(path.name for path in asynchronous.directory.checkpoints_dir.iterdir())
    assert folders == ["step_000002", "step_000003"]
    trained = JanusForConditionalGeneration.from_pretrained(
        asynchronous.directory.checkpoints_dir / folders[-1] / "model"
    ).state_dict()
    start = JanusForConditionalGeneration.from_pretrained(tiny_janus_folder()).state_dict()
    changed = {name for name, tensor in start.items() if not torch.equal(tensor, trained[name])}
    assert any(name.startswith("model.language_model.layers") for name in changed)
    assert not any(name.startswith("model.vqmodel") for name in changed)


def test_without_staleness_every_trajectory_has_the_learners_version(deterministic: Outcome) -> None:
    assert deterministic.error is None
    assert [row["staleness/max"] for row in deterministic.rows] == [0, 0, 0]
    for step, groups in deterministic.log.groups.items():
        for trajectory in (trajectory for group in groups for trajectory in group.rollout.trajectories):
            assert trajectory.oldest_weight_version == trajectory.newest_weight_version == step - 1


def test_the_same_seed_gives_the_same_groups_whatever_else_a_run_does(
    deterministic: Outcome, asynchronous: Outcome
) -> None:
    """Those that both draw with the starting weights."""
    theirs = asynchronous.log.groups[1]
    for mine, twin in zip(deterministic.log.groups[1][: len(theirs)], theirs, strict=True):
        assert mine.rollout.request == twin.rollout.request
        np.testing.assert_array_equal(mine.reward_columns[BRIGHTNESS], twin.reward_columns[BRIGHTNESS])
        for one, other in zip(mine.rollout.trajectories, twin.rollout.trajectories, strict=True):
            np.testing.assert_array_equal(one.cot_ids, other.cot_ids)
            np.testing.assert_array_equal(one.image_ids, other.image_ids)


def made_by(outcome: Outcome) -> list[tuple[float | None, float | None]]:
    assert outcome.error is None
    return [(row["loss"], row["reward/mean"]) for row in outcome.rows]


def test_a_deterministic_run_equals_a_plain_loop_bit_for_bit(deterministic: Outcome, tmp_path: Path) -> None:
    async def loop() -> list[tuple[float, float]]:
        actor = spawn(SequentialLoop, name="sequential-loop", num_cpus=1, threads=1)
        made: list[tuple[float, float]] = await actor.run.remote(deterministic_tree("loop", tmp_path))
        return made

    assert len(made_by(deterministic)) == NUM_STEPS
    assert all(row["grad_norm"] for row in deterministic.rows), "its weights change"
    assert made_by(deterministic) == asyncio.run(loop())


def test_an_engine_and_a_learner_that_take_turns_make_the_same_run(deterministic: Outcome, tmp_path: Path) -> None:
    tree = deterministic_tree("in-turns", tmp_path)
    tree["rollout"]["colocate"] = True
    tree["checkpoint"] = {"every_steps": 1}
    tree["data"] |= {
        "evaluation": {"heldout": "shapes:heldout"},
        "num_evaluation_prompts": 2,
        "evaluate_every_steps": 1,
    }
    colocated = asyncio.run(train(tree))
    assert made_by(colocated) == made_by(deterministic)
    assert [row["weight_version"] for row in colocated.rows] == [1, 2, 3]
    assert colocated.snapshot is not None
    counts = colocated.snapshot.group_counts
    assert counts[GroupState.TRAINED] == NUM_STEPS * 3 == sum(counts.values())
    assert [row["evaluation/heldout"] is not None for row in colocated.rows[:2]] == [True, True]
    for row in colocated.rows:
        assert all(row[f"turns/{turn}_s"] > 0 for turn in ("drawing", "to_learning", "learning", "to_drawing"))
        assert row["turns/learning_s"] <= row["time/learn_s"]
    assert not any("checkpoint" in note for note in colocated.log.notes)
    folders = sorted(path.name for path in colocated.directory.checkpoints_dir.iterdir())
    assert folders == ["step_000002", "step_000003"]


def test_weights_that_are_sent_as_changes_make_the_same_run(deterministic: Outcome, tmp_path: Path) -> None:
    tree = deterministic_tree("changes", tmp_path)
    tree["weight_sync"] = {"delta": True}
    changes = asyncio.run(train(tree))
    assert made_by(changes) == made_by(deterministic)
    shares = [row.get("sync/changed_share") for row in changes.rows]
    assert shares[0] is None, "the first version has none before it"
    assert shares[1] is not None
    assert 0 < shares[1] < 1


@pytest.mark.proof
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(deterministic: Outcome, tmp_path: Path) -> None:
    async def stop_at_step_1(log: RecordingLog, event: str, number: int) -> None:
        if (event, number) == ("step", 1):
            assert log.run is not None
            log.run.stop()

    tree = deterministic_tree("in-two", tmp_path)
    stopped = asyncio.run(train(tree, stop_at_step_1))
    assert stopped.summary is not None
    assert (stopped.summary.status, stopped.summary.steps) == ("stopped", 1)
    tree["rollout"]["num_workers"] = 2  # who rolls which group does not matter either
    resumed = asyncio.run(train(tree, resumed=stopped.directory))
    assert made_by(resumed) == made_by(deterministic)


def test_engine_and_learner_agree_on_what_they_sampled(asynchronous: Outcome) -> None:
    """The parity gate in float32 on the CPU: vLLM against the learner, conditional log-probabilities."""
    for phase in ("cot", "image"):
        for row in asynchronous.rows[:2]:  # before the first weight sync, and right after it
            assert row[f"parity/mean_abs/{phase}"] < 1e-4


@pytest.fixture(scope="module")
def guided(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Two steps of a guided policy at a temperature of its own, with dynamic sampling."""
    tree = run_tree(
        "guided",
        tmp_path_factory.mktemp("runs"),
        algorithm={"policy": "guided", "max_staleness": 0, "max_resamples": 1},
        rollout={"temperature": 0.8, "guidance_scale": 3.0},
        parity={"every_steps": 1},
    )
    return asyncio.run(train(tree))


def test_a_group_without_spread_is_trained_on_only_after_its_prompt_was_replaced(guided: Outcome) -> None:
    groups = [group for of_step in guided.log.groups.values() for group in of_step]
    assert len(groups) == 2 * 2
    num_replaced = [group.rollout.request.attempt // guided.config.rollout.max_attempts for group in groups]
    assert all(np.ptp(group.rewards) > 0 or count == 1 for group, count in zip(groups, num_replaced, strict=True))
    assert guided.rows[-1]["groups_resampled"] == sum(num_replaced)


def test_a_guided_policy_at_a_temperature_passes_the_parity_gate_at_every_version(guided: Outcome) -> None:
    assert guided.error is None
    assert guided.log.notes == []
    for row in guided.rows:
        assert row["parity/mean_abs/image"] < 1e-4
        assert row["parity/mean_abs/cot"] < 1e-4
        assert row["ratio/max"] == pytest.approx(1.0, abs=1e-2)
