"""Write a report of one run, or of several beside each other: one HTML file that needs no network.

    python -m cluster.report runs/shapes_cpu                     runs/shapes_cpu/report.html
    python -m cluster.report runs/low runs/high --to both.html   two runs, their curves over each other

A run writes its own report when it ends. This also works while it goes on, and for runs that were killed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cluster.report.page import REPORT_NAME, report_html
from cluster.report.view import read_runs
from configs.command_line import exit_code_of
from configs.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    return exit_code_of(partial(_write, options), "no report was written")


def _write(options: argparse.Namespace) -> int:
    to = options.to or (options.runs[0] if len(options.runs) == 1 else Path.cwd()) / REPORT_NAME
    text = report_html(read_runs(options.runs))
    try:
        to.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--to {to}: cannot be written: {error.strerror or error}; name another file") from error
    print(f"{to} ({to.stat().st_size / 1e6:.1f} MB)")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.report",
        description="Write a report of one run, or of several beside each other, as one HTML file.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run directory")
    parser.add_argument(
        "--to", metavar="FILE", type=Path, help=f"default: RUN/{REPORT_NAME}, of several ./{REPORT_NAME}"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
