"""The command `python -m learner.warm_start`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from configs.command_line import exit_code_of
from configs.load import load_config


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    return exit_code_of(partial(_warm_start_once, options), "nothing was written")


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m learner.warm_start",
        description="Supervised training on prompt, plan and picture: the warm start of a config, and nothing else.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a config file with a warm_start section")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field; repeatable")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="write the model here, not into run.cache_dir")
    return parser


def _warm_start_once(options: argparse.Namespace) -> int:
    # Here, so that --help and a mistyped option are answered at once.
    from transformers.utils.logging import disable_progress_bar

    from learner.warm_start.cache import warm_start_folder
    from learner.warm_start.training import warm_start

    started_s = time.monotonic()
    disable_progress_bar()
    config = load_config(options.config, options.set)
    folder = options.output_dir or warm_start_folder(config)
    if options.output_dir is None and folder.exists():
        print(f"warm start: nothing to do, the model is in {folder}")
        return 0
    warm_start(config, folder, report=PrintedProgress())
    print(f"warm start: done in {time.monotonic() - started_s:.0f} s, the model is in {folder}")
    return 0


class PrintedProgress:
    """A Report that prints a line every few seconds, and one at the end of each stage."""

    def __init__(self, interval_s: float = 5.0) -> None:
        self._interval_s = interval_s
        self._printed_s = -interval_s

    def __call__(self, stage: str, step: int, total_steps: int, metrics: Mapping[str, float]) -> None:
        now_s = time.monotonic()
        if step < total_steps and now_s - self._printed_s < self._interval_s:
            return
        self._printed_s = now_s
        values = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        print(f"warm start: {stage} step {step}/{total_steps}  {values}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
