"""One optimizer over all ranks: DeepSpeed behind a small class.

    init_distributed ─► DeepSpeedEngine ─► for each optimizer update:
                                               for each micro-batch: engine(...) ─► engine.backward(loss, is_last=...)
                                               engine.step(ends_step=...) ─► StepInfo

Every rank makes the same calls in the same order. Gradients are *summed* over ranks and
micro-batches, so a loss that is divided by a global token count needs no further factor.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.errors import LearnerError
from configs.schema import LearnerConfig

CHECKPOINT_TAG = "deepspeed"
_BUFFER_ELEMENTS = 50_000_000


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW and its learning rate."""

    lr: float
    total_steps: int
    """Steps after which a falling schedule would reach 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: float = 1.0

    @classmethod
    def of(cls, config: LearnerConfig, total_steps: int) -> OptimizerSettings:
        """Those of reinforcement learning."""
        return cls(
            lr=config.lr,
            total_steps=total_steps,
            betas=config.betas,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_steps,
            schedule=config.lr_schedule,
            max_grad_norm=config.max_grad_norm,
        )

    def learning_rate(self, step: int) -> float:
        """Of the step that follows `step` others: linear warm-up to `lr`, then the schedule."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        match self.schedule:
            case "constant":
                return self.lr
            case "linear":
                return self.lr * (1.0 - progress)
            case "cosine":
                return self.lr * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True, slots=True)
class StepInfo:
    """What one optimizer update did."""

    grad_norm: float
    """Global norm before clipping; not finite when the step was skipped."""
    lr: float
    applied: bool
    """False: a gradient was not finite, so the weights are as they were."""


def init_distributed(
    rank: int, world_size: int, master_address: str, master_port: int, device: str, timeout_s: float = 600.0
) -> None:
    """Join the process group, unless this process is in it: gloo on "cpu", nccl on "cuda", one device a process.

    Raises LearnerError when the ranks do not find each other in time.
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
    try:
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            init_method=f"tcp://{master_address}:{master_port}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
    except (dist.DistError, RuntimeError, OSError) as error:
        raise LearnerError(
            f"learner rank {rank} of {world_size} could not join the others at {master_address}:{master_port}; "
            f"is the port free, and are all ranks up? {error}"
        ) from error
    _import_deepspeed().init_distributed(auto_mpi_discovery=False, verbose=False)


def close_distributed() -> None:
    """Leave the process group; safe to call twice."""
    if dist.is_initialized():
        # DeepSpeed's own call, which also forgets the groups it has made of this one.
        _import_deepspeed().comm.destroy_process_group()


def _quiet_libraries() -> None:
    """Keep torch's notes on its own functions, which DeepSpeed calls, from the user."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")


