"""Submit a run as a Ray job, and follow it to its end.

    python -m cluster.submit --config configs/janus_pro_7b_cluster.yaml --address http://127.0.0.1:8265
    python -m cluster.submit --config configs/janus_pro_7b_cluster.yaml --set run.steps=100 --detach

The config is read and its placement planned here, before anything travels; the working directory is packed,
and refused where the dashboard would refuse it. The job begins the run, or goes on with the run of that name
(`--resume auto`), so the same line starts it again after a failure. Stopped by `ray job stop`, it has time for
its last checkpoint.

Exit codes: those of `cluster.launch` on the cluster; 130 after Ctrl-C, which leaves the job running.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from cluster.session import plan_placement
from cluster.submission.job import JobRequest, check_is_packed, connect, follow, submit
from cluster.submission.package import pack
from configs.command_line import exit_code_of
from configs.errors import ConfigError
from configs.load import load_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    return exit_code_of(partial(_submit, options), "the job goes on")


def _submit(options: argparse.Namespace) -> int:
    request = read_request(options)
    logging.getLogger("ray").setLevel(logging.WARNING)
    client = connect(options.address)
    job_id = submit(client, request)
    address = client.get_address()
    print(f"job {job_id}: {request.entrypoint}")
    print(f"dashboard: {address}/#/jobs/{job_id}")
    print(f"log:       ray job logs --follow --address {address} {job_id}")
    print(f"stop:      ray job stop --address {address} {job_id}", flush=True)
    if options.detach:
        return 0
    return asyncio.run(follow(client, job_id, partial(print, end="", flush=True)))


def read_request(options: argparse.Namespace) -> JobRequest:
    """The job that the options ask for, checked as far as this machine can.

    Raises ConfigError, and PlacementError for a plan that no cluster can hold.
    """
    folder = options.working_dir.resolve()
    try:
        path = options.config.resolve().relative_to(folder)
    except ValueError as error:
        raise ConfigError(
            f"--config {options.config} does not lie in --working-dir {folder}, and would not travel with the job"
        ) from error
    config = load_config(options.config, options.set)
    plan = plan_placement(config)
    package = pack(folder, options.exclude)
    official = [section.data for section in config.data.benchmarks.values() if section.data is not None]
    sources = [config.data.train, *config.data.evaluation.values(), *official]
    check_is_packed([str(path), *sources], folder, package.names)
    print(f"package: {package.describe()}; the run asks for {plan.num_cpus} CPUs and {plan.num_gpus} GPUs")
    return JobRequest(
        run=config.run.name,
        config=str(path),
        overrides=tuple(options.set),
        working_dir=folder,
        excludes=tuple(options.exclude),
        python=options.python,
        entrypoint_cpus=options.entrypoint_cpus,
        stop_grace_s=options.stop_grace_s,
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.submit", description="Submit a run as a Ray job, and follow it to its end."
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML file in the working directory")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change one field; may be given several times. No secrets: Ray keeps the command line of a job",
    )
    parser.add_argument(
        "--address", metavar="URL", help="of the dashboard; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine"
    )
    parser.add_argument(
        "--working-dir", type=Path, default=Path("."), metavar="DIR", help="what travels with the job; default: here"
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave files of the working directory out, beside .gitignore and .rayignore; may be given several times",
    )
    parser.add_argument(
        "--entrypoint-cpus",
        type=float,
        default=0,
        metavar="N",
        help="CPUs that the launcher asks for: above 0 it goes to a node that has them, and not to the head",
    )
    parser.add_argument(
        "--stop-grace-s",
        type=int,
        default=600,
        metavar="S",
        help="seconds that a stopped job has for its last checkpoint; default: 600, Ray's own would be 3",
    )
    parser.add_argument("--python", default="python", metavar="CMD", help="the interpreter on the cluster")
    parser.add_argument("--detach", action="store_true", help="return when the job is handed in")
    return parser


if __name__ == "__main__":
    sys.exit(main())
