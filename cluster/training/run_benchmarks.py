"""Parts of public benchmarks, drawn and scored now and then during a run.

    rollout workers, weights after step n ─► pictures ─► BenchmarkActor, one a time ─► RUN/benchmarks/NAME/step_…/
                                                              └─► measures ─► metrics of step n: benchmark/NAME/…

Training waits for it, as for an evaluation, and never ends for it: what fails, or is late, is a note.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.actors.spawning import node_id, spawn
from cluster.groups import GroupRoller
from cluster.groups.roller import GroupGivenUpError
from cluster.pools.cancellation import made_in_thread
from cluster.pools.remote_errors import first_line, own_error
from cluster.reports import RunLog
from configs.errors import BicotError, ConfigError, DataError
from configs.schema import BenchmarkConfig, RunConfig
from rewards.benchmarks import make_benchmark, scorer_options
from rewards.benchmarks.protocol import Data, Item, ScorerOptions
from rewards.benchmarks.stages import choose_items, score_drawn
from rollout.records import GroupRequest, GroupRollout, Prompt, derive_seed

MISSING = "missing"
"""Measure of our own: the share of pictures that could not be drawn or judged. They count as the lowest score."""


def options_of(name: str, section: BenchmarkConfig) -> ScorerOptions:
    """What the config says of a benchmark's scorer. Raises ConfigError for a setting that it does not have."""
    return scorer_options(
        make_benchmark(name),
        section.scorer,
        device="cuda" if section.gpus else "cpu",
        judge_url=section.judge_url,
        judge_model=section.judge_model,
        judge_key_env=section.judge_key_env,
        data=path_of(section),
    )


def path_of(section: BenchmarkConfig) -> Path | None:
    """The user's copy of the official files, if any."""
    return None if section.data is None else Path(section.data).expanduser()


def check_benchmarks(config: RunConfig) -> None:
    """Read their data and look at their scorers' settings, before a run starts. Raises ConfigError."""
    for name, section in config.data.benchmarks.items():
        try:
            benchmark = make_benchmark(name)
            benchmark.read_data(path_of(section))
            benchmark.variant(options_of(name, section))
        except (ConfigError, DataError) as error:
            raise ConfigError(f"data.benchmarks.{name}: {error}") from error


@dataclass(frozen=True, slots=True)
class Drawn:
    """One prompt's pictures, which lie in Ray's object store."""

    key: str
    rollout: GroupRollout
    pictures: Any


class BenchmarkActor:
    """Writes pictures into a folder and scores them. Made for one benchmark after one step, and ended with it."""

    def __init__(self, name: str, section: BenchmarkConfig, judge_key: str | None) -> None:
        """judge_key: what `judge_key_env` holds where the launcher runs."""
        if section.judge_key_env is not None and judge_key is not None:
            os.environ[section.judge_key_env] = judge_key
        self._name, self._section = name, section

    def score(
        self,
        folder: str,
        source: Mapping[str, Any],
        keys: Sequence[str],
        rollouts: Sequence[GroupRollout],
        *pictures: Any,
    ) -> dict[str, Any]:
        """The result as `rewards.benchmark` writes it. pictures: uint8 [N, height, width, 3] of each key."""
        from rewards.benchmarks.drawing import write_drawn
        from rewards.benchmarks.folders import RunFolder

        benchmark = make_benchmark(self._name)
        data = benchmark.read_data(path_of(self._section))
        items = choose_items(data.items, self._section.limit)
        of_key = {item.key: item for item in items}
        kept = RunFolder(Path(folder))
        for key, rollout, drawn in zip(keys, rollouts, pictures, strict=True):
            write_drawn(kept, of_key[key], rollout, drawn)
        return score_drawn(benchmark, data, items, kept, options_of(self._name, self._section), source)


