"""The benchmarks that are asked for, each with its data and its scorer's options, before anything is drawn."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import ConfigError, DataError
from configs.schema import BenchmarkConfig
from rewards.benchmarks.command.arguments import ALL, names_of
from rewards.benchmarks.judged.base import ServedBenchmark
from rewards.benchmarks.protocol import Benchmark, Data, ScorerOptions
from rewards.benchmarks.registry import make_benchmark, scorer_options
from rewards.benchmarks.stages import RunOptions, choose_items
from rollout.drawing_options import DrawingOptions
from rollout.records import Prompt

NOTHING = BenchmarkConfig()
"""Of a benchmark that no config speaks of."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One benchmark as a user wants it."""

    benchmark: Benchmark
    path: Path | None
    """The user's copy of its official files."""
    data: Data
    scorer: ScorerOptions

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def asks_judge(self) -> bool:
        """Whether its pictures are scored by a model on a server."""
        return isinstance(self.benchmark, ServedBenchmark)

    def prompts(self, limit: int | None) -> list[Prompt]:
        """What is to be drawn of it."""
        return [Prompt(item.key, item.prompt) for item in choose_items(self.data.items, limit)]

    def run_options(self, arguments: argparse.Namespace, drawing: DrawingOptions | None) -> RunOptions:
        """drawing: None where the pictures are there."""
        return RunOptions(
            drawing=None if arguments.images else drawing,
            scorer=self.scorer,
            data=self.path,
            output_dir=arguments.output_dir,
            images=arguments.images,
            limit=arguments.limit,
        )


def choose(
    arguments: argparse.Namespace, sections: Mapping[str, BenchmarkConfig] | None = None
) -> tuple[list[Choice], dict[str, str]]:
    """What can be run; and of `all`, name -> what the others lack.

    sections: what a config says of benchmarks; the command line goes before it.
    Raises ConfigError and DataError where one that was named cannot be run, and where none of `all` can.
    """
    names = names_of(arguments)
    _check_settings(arguments, names)
    chosen: list[Choice] = []
    lacking: dict[str, str] = {}
    for name in names:
        try:
            chosen.append(_choose_one(arguments, name, names, (sections or {}).get(name, NOTHING)))
        except (ConfigError, DataError) as error:
            if arguments.name != ALL:
                raise
            lacking[name] = str(error)
    if arguments.serve_judge and chosen and not any(choice.asks_judge for choice in chosen):
        raise ConfigError(f"--serve-judge: none of {', '.join(choice.name for choice in chosen)} asks a judge")
    if not chosen:
        raise ConfigError(f"none of the benchmarks can be run; the first: {lacking[names[0]]}")
    return chosen, lacking


def _choose_one(arguments: argparse.Namespace, name: str, names: Sequence[str], section: BenchmarkConfig) -> Choice:
    benchmark = make_benchmark(name)
    path = _path_of(arguments, benchmark, names)
    if path is None and section.data is not None:
        path = Path(section.data).expanduser()
    options = scorer_options(
        benchmark,
        {**section.scorer, **_settings_of(arguments, benchmark)},
        device=arguments.device or ("cuda" if section.gpus else "cpu"),
        judge_url=arguments.judge_url or section.judge_url,
        judge_model=arguments.judge_model or section.judge_model,
        judge_key_env=arguments.judge_key_env or section.judge_key_env,
        data=path,
    )
    data = benchmark.read_data(path)
    benchmark.variant(options)
    return Choice(benchmark, path, data, options)


def _path_of(arguments: argparse.Namespace, benchmark: Benchmark, names: Sequence[str]) -> Path | None:
    """--data; of several benchmarks the folder in it that is named as the repository, or as the benchmark."""
    if arguments.data is None or len(names) == 1:
        path: Path | None = arguments.data
        return path
    own = (arguments.data / name for name in (benchmark.repository.rpartition("/")[2], benchmark.name) if name)
    return next((path for path in own if path.is_dir()), arguments.data)


def _check_settings(arguments: argparse.Namespace, names: Sequence[str]) -> None:
    """Raises ConfigError for a setting that is no benchmark's of these."""
    known = {name: make_benchmark(name).settings for name in names}
    for setting in (one.partition("=")[0] for one in arguments.scorer):
        name, _, bare = setting.rpartition(".")
        if name and name not in known:
            raise ConfigError(f"--scorer {setting}: {name} is not among {', '.join(names)}")
        if not any(bare in settings for one, settings in known.items() if name in ("", one)):
            listed = ", ".join(known[name or names[0]]) or "none"
            raise ConfigError(f"--scorer {setting}: there is no such setting; {name or names[0]} has {listed}")


def _settings_of(arguments: argparse.Namespace, benchmark: Benchmark) -> dict[str, str]:
    """Settings without a name are those of every benchmark that has them."""
    settings = {}
    for setting, value in (one.split("=", 1) for one in arguments.scorer):
        name, _, bare = setting.rpartition(".")
        if name == benchmark.name or (not name and bare in benchmark.settings):
            settings[bare] = value
    return settings
