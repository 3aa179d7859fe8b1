"""How every actor of a run is made: its environment, its threads, and that Ray never restarts it.

Ray writes the variables of an actor's `runtime_env` into log files, onto a command line and into its tables. Of what
a user gives an actor, only variables that must be there when the process starts go that way (`STARTS_WITH`); the
others, a key of a judge for one, reach the actor with its arguments, and it sets them itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import ray

from cluster.actors.sources import VARIABLE, sources_digest
from configs.local.masking import is_secret_key

STARTS_WITH: Final = (
    *("PATH", "LD_", "DYLD_", "PYTHON", "OMP_", "KMP_", "MKL_", "OPENBLAS_", "MALLOC_", "CUDA_", "NVIDIA_", "NCCL_"),
    *("GLOO_", "RAY_", "VLLM_"),
)
"""Beginnings of names of variables that the interpreter, the loader or Ray read before any line of ours."""


def node_id() -> str:
    """Of the node that this process runs on: the answer to a pool's heartbeat."""
    return str(ray.get_runtime_context().get_node_id())


def own_name() -> str:
    """Of the actor that calls. As its `__repr__` it is what Ray's log prefixes and dashboard show, not the class."""
    return str(ray.get_runtime_context().get_actor_name())


def thread_environment(threads: int | None, num_gpus: float) -> dict[str, str]:
    """Environment that keeps a process to its threads.

    Processes that spin for each other's OpenMP threads on few cores are many times slower, so on
    CPU each gets one thread unless told otherwise, and idle threads sleep.
    """
    environment = {"KMP_BLOCKTIME": "0", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    if threads is not None or num_gpus == 0:
        environment["OMP_NUM_THREADS"] = str(threads or 1)
    return environment


def quiet_environment() -> dict[str, str]:
    """Environment that keeps libraries from filling the screen; their warnings stay in Ray's log files."""
    return {
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore::FutureWarning"),
    }


def needed_at_start(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of a user's variables that Ray has to set."""
    return {
        name: value for name, value in variables.items() if name.startswith(STARTS_WITH) and not is_secret_key(name)
    }


def spawn(actor_class: type, *args: Any, name: str, **options: Any) -> ray.actor.ActorHandle:
    """Make an actor of `actor_class`, without waiting. It is never restarted by Ray: the pools and the
    launcher know what a newcomer must be told, Ray does not. runtime_env: what it has of its own; its
    variables go before ours, and those that are not `needed_at_start` the actor must set itself.
    concurrency_groups: name -> threads, of an actor with sync methods. label_selector: labels of the nodes it may go
    to; empty: any."""
    threads = options.pop("threads", None)
    groups = options.pop("concurrency_groups", None)
    own: Mapping[str, Any] = options.pop("runtime_env", {})
    if not options.get("label_selector"):
        options.pop("label_selector", None)
    environment = {**quiet_environment(), **thread_environment(threads, options.get("num_gpus", 0))}
    environment[VARIABLE] = sources_digest()
    runtime_env = {**own, "env_vars": {**environment, **needed_at_start(own.get("env_vars", {}))}}
    remote_class = ray.remote(actor_class) if groups is None else ray.remote(concurrency_groups=groups)(actor_class)
    return remote_class.options(
        name=name, max_restarts=0, max_task_retries=0, runtime_env=runtime_env, **options
    ).remote(*args)
