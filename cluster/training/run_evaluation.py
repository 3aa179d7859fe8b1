"""A run's evaluations, before, during and after training, and what a resumed run needs of the first.

    before ─► RUN/evaluation/before.json, pictures_NAME.npy ─┬─► what has drifted since ─► metrics.jsonl
    during ──────────────────────────────────────────────────┘
    after  ──────────────────────── together with `before` ─────► samples/before_after_NAME.png, RewardChange

A run that goes on reads what was before training, and does not measure it again: its weights are others by now.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from cluster.groups import GroupRoller
from cluster.groups.evaluation import Evaluation, evaluate_all
from cluster.groups.roller import GroupGivenUpError, RolledGroup
from cluster.reports import RunLog
from cluster.reports.curves import EvaluationPoint
from cluster.reports.metrics import RewardChange
from cluster.reports.reward_health import share_perfect
from cluster.reports.run_log import first_samples
from cluster.reports.sample_file import write_sample_file
from cluster.reports.samples import SampleEntry, draw_before_after
from cluster.training.run_benchmarks import RunBenchmarks
from rollout.prompts import PromptSet
from rollout.records import derive_seed

NUM_COMPARED_PICTURES: Final = 8
BEFORE_NAME: Final = "before.json"


@dataclass(frozen=True, slots=True)
class _Before:
    """Of one evaluation set, before training."""

    mean_reward: float
    means: Mapping[str, float | None]
    """Reward -> its own mean."""
    perfect: Mapping[str, float]
    """Reward -> share of full marks."""
    entries: Mapping[int, SampleEntry]
    """Sequence -> picture, of a few prompts: any, chosen before there was a picture."""


@dataclass(slots=True)
class RunEvaluation:
    """Evaluates named sets of prompts, always with the same seeds."""

    log: RunLog
    _before: dict[str, _Before] = field(default_factory=dict)
    _after: dict[str, Evaluation] = field(default_factory=dict)
    _benchmarks: RunBenchmarks = field(init=False)

    def __post_init__(self) -> None:
        self._benchmarks = RunBenchmarks(self.log)

    async def before(self, roller: GroupRoller, sets: Mapping[str, PromptSet]) -> None:
        """Evaluate before training, unless an earlier life of the run has."""
        folder = self.log.directory.evaluation_dir
        if sets and not (folder / BEFORE_NAME).exists():
            measured = await self._evaluate(roller, sets, "before training")
            seed = self.log.config.run.seed
            before = {name: await _keep(evaluation, seed) for name, evaluation in measured.items()}
            await asyncio.to_thread(_write_before, folder, before)
        self._before = _read_before(folder)
        for name, known in self._before.items():
            self.log.evaluations.append(EvaluationPoint(name, 0, known.mean_reward))

    def is_due(self, step: int) -> bool:
        """Whether `during` has something to do after so many steps."""
        return self._are_sets_due(step) or self._benchmarks.is_due(step)

    def _are_sets_due(self, step: int) -> bool:
        """The sets' last evaluation is `after`'s."""
        every = self.log.config.data.evaluate_every_steps
        return every is not None and step % every == 0 and step != self.log.config.run.steps

    async def during(self, roller: GroupRoller, sets: Mapping[str, PromptSet], step: int) -> dict[str, float]:
        """What is due under the weights after `step` steps; returns the metrics that `METRIC_PREFIXES` documents.

        Nothing, and a note, of what could not be measured: training does not end for that.
        """
        metrics = await self._drift(roller, sets, step) if self._are_sets_due(step) else {}
        return metrics | await self._benchmarks.during(roller, step)

    async def _drift(self, roller: GroupRoller, sets: Mapping[str, PromptSet], step: int) -> dict[str, float]:
        try:
            measured = await self._evaluate(roller, sets, f"after step {step}")
        except GroupGivenUpError as error:
            self.log.note(f"the evaluation after step {step} failed: {error}")
            return {}
        metrics: dict[str, float] = {}
        for name, evaluation in measured.items():
            metrics |= drift_metrics(name, _change(self._before[name], evaluation))
        return metrics

    async def after(self, roller: GroupRoller, sets: Mapping[str, PromptSet], step: int) -> None:
        """Evaluate after training, and draw the pictures of both side by side."""
        self._after = await self._evaluate(roller, sets, "after training")
        for name, evaluation in self._after.items():
            self.log.evaluations.append(EvaluationPoint(name, step, evaluation.mean_reward))
            before = self._before[name].entries
            compared = await first_samples([group for group in evaluation.groups if _sequence_of(group) in before])
            if not compared:
                continue
            later = list(compared.values())
            earlier = [before[sequence] for sequence in compared]
            path = self.log.directory.samples_dir / f"before_after_{name}.png"
            title = (
                f"{name}, {len(evaluation.groups)} prompts: mean reward "
                f"{self._before[name].mean_reward:.2f} → {evaluation.mean_reward:.2f}"
            )
            try:
                await asyncio.to_thread(draw_before_after, path, earlier, later, title)
                file = path.with_suffix(".json")
                await asyncio.to_thread(write_sample_file, file, title, [*earlier, *later], num_before=len(earlier))
            except OSError as error:
                self.log.note(f"{path.name} is not drawn: {error}")

    @property
    def changes(self) -> dict[str, RewardChange]:
        """What training changed, as far as it was measured."""
        return {name: _change(before, self._after.get(name)) for name, before in self._before.items()}

    async def _evaluate(self, roller: GroupRoller, sets: Mapping[str, PromptSet], when: str) -> dict[str, Evaluation]:
        config = self.log.config
        prompts = {name: source.prompts[: config.data.num_evaluation_prompts] for name, source in sets.items()}
        if not prompts:
            return {}
        detail = ", ".join(f"{name}: {len(of_set)}" for name, of_set in prompts.items())
        self.log.progress.stage(f"evaluating {when}", detail=detail)
        self.log.activity.phase("evaluating")
        evaluations = await evaluate_all(roller, prompts, config.run.seed)
        for name, evaluation in evaluations.items():
            self.log.note(f"{name} {when}: reward {evaluation.mean_reward:.3f} on {len(evaluation.groups)} prompts")
        return evaluations


def drift_metrics(name: str, change: RewardChange) -> dict[str, float]:
    """Of one evaluation set: its reward and each reward by itself, as they are and less what they were."""
    measured = {f"evaluation/{name}": (change.before, change.after)}
    measured |= {f"evaluation/{name}/{reward}": column for reward, column in change.columns.items()}
    metrics: dict[str, float] = {}
    for key, (before, after) in measured.items():
        if before is not None and after is not None:  # None: the reward applies to none of these prompts
            metrics |= {key: after, f"{key}/change": after - before}
    return metrics


def _change(before: _Before, after: Evaluation | None) -> RewardChange:
    columns = {name: (mean, None if after is None else after.mean_of(name)) for name, mean in before.means.items()}
    perfect = {
        name: (share, None if after is None else share_perfect(after.scores_of(name)))
        for name, share in before.perfect.items()
    }
    if after is None:
        return RewardChange(before.mean_reward, None, columns, perfect)
    return RewardChange(before.mean_reward, after.mean_reward, columns, perfect, len(after.groups))


def _sequence_of(group: RolledGroup) -> int:
    return group.scored.rollout.request.sequence


async def _keep(evaluation: Evaluation, seed: int) -> _Before:
    rng = random.Random(derive_seed(seed, "compared pictures"))
    places = sorted(rng.sample(range(len(evaluation.groups)), min(NUM_COMPARED_PICTURES, len(evaluation.groups))))
    samples = await first_samples([evaluation.groups[place] for place in places])
    perfect = {name: share_perfect(evaluation.scores_of(name)) for name in evaluation.means}
    return _Before(evaluation.mean_reward, evaluation.means, perfect, samples)


def _write_before(folder: Path, before: Mapping[str, _Before]) -> None:
    """The pictures first: when before.json is there, all is."""
    folder.mkdir(exist_ok=True)
    tree: dict[str, Any] = {}
    for number, (name, known) in enumerate(before.items()):
        pictures = f"pictures_{number}.npy"
        stack = [entry.picture for entry in known.entries.values()]
        np.save(folder / pictures, np.stack(stack) if stack else np.empty(0, np.uint8))
        entries = [
            {"sequence": sequence, **{key: value for key, value in asdict(entry).items() if key != "picture"}}
            for sequence, entry in known.entries.items()
        ]
        tree[name] = {
            "mean_reward": known.mean_reward,
            "means": dict(known.means),
            "perfect": {reward: share if math.isfinite(share) else None for reward, share in known.perfect.items()},
            "pictures": pictures,
            "entries": entries,
        }
    temporary = folder / f"{BEFORE_NAME}.tmp"
    temporary.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / BEFORE_NAME)


def _read_before(folder: Path) -> dict[str, _Before]:
    path = folder / BEFORE_NAME
    if not path.exists():
        return {}
    before = {}
    for name, known in json.loads(path.read_text(encoding="utf-8")).items():
        pictures = np.load(folder / known["pictures"], allow_pickle=False)
        entries = {
            entry.pop("sequence"): SampleEntry(picture=picture, **entry)
            for entry, picture in zip(known["entries"], pictures, strict=True)
        }
        perfect = {reward: math.nan if share is None else share for reward, share in known.get("perfect", {}).items()}
        before[name] = _Before(known["mean_reward"], known["means"], perfect, entries)
    return before
