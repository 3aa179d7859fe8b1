"""Write the Grafana board and the Prometheus alerts.

python -m cluster.boards                 bicot.json, alerts.yaml and both as kubernetes.yaml, beside the code
python -m cluster.boards --to FOLDER     the same into another folder, for a Grafana or Prometheus that reads it
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cluster.boards.alerts import rules_yaml
from cluster.boards.kubernetes import kubernetes_yaml
from configs.command_line import exit_code_of
from configs.errors import ConfigError

FOLDER = Path(__file__).parent
BOARD_NAME = "bicot.json"
ALERTS_NAME = "alerts.yaml"
KUBERNETES_NAME = "kubernetes.yaml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    return exit_code_of(partial(_write, options.to), "the files may lack a part")


def _write(folder: Path) -> int:
    try:
        from cluster.boards.grafana import board_json
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed; install bicot[dev]") from error
    folder.mkdir(parents=True, exist_ok=True)
    board = board_json()
    files = {BOARD_NAME: board, ALERTS_NAME: rules_yaml(), KUBERNETES_NAME: kubernetes_yaml(BOARD_NAME, board)}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        print(folder / name)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.boards", description="Write the Grafana board and the Prometheus alerts of bicot."
    )
    parser.add_argument(
        "--to", metavar="FOLDER", type=Path, default=FOLDER, help="default: where the committed ones lie"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
