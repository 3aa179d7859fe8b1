"""Where ZeRO keeps a parameter's float32 weight and AdamW state, and how to save and restore them.

    stage 0    every rank holds all                      rank 0 writes
    stage 1, 2 a rank holds a part of one flat buffer     ┐ each rank writes its own fragments, named
    stage 3    a rank holds its slice of each parameter   ┘ by parameter and offset in it

A fragment is named by its offset in the parameter, not by its rank. So m ranks at one ZeRO stage can read what n ranks
wrote at another: each reads its new fragments out of the old ones. Files are safetensors, which hold no code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from configs.errors import LearnerError
from configs.library_layout import library_error

WEIGHT: Final = "weight"
MOMENTS: Final = ("exp_avg", "exp_avg_sq")
STEP: Final = "step"
"""Updates that AdamW has made, for its bias correction: one number a fragment."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """Consecutive elements of one flattened parameter, and where this rank's optimizer holds them."""

    name: str
    start: int
    """First element, counted in the parameter."""
    owner: Tensor
    """What AdamW takes for a parameter: the parameter itself, or a flat buffer of many."""
    offset: int
    """First element, counted in `owner`."""
    numel: int

    def of(self, tensor: Tensor) -> Tensor:
        """[numel]: the fragment's view of `owner`, or of a moment of its shape."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.numel)


def find_fragments(
    parameters: Sequence[tuple[str, nn.Parameter]], zero_optimizer: Any, zero_stage: int, rank: int
) -> list[Fragment]:
    """This rank's fragments. zero_optimizer: DeepSpeed's, around torch's; `check_layout` has found its layout right."""
    if zero_stage == 0:
        return [Fragment(name, 0, parameter, 0, parameter.numel()) for name, parameter in parameters]
    if zero_stage == 3:
        return list(_slices(parameters, zero_optimizer, rank))
    return list(_stretches(parameters, zero_optimizer))


def _stretches(parameters: Sequence[tuple[str, nn.Parameter]], zero_optimizer: Any) -> Iterator[Fragment]:
    for name, parameter in parameters:
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is not None:  # else the parameter lies on other ranks
            here, there = mapping.lp_fragment_address, mapping.get_hp_fragment_address()
            flat = zero_optimizer.optimizer.param_groups[mapping.param_group_index]["params"][0]
            yield Fragment(name, here.start, flat, there.start, there.numel)


def _slices(parameters: Sequence[tuple[str, nn.Parameter]], zero_optimizer: Any, rank: int) -> Iterator[Fragment]:
    for name, parameter in parameters:
        group, offset, size = zero_optimizer.grad_position[zero_optimizer.get_param_id(parameter)]
        start = rank * size
        numel = min(size, parameter.ds_numel - start)  # type: ignore[attr-defined]  # the last slices are padded
        if numel > 0:
            yield Fragment(name, start, zero_optimizer.fp32_partitioned_groups_flat[group], offset, numel)


def check_layout(
    parameters: Sequence[tuple[str, nn.Parameter]], zero_optimizer: Any, zero_stage: int, rank: int
) -> None:
    """Raises LibraryError unless DeepSpeed keeps weights where `find_fragments` looks for them.

    Right after the optimizer was made, when its float32 weights still equal the parameters: every fragment must hold
    the values of its place in its parameter, and the fragments of all ranks together every element once. Collective
    where there are several ranks: all of them raise, or none.
    """
    fault = ""
    num_held = 0
    try:
        whole = {name: _own_part(parameter, rank) for name, parameter in parameters}
        for fragment in find_fragments(parameters, zero_optimizer, zero_stage, rank):
            first, values = whole[fragment.name]
            held = fragment.of(fragment.owner).to(values.dtype)
            if not torch.equal(held, values.narrow(0, fragment.start - first, fragment.numel)):
                raise ValueError(f"{fragment.name} is not where it was looked for")
            num_held += fragment.numel
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        fault = f": {error}"
    num_expected = sum(getattr(parameter, "ds_numel", parameter.numel()) for _, parameter in parameters)
    if zero_stage > 0 and dist.is_initialized():
        found = torch.tensor([num_held, bool(fault)], dtype=torch.int64, device=parameters[0][1].device)
        dist.all_reduce(found)
        num_held, any_fault = found.tolist()
        fault = fault or (": see the other ranks" if any_fault else "")
    if not fault and num_held != num_expected:
        fault = f": {num_held} of {num_expected} elements were found"
    if fault:
        raise library_error("deepspeed", f"keeps the optimizer state of ZeRO stage {zero_stage} in another way{fault}")


