"""The benchmarks by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from configs.errors import ConfigError
from rewards.benchmarks.protocol import Benchmark

BENCHMARKS: Mapping[str, str] = {
    "geneval": "rewards.benchmarks.geneval.benchmark:GenEvalBenchmark",
    "geneval_pp": "rewards.benchmarks.judged.echo4o:GenEvalPlusPlus",
    "imagine": "rewards.benchmarks.judged.echo4o:ImagineBench",
    "wise": "rewards.benchmarks.judged.wise:WiseLegacy",
    "wise_verified": "rewards.benchmarks.judged.wise:WiseVerified",
    "t2i_compbench": "rewards.benchmarks.compbench.benchmark:CompBench",
    "dpg": "rewards.benchmarks.dpg.benchmark:DPGBench",
    "oneig": "rewards.benchmarks.oneig.benchmark:OneIGBench",
    "shapes": "rewards.benchmarks.geneval.shapes:ShapesBenchmark",
}
"""Name -> module:class."""


def make_benchmark(name: str) -> Benchmark:
    """The benchmark of that name. Raises ConfigError for an unknown one."""
    if name not in BENCHMARKS:
        raise ConfigError(f"there is no benchmark '{name}'; use one of {', '.join(BENCHMARKS)}")
    module, _, class_name = BENCHMARKS[name].partition(":")
    return cast(Benchmark, getattr(importlib.import_module(module), class_name)())