def _import_deepspeed() -> Any:
    """DeepSpeed, without its shared-memory extension, which serves inference and compiles for most of a minute."""
    import deepspeed
    from deepspeed import ops

    # Its one warning in a run is of a skipped step, which StepInfo reports.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class DeepSpeedEngine:
    """A module and its AdamW under ZeRO, with gradient accumulation that the caller directs.

    Trains the module's parameters that require a gradient. `init_distributed` comes first.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: OptimizerSettings,
        *,
        zero_stage: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Raises LearnerError for a dtype and ZeRO stage that DeepSpeed gets wrong together."""
        if dtype == torch.bfloat16 and zero_stage == 0:
            raise LearnerError(
                "learner.zero_stage 0 is wrong in DeepSpeed with model.dtype bfloat16; set it to 1 or more"
            )
        self.settings = settings
        self.zero_stage = zero_stage
        self.num_steps = 0
        """Steps of the schedule that were asked for, skipped ones too."""
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # Torch's own AdamW: DeepSpeed's variants are compiled at first use, for minutes on a CPU.
        optimizer = torch.optim.AdamW(
            parameters,
            lr=settings.learning_rate(0),
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=device.type == "cuda",
        )
        self._engine, self._optimizer, _, _ = _import_deepspeed().initialize(
            model=module.to(device),
            model_parameters=parameters,
            optimizer=optimizer,
            config=_deepspeed_config(settings, zero_stage, dtype),
        )
        self._parameters = parameters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward pass."""
        return self._engine(*args, **kwargs)

    @property
    def module(self) -> nn.Module:
        """The wrapped module; at stage 3 its parameters are partitioned between calls."""
        module: nn.Module = self._engine.module
        return module

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of this micro-batch; `is_last` on the one before `step`.

        loss: scalar, this micro-batch's and rank's share of the whole step's loss.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages over ranks; shares must be summed.
        self._engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)

    def step(self, *, ends_step: bool = True) -> StepInfo:
        """Clip and make the optimizer's update; skip it when a gradient is not finite.

        ends_step: whether this is the last update of a step of the schedule; all updates of one share its rate.
        """
        lr = self.settings.learning_rate(self.num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self.num_steps += ends_step
        if self.zero_stage == 0:
            return self._step_unpartitioned(lr)
        self._engine.step()
        # Stages 1 to 3 compute the norm over all partitions, and skip by themselves when it is not finite.
        return StepInfo(float(self._engine.get_global_grad_norm()), lr, applied=not self._optimizer.overflow)

    def _step_unpartitioned(self, lr: float) -> StepInfo:
        """Stage 0 in float32: DeepSpeed reports no norm there, and does not look for bad gradients."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        grad_norm = float(nn.utils.get_total_norm(gradients))
        applied = math.isfinite(grad_norm)
        if applied:
            self._engine.step()
        else:
            self._engine.zero_grad()
        return StepInfo(grad_norm, lr, applied)

    def gathered(
        self, parameters: list[tuple[str, nn.Parameter]], bucket_bytes: int
    ) -> Iterator[list[tuple[str, Tensor]]]:
        """The whole tensors of `parameters`, in buckets of about `bucket_bytes`, valid until the next bucket.

        At stage 3 gathering is collective: every rank must run through all buckets.
        """
        for bucket in _buckets(parameters, bucket_bytes):
            with self._gather([parameter for _, parameter in bucket]):
                yield [(name, parameter.detach()) for name, parameter in bucket]

    def whole_shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """Shape of a parameter, also while stage 3 has it partitioned."""
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    def _gather(self, parameters: list[nn.Parameter]) -> Any:
        if self.zero_stage < 3:
            return nullcontext()
        return _import_deepspeed().zero.GatheredParameters(parameters)

    def save_checkpoint(self, directory: Path, client_state: Mapping[str, Any]) -> None:
        """Write weights, optimizer state and `client_state`; every rank calls it. Frozen parameters are left out."""
        self._engine.save_checkpoint(
            str(directory),
            tag=CHECKPOINT_TAG,
            client_state={**client_state, "engine_num_steps": self.num_steps},
            save_latest=False,
            exclude_frozen_parameters=True,
        )

    def load_checkpoint(self, directory: Path) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote, at the same ZeRO stage and number of ranks; returns its client_state.

        Raises LearnerError when there is no checkpoint, or it belongs to another stage or number of ranks.
        """
        try:
            path, client_state = self._engine.load_checkpoint(
                str(directory), tag=CHECKPOINT_TAG, load_module_strict=False
            )
        except Exception as error:  # DeepSpeed raises bare assertions and errors of its own for misfits.
            raise LearnerError(
                f"cannot resume from {directory} with learner.zero_stage {self.zero_stage} and {dist.get_world_size()} "
                f"rank(s); resume with the settings that wrote it. {type(error).__name__}: {error}"
            ) from error
        if path is None:
            raise LearnerError(f"cannot resume: there is no DeepSpeed checkpoint in {directory}")
        self.num_steps = client_state.pop("engine_num_steps")
        return dict(client_state)

    def destroy(self) -> None:
        """Free the optimizer's memory and hooks. The process group stays."""
        self._engine.destroy()


def _deepspeed_config(settings: OptimizerSettings, zero_stage: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        # Batches are ours to cut; DeepSpeed only wants to see a consistent pair.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "steps_per_print": None,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": {
            "stage": zero_stage,
            # Elements of the communication buffers; DeepSpeed's default takes gigabytes of GPU memory.
            "reduce_bucket_size": _BUFFER_ELEMENTS,
            "allgather_bucket_size": _BUFFER_ELEMENTS,
            "stage3_prefetch_bucket_size": _BUFFER_ELEMENTS,
            # Norms and biases stay whole at stage 3: gathering them costs more than keeping them.
            "stage3_param_persistence_threshold": 10_000,
        },
    }


def _buckets(parameters: list[tuple[str, nn.Parameter]], bucket_bytes: int) -> Iterator[list[tuple[str, nn.Parameter]]]:
    """Consecutive runs of at most `bucket_bytes`; a larger parameter is alone."""
    bucket: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, parameter in parameters:
        # ZeRO-3 leaves an empty tensor behind and the true size in ds_numel.
        num_bytes = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        if bucket and size + num_bytes > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, parameter))
        size += num_bytes
    if bucket:
        yield bucket
