"""A function in a fresh process: its memory, threads and environment are its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def isolated(num_threads: int, function: Callable[..., Result], *arguments: object) -> Result:
    """`function(*arguments)` in a new process that computes with `num_threads` threads, which sleep when idle.

    Function and arguments must be picklable. Raises what the function raises.
    """
    # OpenMP reads these when torch is imported, which unpickling the function may do.
    os.environ.update(OMP_NUM_THREADS=str(num_threads), KMP_BLOCKTIME="0", OMP_WAIT_POLICY="PASSIVE")
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()
