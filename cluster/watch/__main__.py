"""Show runs in a browser while they go on.

    python -m cluster.watch runs/shapes_cpu            then open the address that it prints
    python -m cluster.watch runs/low runs/high         two runs, their curves over each other
    python -m cluster.watch NAME --redis redis://host:6379      a run by its name, where its directory is not

Works from the run directories alone: the launcher may run elsewhere, or have ended. By name it works over the Redis
that registry.redis_url names. Read-only, and for this machine only unless --host says otherwise; from another machine:
ssh -L 8700:localhost:8700 HOST.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cluster.report.view import read_runs
from cluster.watch.mirror import Mirror
from cluster.watch.server import LOOPBACK, Watched, serve
from configs.command_line import exit_code_of
from configs.local.environment import REDIS_URL_VARIABLE

DEFAULT_PORT = 8700


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    return exit_code_of(partial(_watch, options), "the runs go on")


def _watch(options: argparse.Namespace) -> int:
    with (
        tempfile.TemporaryDirectory(prefix="bicot-watch-") as folder,
        serve(_watched(options, Path(folder)), options.host, options.port) as server,
    ):
        print(f"http://{options.host}:{server.server_address[1]}/  (Ctrl-C ends the page, not the run)", flush=True)
        if options.host not in LOOPBACK:
            print("whoever reaches this address sees prompts, plans, pictures and the config", flush=True)
        server.serve_forever()
    return 0


def _watched(options: argparse.Namespace, folder: Path) -> Watched:
    """The runs; what is none is said now."""
    redis_url = options.redis or os.environ.get(REDIS_URL_VARIABLE)
    paths, mirrors = [], []
    for run in options.runs:
        path = Path(run)
        if redis_url is not None and os.sep not in run and not path.is_dir():
            mirrors.append(mirror := Mirror.of(redis_url, run, folder))
            mirror.refresh()
            path = mirror.path
        paths.append(path)
    read_runs(paths)
    return Watched(paths, mirrors)


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.watch",
        description="Show runs in a browser while they go on: curves, pictures, workers, the ledger. Read-only.",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="run directory, or a name at a Redis; several are compared"
    )
    parser.add_argument("--redis", metavar="URL", help=f"for runs given by name; default: ${REDIS_URL_VARIABLE}")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes a free one; default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="to listen at; default: this machine only")
    return parser


if __name__ == "__main__":
    sys.exit(main())
