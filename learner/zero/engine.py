"""Data-parallel training with DeepSpeed's ZeRO, stages 0 to 3, behind a small class.

    init_distributed ─► DeepSpeedEngine ─► for each optimizer update:
                                               for each micro-batch: engine(...) ─► engine.backward(loss, is_last=...)
                                               engine.step(ends_step=...) ─► StepInfo

Every rank makes the same calls in the same order. Gradients are *summed* over ranks and
micro-batches, so a loss that is divided by a global token count needs no further factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from configs.errors import LearnerError
from configs.library_layout import require_attributes
from learner.zero.optimizer_settings import OptimizerSettings
from learner.zero.optimizer_state import (
    Fragment,
    FragmentFiles,
    check_layout,
    find_fragments,
    named_fragments,
    read_fragments,
)
from learner.zero.process_group import import_deepspeed

_BUFFER_ELEMENTS = 50_000_000


@dataclass(frozen=True, slots=True)
class StepInfo:
    """The result of one optimizer update."""

    grad_norm: float
    """Global gradient norm before clipping; not finite when the update was skipped."""
    lr: float
    applied: bool
    """False when a gradient was not finite, so that the update was skipped and the weights did not change."""


class DeepSpeedEngine:
    """A module and its AdamW under ZeRO; the caller decides where gradient accumulation ends.

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
        """Raises LearnerError for a dtype and ZeRO stage that DeepSpeed gets wrong together, and LibraryError for a
        version of DeepSpeed that keeps its optimizer state in another way than `learner.zero.optimizer_state` reads."""
        if dtype == torch.bfloat16 and zero_stage == 0:
            raise LearnerError(
                "learner.zero_stage 0 is wrong in DeepSpeed with model.dtype bfloat16; set it to 1 or more"
            )
        self.settings = settings
        self.zero_stage = zero_stage
        self.num_steps = 0
        """Steps of the learning-rate schedule, including steps whose updates were skipped."""
        self._named_parameters = [entry for entry in module.named_parameters() if entry[1].requires_grad]
        parameters = [parameter for _, parameter in self._named_parameters]
        # Torch's own AdamW: DeepSpeed's variants are compiled at first use, for minutes on a CPU.
        self._torch_optimizer = torch.optim.AdamW(
            parameters,
            lr=settings.learning_rate(0),
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=device.type == "cuda",
        )
        self._engine, self._optimizer, _, _ = import_deepspeed().initialize(
            model=module.to(device),
            model_parameters=parameters,
            optimizer=self._torch_optimizer,
            config=_deepspeed_config(settings, zero_stage, dtype),
        )
        self._parameters = parameters
        if zero_stage > 0:
            require_attributes("deepspeed", self._optimizer, ["overflow"], "its ZeRO optimizer")
        check_layout(self._named_parameters, self._optimizer, zero_stage, dist.get_rank())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward pass."""
        return self._engine(*args, **kwargs)

    @property
    def module(self) -> nn.Module:
        """The wrapped module; at stage 3 its parameters are partitioned between calls."""
        module: nn.Module = self._engine.module
        return module

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Backward pass: add this micro-batch's gradient. is_last: True for the last micro-batch before `step`.

        loss: scalar, this micro-batch's and rank's share of the whole step's loss.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages over ranks; shares must be summed.
        self._engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)

    def step(self, *, ends_step: bool = True) -> StepInfo:
        """Clip gradients and update the weights; the update is skipped when a gradient is not finite.

        ends_step: whether this is the last update of a step of the schedule. All updates of a step use the same
        learning rate.
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
        """The whole (unpartitioned) tensors of `parameters`, in buckets of about `bucket_bytes`, valid until the next
        bucket.

        At stage 3 this is an all-gather: every rank must exhaust the iterator.
        """
        for bucket in _buckets(parameters, bucket_bytes):
            with self._gather([parameter for _, parameter in bucket]):
                yield [(name, parameter.detach()) for name, parameter in bucket]

    def whole_shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        """Shape of a parameter, also while stage 3 has it partitioned."""
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    def _gather(self, parameters: list[nn.Parameter], modifier_rank: int | None = None) -> Any:
        if self.zero_stage < 3:
            return nullcontext()
        return import_deepspeed().zero.GatheredParameters(parameters, modifier_rank=modifier_rank)

    def named_state(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's shard of weights and optimizer state as `read_state` knows it: views that the next step changes.

        At stage 0 all ranks hold the same state, so ranks above 0 have none to write.
        """
        fragments = self._fragments() if self.zero_stage > 0 or dist.get_rank() == 0 else []
        return named_fragments(fragments, self._torch_optimizer)

    def read_state(self, paths: Sequence[Path], num_steps: int) -> None:
        """Resume after `num_steps` steps from the files of all ranks, which may be of another ZeRO stage and number of
        ranks.

        Every rank calls it. Raises LearnerError when files and module hold different parameters.
        """
        files = FragmentFiles(paths)
        different = files.names ^ {name for name, _ in self._named_parameters}
        if different:
            raise LearnerError(
                f"cannot resume: checkpoint and policy do not train the same parameters, {min(different)} among "
                f"{len(different)}; resume with the model and the trainable parameters that wrote it"
            )
        read_fragments(files, self._fragments(), self._torch_optimizer)
        if self.zero_stage > 0:
            self._refresh_parameters(files)
        self.num_steps = num_steps

    def _fragments(self) -> list[Fragment]:
        return find_fragments(self._named_parameters, self._optimizer, self.zero_stage, dist.get_rank())

    @torch.no_grad()
    def _refresh_parameters(self, files: FragmentFiles) -> None:
        """Copy the optimizer's float32 weights into the parameters that forward passes use."""
        for name, parameter in self._named_parameters:
            # At stage 3 what rank 0 writes while a parameter is whole is sent to all.
            with self._gather([parameter], modifier_rank=0):
                if self.zero_stage < 3 or dist.get_rank() == 0:
                    parameter.copy_(files.read_weight(name, 0, parameter.numel()).view(parameter.shape))

    def offload_optimizer(self) -> None:
        """Move master weights and moments into the host's memory, page-locked for a GPU, and give what they took back
        to the device, with all that PyTorch keeps for later. No step can be made before `reload_optimizer`;
        `named_state` may be read. A second call changes nothing.

        Raises LearnerError at other stages than 1 and 2: at stage 3 DeepSpeed moves the state of its own Adam alone,
        which is compiled at first use, and at stage 0 none.
        """
        from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum

        if self.zero_stage not in (1, 2):
            raise LearnerError(
                f"the optimizer of learner.zero_stage {self.zero_stage} cannot be offloaded; set it to 1 or 2"
            )
        self._engine.offload_states(include=[OffloadStateTypeEnum.hp_params, OffloadStateTypeEnum.optim_states])

    def reload_optimizer(self) -> None:
        """Bring back what `offload_optimizer` has moved; without it, nothing changes."""
        if self.zero_stage in (1, 2):
            self._engine.reload_states()

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