def _own_part(parameter: nn.Parameter, rank: int) -> tuple[int, Tensor]:
    """(first element, values) of what this rank holds of a flattened parameter: all of it, but for ZeRO-3."""
    if not hasattr(parameter, "ds_tensor"):
        return 0, parameter.detach().view(-1)
    part: Tensor = parameter.ds_tensor.detach().view(-1)
    return rank * part.numel(), part


def named_fragments(fragments: Sequence[Fragment], optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """This rank's fragments as a checkpoint's file names them: views. An owner without a step yet has no state."""
    for fragment in fragments:
        yield _key(WEIGHT, fragment), fragment.of(fragment.owner)
        state = optimizer.state.get(fragment.owner)
        if state:
            for moment in MOMENTS:
                yield _key(moment, fragment), fragment.of(state[moment])
            yield _key(STEP, fragment), torch.as_tensor(float(state[STEP])).reshape(1)


def _key(kind: str, fragment: Fragment) -> str:
    return f"{kind}:{fragment.name}:{fragment.start}"


class FragmentFiles:
    """All fragments of a checkpoint, whichever ranks wrote them; read a piece at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises LearnerError for a file that cannot be read."""
        self._files: list[Any] = []
        self._pieces: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = defaultdict(list)
        for path in paths:
            try:
                file = safe_open(str(path), framework="pt")
            except (OSError, SafetensorError) as error:
                raise LearnerError(f"cannot resume: {path} cannot be read: {error}") from error
            self._files.append(file)
            for key in file.keys():  # noqa: SIM118 - no mapping, and not iterable
                kind, name, start = key.split(":")
                numel = file.get_slice(key).get_shape()[0]
                self._pieces[kind, name].append((int(start), numel, file, key))

    @property
    def names(self) -> set[str]:
        """Parameters that the checkpoint holds."""
        return {name for kind, name in self._pieces if kind == WEIGHT}

    def read(self, kind: str, name: str, start: int, numel: int) -> Tensor | None:
        """[numel] from element `start` of a parameter's weight or moment; None when there is none of this kind.

        Raises LearnerError when some of the elements are in no file.
        """
        pieces = self._pieces.get((kind, name))
        if not pieces:
            return None
        result, num_read = torch.empty(0), 0
        for first, length, file, key in pieces:
            begin, end = max(first, start), min(first + length, start + numel)
            if begin >= end:
                continue
            part = file.get_slice(key)[begin - first : end - first]
            if not num_read:
                result = torch.empty(numel, dtype=part.dtype)
            result[begin - start : end - start] = part
            num_read += end - begin
        if num_read != numel:
            raise LearnerError(f"cannot resume: {numel - num_read} elements of {kind} of {name} are in no file")
        return result

    def read_weight(self, name: str, start: int, numel: int) -> Tensor:
        """[numel] from element `start` of a parameter. Raises LearnerError when some of it is in no file."""
        weight = self.read(WEIGHT, name, start, numel)
        if weight is None:
            raise LearnerError(f"cannot resume: the checkpoint holds no weight of {name}")
        return weight

    def step(self, name: str) -> float | None:
        """Updates that AdamW had made to a parameter; None before the first."""
        pieces = self._pieces.get((STEP, name))
        return float(pieces[0][2].get_tensor(pieces[0][3])) if pieces else None


def read_fragments(files: FragmentFiles, fragments: Sequence[Fragment], optimizer: torch.optim.Optimizer) -> None:
    """Fill this rank's float32 weights and AdamW state. Raises LearnerError where something is missing."""
    for fragment in fragments:
        fragment.of(fragment.owner).copy_(files.read_weight(fragment.name, fragment.start, fragment.numel))
        step = files.step(fragment.name)
        if step is None:
            continue
        state = _state_of(fragment.owner, optimizer)
        state[STEP].fill_(step)
        for moment in MOMENTS:
            values = files.read(moment, fragment.name, fragment.start, fragment.numel)
            if values is not None:
                fragment.of(state[moment]).copy_(values)


def _state_of(owner: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """AdamW's state of `owner`, made as AdamW makes it at its first step."""
    state: dict[str, Any] = optimizer.state[owner]
    if not state:
        is_fused = optimizer.defaults.get("fused")
        state[STEP] = torch.zeros((), dtype=torch.float32, device=owner.device if is_fused else "cpu")
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(owner.detach(), memory_format=torch.preserve_format)
    return state
