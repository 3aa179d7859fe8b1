"""The process group of the learner's ranks: where they meet, what they listen at, and DeepSpeed as it is used here."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from configs.errors import CheckpointError, LearnerError
from configs.library_layout import require_attributes
from learner.zero.meeting_place import meeting_place


def init_distributed(
    rank: int, world_size: int, master_address: str, master_port: int, device: str, timeout_s: float = 600.0
) -> None:
    """Join the process group, unless this process is in it: gloo on "cpu", nccl on "cuda", one device a process.

    It also sets the environment variables that DeepSpeed reads (RANK, WORLD_SIZE, MASTER_ADDR, ...), for the whole
    process. Raises LearnerError when the ranks do not find each other in time.
    """
    if dist.is_initialized():
        return  # DeepSpeed remembers the first group, so a process that warm-starts and then trains keeps it
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0",
        LOCAL_SIZE="1",
        MASTER_ADDR=master_address,
        MASTER_PORT=str(master_port),
        DS_ACCELERATOR=device,
    )
    if device == "cuda":
        torch.cuda.set_device(0)
    _quiet_libraries()
    timeout = timedelta(seconds=timeout_s)
    try:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            store=meeting_place(rank, master_address, master_port, timeout),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
        )
    except (dist.DistError, RuntimeError, OSError) as error:
        raise LearnerError(
            f"learner rank {rank} of {world_size} could not join the others at {master_address}:{master_port}; "
            f"is the port free, and are all ranks up? {error}"
        ) from error
    import_deepspeed().init_distributed(auto_mpi_discovery=False, verbose=False)


def close_distributed() -> None:
    """Leave the process group; safe to call twice."""
    if dist.is_initialized():
        # DeepSpeed's own call, which also forgets the groups it has made of this one.
        import_deepspeed().comm.destroy_process_group()


def all_succeed(work: Callable[[], None], what: str) -> None:
    """Run `work` on every rank, and return when it has ended on all. Raises CheckpointError on all when it failed
    on one, whatever it raised: a full disk shows itself as OSError, or as an error of safetensors."""
    fault: str | None = None
    try:
        work()
    except Exception as error:  # noqa: BLE001 - raised again below, on every rank
        fault = f"rank {dist.get_rank()}: {type(error).__name__}: {error}"
    faults: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(faults, fault)
    if told := [entry for entry in faults if entry is not None]:
        raise CheckpointError(f"cannot {what}: {'; '.join(told)}")


def _quiet_libraries() -> None:
    """Keep torch's notes on its own functions, which DeepSpeed calls, from the user."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def import_deepspeed() -> Any:
    """DeepSpeed, without its shared-memory extension, which serves inference and compiles for most of a minute."""
    import deepspeed
    from deepspeed import ops

    # Its one warning in a run is of a skipped step, which StepInfo reports.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    require_attributes("deepspeed", ops, ["__compatible_ops__"])
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
