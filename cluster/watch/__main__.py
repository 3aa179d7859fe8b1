"""Show runs in a browser while they go on.

    python -m cluster.watch runs/shapes_cpu            then open the address that it prints
    python -m cluster.watch runs/low runs/high         two runs, their curves over each other

Works from the run directories alone: the launcher may run elsewhere, or have ended. Read-only, and for this machine
only unless --host says otherwise; from another machine: ssh -L 8700:localhost:8700 HOST.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cluster.report.view import read_runs
from cluster.watch.server import LOOPBACK, Watched, serve
from configs.command_line import exit_code_of

DEFAULT_PORT = 8700


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    return exit_code_of(partial(_watch, options), "the runs go on")


def _watch(options: argparse.Namespace) -> int:
    read_runs(options.runs)  # what is no run is said now
    with serve(Watched(options.runs), options.host, options.port) as server:
        print(f"http://{options.host}:{server.server_address[1]}/  (Ctrl-C ends the page, not the run)", flush=True)
        if options.host not in LOOPBACK:
            print("whoever reaches this address sees prompts, plans, pictures and the config", flush=True)
        server.serve_forever()
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.watch",
        description="Show runs in a browser while they go on: curves, pictures, workers, the ledger. Read-only.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run directory; several are compared")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes a free one; default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="to listen at; default: this machine only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
