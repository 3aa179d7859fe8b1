"""The benchmarks by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, cast

from configs.errors import ConfigError
from rewards.benchmarks.protocol import Benchmark, ScorerOptions

BENCHMARKS: Mapping[str, str] = {
    "geneval": "rewards.benchmarks.geneval.benchmark:GenEvalBenchmark",
    "geneval_pp": "rewards.benchmarks.judged.echo4o:GenEvalPlusPlus",
    "imagine": "rewards.benchmarks.judged.echo4o:ImagineBench",
    "wise": "rewards.benchmarks.judged.wise:WiseLegacy",
    "wise_verified": "rewards.benchmarks.judged.wise:WiseVerified",
    "t2i_compbench": "rewards.benchmarks.compbench.benchmark:CompBench",
    "t2i_compbench_pp": "rewards.benchmarks.compbench.plus:CompBenchPlusPlus",
    "dpg": "rewards.benchmarks.dpg.benchmark:DPGBench",
    "oneig": "rewards.benchmarks.oneig.benchmark:OneIGBench",
    "oneig_diversity": "rewards.benchmarks.oneig.diversity:OneIGDiversity",
    "oneig_style": "rewards.benchmarks.oneig.style:OneIGStyle",
    "shapes": "rewards.benchmarks.geneval.shapes:ShapesBenchmark",
}
"""Name -> module:class."""


def make_benchmark(name: str) -> Benchmark:
    """The benchmark of that name. Raises ConfigError for an unknown one."""
    if name not in BENCHMARKS:
        raise ConfigError(f"there is no benchmark '{name}'; use one of {', '.join(BENCHMARKS)}")
    module, _, class_name = BENCHMARKS[name].partition(":")
    return cast(Benchmark, getattr(importlib.import_module(module), class_name)())


def scorer_options(benchmark: Benchmark, settings: Mapping[str, str], **others: Any) -> ScorerOptions:
    """What a user says of a scorer. Raises ConfigError for a setting that it does not have."""
    unknown = sorted(set(settings) - set(benchmark.settings))
    if unknown:
        known = ", ".join(benchmark.settings) or "none"
        raise ConfigError(f"the scorer of {benchmark.name} has no such setting as '{unknown[0]}'; it has {known}")
    return ScorerOptions(settings=dict(settings), **others)
