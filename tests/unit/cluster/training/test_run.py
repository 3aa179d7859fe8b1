"""What a run asks of Ray for its actors, what it says when it is stopped or waits in vain; without Ray and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.actors import learner as learner_actor
from cluster.actors.learner import LearnerActor
from cluster.groups.queue_client import spawn_queue
from cluster.groups.roller import RollCounts
from cluster.learning.learner_group import LearnerLostError
from cluster.learning.rank_placement import spawn_rank
from cluster.reports import Progress, RunLog
from cluster.reports.metrics_file import MetricsWriter
from cluster.state import Checkpoints, Registry, RunDirectory
from cluster.training.pipeline import Machinery, Pipeline
from cluster.training.run import Run
from configs.errors import RunError
from configs.load import load_config
from configs.schema import RunConfig
from rollout.prompts import PromptSet, PromptSource
from rollout.records import Prompt

WAIT_S = 10.0
PROMPTS = (Prompt("test:1", "a fox"),)
NODE = "c0ffee11" * 7


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    overrides = [
        *(f"run.dir={tmp_path}", "run.step_timeout_s=0.05", "watching.metrics=false"),
        *('learner.env_vars={"NCCL_DEBUG": "INFO", "HF_HOME": "/scratch"}', 'rollout.env_vars={"LD_PRELOAD": "x.so"}'),
        *('rollout.node_labels={"zone": "a"}', 'rewards.shapes.node_labels={"zone": "b"}'),
    ]
    return load_config("configs/shapes_cpu.yaml", overrides)


@pytest.fixture
def screen() -> StringIO:
    return StringIO()


@pytest.fixture
def run(config: RunConfig, screen: StringIO) -> Iterator[Run]:
    directory = RunDirectory.create(config)
    with MetricsWriter(directory.metrics_path) as metrics, Progress(80, screen) as progress:
        checkpoints = Checkpoints(directory.checkpoints_dir, config.checkpoint, progress.note)
        log = RunLog(config, directory, Registry("redis://localhost:1", "trial"), progress, metrics, checkpoints)
        yield Run(config, PromptSet("test", PROMPTS), {}, log)


async def test_who_stops_a_run_that_writes_its_last_checkpoint_is_told_and_may_do_it_again(
    run: Run, screen: StringIO
) -> None:
    run._task = finishing = asyncio.create_task(asyncio.Event().wait())
    run._is_finishing = True
    run.stop()
    await asyncio.sleep(0)
    assert "the last checkpoint is being written (once more to end without it)" in screen.getvalue()
    assert not finishing.cancelling()
    run.stop()
    await asyncio.wait({finishing}, timeout=WAIT_S)
    assert finishing.cancelled()


def waiting(run: Run, config: RunConfig, watched: Any) -> Pipeline:
    """One whose groups never come. watched: of the learner."""
    never = asyncio.Event()

    async def roll(request: Any) -> Any:
        await never.wait()

    async def group(*_: Any) -> None:
        """The registry is not there."""

    roller = SimpleNamespace(roll=roll, rewards=run._rewards, counts=RollCounts())
    queue = SimpleNamespace(get_batch=lambda step: never.wait())
    log: Any = SimpleNamespace(activity=run.log.activity, check=lambda: None, note=run.log.note, group=group)
    learner: Any = SimpleNamespace(ranks=(), watched=watched)
    machinery: Any = Machinery(run.pools[0], roller, queue, learner, SimpleNamespace())  # type: ignore[arg-type]
    return Pipeline(config, machinery, PromptSource(PROMPTS, seed=0), log)


async def test_a_step_that_waits_in_vain_names_every_pool_with_its_workers(run: Run, config: RunConfig) -> None:
    with pytest.raises(RunError) as raised:
        await asyncio.wait_for(waiting(run, config, lambda work, what: work).run(), WAIT_S)
    assert "step 0 waited 0.05 s (run.step_timeout_s) for its groups; " in str(raised.value)
    assert "rollout: 0 of 1 READY; reward-shapes: 0 of 1 READY" in str(raised.value)


async def test_a_learner_that_is_lost_while_its_groups_are_waited_for_is_noticed(run: Run, config: RunConfig) -> None:
    """Its workers may wait for weights that are lost with it, so that no group would ever come."""

    async def watched(work: Awaitable[Any], what: str) -> Any:
        end_of_work = asyncio.ensure_future(work)
        await asyncio.sleep(0)
        end_of_work.cancel()
        raise LearnerLostError(f"a learner rank died during {what}")

    with pytest.raises(LearnerLostError, match="died during the wait for the groups of step 0"):
        await asyncio.wait_for(waiting(run, config, watched).run(), WAIT_S)


class Asked(list[tuple[str, dict[str, Any]]]):
    """What Ray was asked for: names of classes, and the options."""

    def remote(self, *classes: type, **_: Any) -> Any:
        """In place of `ray.remote`, as a decorator with options, too."""
        if not classes:
            return self.remote

        def options(**given: Any) -> Any:
            self.append((classes[0].__name__, given))
            return SimpleNamespace(remote=lambda *arguments: "actor")

        return SimpleNamespace(options=options)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    asked = Asked()
    monkeypatch.setattr("ray.remote", asked.remote)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: NODE))
    return asked


def test_the_trajectory_queue_is_asked_for_on_the_launchers_own_node(asked: Asked, config: RunConfig) -> None:
    spawn_queue(config, "run-queue", 0)
    ((name, options),) = asked
    strategy = options["scheduling_strategy"]
    assert isinstance(strategy, NodeAffinitySchedulingStrategy)
    assert (name, options["num_cpus"], strategy.node_id) == ("TrajectoryQueueActor", 0, NODE)
    assert not strategy.soft, "Ray then takes other nodes, too"


def test_what_a_user_says_of_environment_and_nodes_reaches_every_kind_of_worker(
    run: Run, config: RunConfig, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    placement: Any = "group"
    spawn_rank(config, "run-learner-0", 0, placement)
    for pool in run.pools:
        pool.hooks.spawn(f"{pool.kind}-0")
    (_, learner), (_, rollout), (_, reward) = asked
    assert [name for name, _ in asked] == ["LearnerActor", "RolloutActor", "RewardActor"]
    # Ray sets what the loader and NCCL read before any line of ours; all else the actor sets itself.
    assert learner["runtime_env"]["env_vars"]["NCCL_DEBUG"] == "INFO"
    assert "HF_HOME" not in learner["runtime_env"]["env_vars"]
    assert rollout["runtime_env"]["env_vars"]["LD_PRELOAD"] == "x.so"
    assert [options.get("label_selector") for options in (rollout, reward)] == [{"zone": "a"}, {"zone": "b"}]
    monkeypatch.setattr(learner_actor, "use_network_of_node", lambda: None)
    monkeypatch.setattr(learner_actor.os, "environ", environment := {})
    LearnerActor(config, 0)
    assert environment == {"NCCL_DEBUG": "INFO", "HF_HOME": "/scratch"}
