"""Measure the stages of the pipeline on this machine, side by side.

    python -m cluster.bench [rollout] [overlap] [pipeline] [sync] [learner] [rewards] [reward_models]
                            [watching] [controller] [--quick] [--threads N] [--gpu] [--sync-mb MB ...]

Each benchmark runs both sides in one go, in turns (A B A B ...), in a process of its own, and reports
medians with the spread over rounds. What it prints at the end is a markdown page for BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
import time
from collections.abc import Sequence

from cluster.benchmarks.isolation import isolated
from cluster.benchmarks.report import Scope, Table, describe_machine
from configs.errors import BicotError

BENCHMARKS = {
    "rollout": "image tokens and pictures a second: the vLLM engine against transformers' own loop",
    "overlap": "steps a second of the whole system: max_staleness 0 against 1",
    "pipeline": "pictures a second of training end to end: T2I-R1's way against bicot's",
    "sync": "milliseconds and MB/s of weight sync; staged or in a pause, by store or IPC, all or changes",
    "learner": "peak memory of chunked log-probabilities, and tokens a second of the learner",
    "rewards": "pictures a second of the reward pool against one picture at a time, and the pool's own latency",
    "reward_models": "pictures a second of each reward by itself, batched against one at a time",
    "watching": "milliseconds that metrics, timeline and live.json cost the launcher, on against off",
    "controller": "groups a second that the launcher can drive, and what ledger and heartbeats cost",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parse_arguments(arguments)
    scope = Scope(options.quick, options.threads, options.gpu, tuple(options.sync_mb))
    machine = describe_machine(options.gpu)
    command = shlex.join(["python", "-m", "cluster.bench", *(sys.argv[1:] if arguments is None else arguments)])
    print(machine, flush=True)
    pages = [f"## `{command}`", machine]
    for name in options.names or BENCHMARKS:
        print(f"{name}: {BENCHMARKS[name]}", flush=True)
        started_s = time.perf_counter()
        try:
            tables = isolated(scope.num_threads, _measure, name, scope)
        except BicotError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 1
        print(f"{name}: done in {time.perf_counter() - started_s:.0f} s", flush=True)
        pages += [table.markdown() for table in tables]
    print("\n" + "\n\n".join(pages))
    return 0


def _measure(name: str, scope: Scope) -> list[Table]:
    """In a process of its own, which imports what this benchmark needs only."""
    from cluster.actors.spawning import quiet_environment

    for variable, value in {**quiet_environment(), "VLLM_LOGGING_LEVEL": "ERROR"}.items():
        os.environ.setdefault(variable, value)
    tables: list[Table] = importlib.import_module(f"cluster.benchmarks.{name}").measure(scope)
    return tables


def build_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    parser = argparse.ArgumentParser(prog="python -m cluster.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all when none is named")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller batches; three minutes")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="compute threads of each side (default 1)")
    parser.add_argument(
        "--gpu",
        action="store_true",
        help="rollout alone: bfloat16 on this machine's GPU, in the shape of Janus-Pro-1B; sync alone: all on one GPU",
    )
    parser.add_argument(
        "--sync-mb",
        type=int,
        nargs="+",
        default=[],
        metavar="MB",
        help="sync alone: sizes of the weights; takes about eleven times as much memory",
    )
    return parser


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options; exits with 2 for wrong ones."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark '{unknown[0]}'; choose from {', '.join(BENCHMARKS)}")
    if options.sync_mb and (options.names != ["sync"] or min(options.sync_mb) < 1):
        parser.error("--sync-mb: sizes of at least 1 MB for the benchmark 'sync'; name it alone")
    if options.gpu and options.names not in (["rollout"], ["sync"]):
        parser.error("--gpu: only the benchmarks 'rollout' and 'sync' measure on a GPU; name one of them alone")
    if options.gpu and not _has_gpu():
        parser.error("--gpu: PyTorch finds no CUDA GPU here")
    if options.threads < 1:
        parser.error(f"--threads {options.threads}: at least 1")
    return options


def _has_gpu() -> bool:
    import torch  # takes seconds, and is asked for with --gpu only

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