@dataclass(slots=True)
class RunBenchmarks:
    """The benchmarks of one run."""

    log: RunLog

    @property
    def _sections(self) -> Mapping[str, BenchmarkConfig]:
        return self.log.config.data.benchmarks

    def is_due(self, step: int) -> bool:
        """Whether one is to be drawn after so many steps."""
        return any(step % section.every_steps == 0 for section in self._sections.values())

    async def during(self, roller: GroupRoller, step: int) -> dict[str, float]:
        """Metrics of the benchmarks whose turn it is after `step` steps."""
        metrics: dict[str, float] = {}
        for name, section in self._sections.items():
            if step % section.every_steps:
                continue
            self.log.progress.stage(f"benchmark {name} after step {step}")
            self.log.activity.phase("evaluating")
            try:
                async with asyncio.timeout(section.timeout_s):
                    result = await self._run(roller, name, section, step)
            except TimeoutError:
                late = f"was not done within data.benchmarks.{name}.timeout_s {section.timeout_s:g} s"
                self.log.note(f"benchmark {name} after step {step} {late}; training goes on")
            except (BicotError, RayError, OSError) as error:
                reason = first_line(own_error(error))
                self.log.note(f"benchmark {name} after step {step} failed: {reason}; training goes on")
            else:
                metrics |= metrics_of(name, result)
                self._tell(name, step, result)
        return metrics

    async def _run(self, roller: GroupRoller, name: str, section: BenchmarkConfig, step: int) -> Mapping[str, Any]:
        benchmark = make_benchmark(name)
        data = await asyncio.to_thread(benchmark.read_data, path_of(section))
        drawn = await self._draw(roller, name, data, choose_items(data.items, section.limit))
        key = None if section.judge_key_env is None else os.environ.get(section.judge_key_env)
        here = NodeAffinitySchedulingStrategy(node_id(), soft=False)  # beside the run directory
        run_name = self.log.directory.name
        make = functools.partial(
            spawn,
            BenchmarkActor,
            *(name, section, key),
            name=f"{run_name}-benchmark-{name}-{step}",
            num_cpus=0,
            num_gpus=section.gpus,
            scheduling_strategy=here,
        )
        actor = await made_in_thread(make, ray.kill)
        config = self.log.config
        source = {
            "model": f"{config.run.name}, step {step}",
            "rewriter": "semantic CoT",
            "seed": config.run.seed,
            "temperature": config.rollout.temperature,
            "guidance_scale": config.rollout.guidance_scale,
        }
        folder = self.log.directory.path / "benchmarks" / name / f"step_{step:06d}"
        try:
            rollouts = [one.rollout for one in drawn]
            pictures = [one.pictures for one in drawn]
            keys = [one.key for one in drawn]
            result: Mapping[str, Any] = await actor.score.remote(str(folder), source, keys, rollouts, *pictures)
            return result
        finally:
            ray.kill(actor)

    async def _draw(self, roller: GroupRoller, name: str, data: Data, items: Sequence[Item]) -> list[Drawn]:
        """All prompts at once; one that cannot be drawn is missing. Raises GroupGivenUpError when none can."""
        places = {item.key: place for place, item in enumerate(data.items)}
        seed = self.log.config.run.seed
        requests = [
            GroupRequest(
                sequence=-1 - index,
                attempt=0,
                prompt=Prompt(item.key, item.prompt),
                group_size=item.num_pictures,
                images_per_cot=1,
                seed=derive_seed(seed, "benchmark", name, places[item.key]),
            )
            for index, item in enumerate(items)
        ]
        results = await asyncio.gather(*(_draw_or_fail(roller, request) for request in requests))
        failures = [one for one in results if isinstance(one, GroupGivenUpError)]
        drawn = [one for one in results if isinstance(one, Drawn)]
        if not drawn:
            raise failures[-1]
        if failures:
            self.log.note(f"benchmark {name}: {len(failures)} prompts could not be drawn, one since {failures[0]}")
        return drawn

    def _tell(self, name: str, step: int, result: Mapping[str, Any]) -> None:
        first, measure = next(iter(result["measures"].items()))
        interval = f"{measure['low']:.3f} to {measure['high']:.3f}"
        lost = result["num_missing"] + result["num_failed"]
        share = f"; {lost} of {result['num_files']} files are missing or could not be judged" if lost else ""
        self.log.note(f"benchmark {name} after step {step}: {first} {measure['value']:.3f} ({interval}){share}")


async def _draw_or_fail(roller: GroupRoller, request: GroupRequest) -> Drawn | GroupGivenUpError:
    try:
        rollout, pictures = await roller.draw(request)
    except GroupGivenUpError as error:
        return error
    return Drawn(request.prompt.prompt_id, rollout, pictures)


def metrics_of(name: str, result: Mapping[str, Any]) -> dict[str, float]:
    """`benchmark/NAME/MEASURE` of a result, and the share of files without a grade."""
    lost = result["num_missing"] + result["num_failed"]
    measures = {measure: float(one["value"]) for measure, one in result["measures"].items()}
    return {
        f"benchmark/{name}/{measure}": value
        for measure, value in {**measures, MISSING: lost / result["num_files"]}.items()
    }
