"""Benchmarks during a run: which are due, what is refused before it starts, what becomes of a late one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.groups.roller import GroupGivenUpError
from cluster.training.run_benchmarks import RunBenchmarks, check_benchmarks, metrics_of
from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import BenchmarkConfig, RunConfig
from rollout.records import GroupRequest


def config_with(**benchmarks: dict[str, Any]) -> RunConfig:
    config = load_config("configs/shapes_cpu.yaml")
    sections = {name: BenchmarkConfig(**section) for name, section in benchmarks.items()}
    return config.model_copy(update={"data": config.data.model_copy(update={"benchmarks": sections})})


class Log:
    """What `RunBenchmarks` needs of a RunLog."""

    def __init__(self, config: RunConfig, path: Path) -> None:
        self.config, self.notes = config, list[str]()
        self.directory = SimpleNamespace(path=path, name="run")
        self.progress = SimpleNamespace(stage=lambda *_: None)
        self.activity = SimpleNamespace(phase=lambda _: None)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Roller:
    """Draws nothing; keeps what it was asked for."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.requests = seconds, list[GroupRequest]()

    async def draw(self, request: GroupRequest) -> Any:
        self.requests.append(request)
        await asyncio.sleep(self.seconds)
        raise GroupGivenUpError("no worker could draw it")


def during(log: Log, roller: Roller, step: int) -> dict[str, float]:
    return asyncio.run(RunBenchmarks(log).during(roller, step))  # type: ignore[arg-type]


def test_each_has_its_own_turn(tmp_path: Path) -> None:
    log = Log(config_with(shapes={"every_steps": 4}, geneval={"every_steps": 6}), tmp_path)
    benchmarks = RunBenchmarks(log)  # type: ignore[arg-type]
    assert [step for step in range(1, 13) if benchmarks.is_due(step)] == [4, 6, 8, 12]


def test_the_same_prompts_are_drawn_with_the_same_seeds_each_time(tmp_path: Path) -> None:
    log = Log(config_with(shapes={"every_steps": 2, "limit": 7}), tmp_path)
    first, second = Roller(0), Roller(0)
    assert during(log, first, 2) == during(log, second, 4) == {}
    assert first.requests == second.requests
    assert len({request.seed for request in first.requests}) == len(first.requests) == 7
    assert {request.group_size for request in first.requests} == {4}
    assert log.notes[0] == "benchmark shapes after step 2 failed: no worker could draw it; training goes on"


def test_one_that_is_late_is_a_note(tmp_path: Path) -> None:
    log = Log(config_with(shapes={"every_steps": 1, "limit": 1, "timeout_s": 0.05}), tmp_path)
    assert during(log, Roller(60), 3) == {}
    assert log.notes == [
        "benchmark shapes after step 3 was not done within data.benchmarks.shapes.timeout_s 0.05 s; training goes on"
    ]


@pytest.mark.parametrize(
    ("name", "section", "message"),
    [
        ("gen_eval", {}, r"data\.benchmarks\.gen_eval: there is no benchmark 'gen_eval'"),
        ("geneval", {}, r"data\.benchmarks\.geneval: geneval needs --data"),
        (
            "shapes",
            {"scorer": {"detector": "x"}},
            "the scorer of shapes has no such setting as 'detector'",
        ),
    ],
)
def test_a_wrong_one_is_refused_before_the_run(name: str, section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_benchmarks(config_with(**{name: section}))


def test_metrics_are_the_measures_and_the_share_that_is_missing() -> None:
    result = {"measures": {"overall": {"value": 0.25}}, "num_missing": 1, "num_failed": 2, "num_files": 12}
    assert metrics_of("x", result) == {"benchmark/x/overall": 0.25, "benchmark/x/missing": 0.25}
