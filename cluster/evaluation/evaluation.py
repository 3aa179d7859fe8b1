"""Benchmarks on a Ray that is connected: one pool draws for all of them, then each one's scorers take their turn.

loop:   pools                       thread: draw_and_score, whose stages block
        rollout workers      ◄───────── draws of all benchmarks
        (ended)              ◄───────── all are drawn
        scorers of one       ◄───────── its files; a judge on a server is asked by the thread itself
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

from cluster.evaluation.bridge import Bridge
from cluster.evaluation.drawing import PoolDrawer
from cluster.evaluation.scoring import PoolScorer
from cluster.evaluation.settings import config_of_workers
from configs.local.environment import with_secrets
from configs.schema import BenchmarkConfig, RunConfig
from rewards.benchmarks.command import Choice, ServedJudge, draw_and_score
from rewards.benchmarks.judged.base import ServedBenchmark
from rewards.benchmarks.protocol import Benchmark, Scorer, ScorerOptions
from rewards.benchmarks.stages import Machinery
from rollout.drawing_options import DrawingOptions


@dataclass(slots=True)
class Evaluation:
    """Of chosen benchmarks, once."""

    arguments: argparse.Namespace
    chosen: Sequence[Choice]
    config: RunConfig
    drawing: DrawingOptions | None
    """None where all pictures are there."""
    console: Console
    judge: ServedJudge | None = None
    """On this machine; ended by who has made it."""
    _scorers: list[PoolScorer] = field(default_factory=list, init=False)

    async def execute(self) -> bool:
        """Whether every result is complete. Raises what the stages raise, and ends all workers in any case."""
        bridge = Bridge()
        drawer = None if self.drawing is None else self._drawer(self.drawing, bridge)

        def open_scorer(benchmark: Benchmark, options: ScorerOptions) -> Scorer:
            if isinstance(benchmark, ServedBenchmark):  # its model is on a server already
                return benchmark.open_scorer(options)
            section = self.config.data.benchmarks.get(benchmark.name, BenchmarkConfig())
            scorer = PoolScorer(benchmark, options, self.config, section, self._name, bridge, self.note)
            self._scorers.append(scorer)  # first: it is to be ended, however its start ends
            scorer.start()
            return scorer

        def workers_end() -> None:
            if drawer is not None:
                bridge.wait(drawer.close())

        stages = (self.arguments, self.chosen, self.drawing, self.console)
        machinery = Machinery(_nothing_draws if drawer is None else drawer.draw, open_scorer)
        try:
            return await asyncio.to_thread(draw_and_score, *stages, machinery, workers_end, self.judge)
        finally:
            bridge.close()
            if drawer is not None:
                await drawer.close()
            for scorer in self._scorers:
                await scorer.end()

    def note(self, text: str) -> None:
        """Tell the user."""
        self.console.print(text, style="yellow", markup=False, soft_wrap=True)

    @property
    def _name(self) -> str:
        """Of the actors: unique in the cluster."""
        return f"evaluate-{os.getpid()}"

    def _drawer(self, drawing: DrawingOptions, bridge: Bridge) -> PoolDrawer:
        config = with_secrets(config_of_workers(self.config, drawing))
        prompts = [prompt for choice in self.chosen for prompt in choice.prompts(self.arguments.limit)]
        return PoolDrawer(config, prompts, not drawing.no_cot, self._name, bridge, self.note)


def _nothing_draws(*_: object, **__: object) -> None:
    raise AssertionError("pictures that something else drew are not drawn again")
