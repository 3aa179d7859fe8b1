"""The reference of the commands as Markdown: what each command's own parser prints as help."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Iterator, Mapping
from types import ModuleType
from unittest.mock import patch

COMMANDS: Mapping[str, str] = {
    "cluster.launch": "Trains, resumes, and checks a config without starting anything.",
    "cluster.submit": "Submits a run as a Ray job, and follows it to its end.",
    "cluster.status": "Shows how a run is doing, also from another machine.",
    "rollout.generate": "Draws pictures with a checkpoint.",
    "rollout.convert_janus": "Converts Janus checkpoints from their authors' format and back.",
    "rewards.score": "Scores a folder of pictures.",
    "rewards.best_of": "Draws several pictures of each prompt and keeps the one that the rewards like best.",
    "rewards.benchmark": "Draws the prompts of a benchmark and scores them as its authors do.",
    "cluster.evaluate": "Does so on Ray, with --config; `rewards.benchmark --config` is the same.",
    "rewards.ask": "Has a language model write the questions that a judge asks of each prompt's pictures.",
    "learner.warm_start": "Trains a model on captioned pictures, without reinforcement learning.",
    "cluster.report": "Writes one HTML file that shows how runs went.",
    "cluster.watch": "Shows runs in a browser while they go on.",
    "cluster.boards": "Writes the Grafana board and the Prometheus alerts.",
    "cluster.study": "Answers a question about the algorithm by several runs that differ in one thing.",
    "cluster.bench": "Measures the stages of the pipeline on this machine.",
    "cluster.chaos": "Kills processes of a run at random and checks that nothing was lost.",
}
"""Module of each command, and what it is for."""
COLUMNS = 100
"""Width of the help texts, whatever the terminal of the build has."""

INTRODUCTION = """\
# Commands

Each command is a Python module: `python -m cluster.launch`. After `make setup` the interpreter is `.venv/bin/python`.
Exit codes are the same everywhere: 0 success, 1 the work failed, 2 wrong input, 130 ended by Ctrl-C.

This page is generated from the commands' own parsers when the site is built.
"""


def command_module(command: str) -> ModuleType:
    """The module that `python -m command` runs."""
    module = importlib.import_module(command)
    return importlib.import_module(f"{command}.__main__") if hasattr(module, "__path__") else module


def commands_reference() -> str:
    """The page's whole Markdown."""
    return "\n".join([INTRODUCTION, *(line for module in COMMANDS for line in _describe(module))])


def _describe(module: str) -> Iterator[str]:
    parser: argparse.ArgumentParser = command_module(module).build_parser()
    with patch.dict(os.environ, {"COLUMNS": str(COLUMNS), "NO_COLOR": "1"}):
        text = parser.format_help()
    yield from (f"## `python -m {module}` {{ #{module.replace('.', '-')} }}", "", COMMANDS[module], "")
    yield from ("```text", text.rstrip(), "```", "")
