"""Whether a rollout worker's memory stays flat: resident memory of the worker and of its engine core, as requests pass.

    python -m scripts.rollout_memory [--requests 20000] [--every 1000]

A worker on a random tiny Janus rolls groups of eight, plans and pictures of a few tokens each: two requests a
trajectory, with prompts of many lengths, so that what is kept of a request, or grows by fragmentation, shows soon.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from cluster.benchmarks.models import make_model, shapes_config
from configs.schema import TinyJanusConfig
from rollout.records import GroupRequest
from rollout.shapes import load_split
from rollout.worker import RolloutWorker

GROUP_SIZE = 8
NUM_TOGETHER = 16
"""Groups that are rolled at once."""
SHAPE = TinyJanusConfig(hidden_size=64, num_layers=2, num_heads=2, image_size=16, patch_size=4)
OVERRIDES = ("rollout.max_cot_tokens=8", "rollout.max_num_seqs=128")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; prints a row every so many requests."""
    parser = argparse.ArgumentParser(prog="python -m scripts.rollout_memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000, metavar="N", help="that are made (default 20,000)")
    parser.add_argument(
        "--every", type=int, default=1000, metavar="N", help="requests between two rows (default 1,000)"
    )
    options = parser.parse_args(arguments)
    if options.every < 1 or options.requests < options.every:
        parser.error(f"--requests {options.requests} --every {options.every}: at least one row, please")
    with tempfile.TemporaryDirectory(prefix="bicot-memory-") as directory:
        folder, _ = make_model(Path(directory), "tiny", SHAPE)
        asyncio.run(_watch(folder, options.requests, options.every))
    return 0


async def _watch(folder: str, num_requests: int, every: int) -> None:
    worker = await RolloutWorker.start(folder, shapes_config(folder, OVERRIDES), "memory")
    started_s = time.perf_counter()
    print("| requests | worker, MB | engine core, MB | s |\n|---|---|---|---|")
    try:
        groups, num_made, due = _groups(num_requests), 0, every
        running: set[asyncio.Task[object]] = set()
        for request in groups:
            running.add(asyncio.create_task(worker.roll_group(request)))
            if len(running) < NUM_TOGETHER:
                continue
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            num_made += len(done) * 2 * GROUP_SIZE
            if num_made >= due:
                own, core = resident_mb()
                print(f"| {num_made:,} | {own:.0f} | {core:.0f} | {time.perf_counter() - started_s:.0f} |", flush=True)
                due += every
        await asyncio.gather(*running)
    finally:
        await worker.close()


def resident_mb() -> tuple[float, float]:
    """Of this process, and of all that it has started: vLLM's engine core."""
    process = psutil.Process()
    children = process.children(recursive=True)
    return process.memory_info().rss / 1e6, sum(child.memory_info().rss for child in children) / 1e6


def _groups(num_requests: int) -> Iterator[GroupRequest]:
    num_groups = -(-num_requests // (2 * GROUP_SIZE)) + NUM_TOGETHER
    for index, prompt in enumerate(load_split("train", num_groups)):
        yield GroupRequest(index, 0, prompt, GROUP_SIZE, images_per_cot=1, seed=index)


if __name__ == "__main__":
    sys.exit(main())
