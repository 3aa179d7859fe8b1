"""Fragments of parameters on disk: what some ranks wrote, others read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import deepspeed
import pytest
import torch
from safetensors.torch import save_file

from configs.errors import LearnerError, LibraryError
from learner.zero.host_copies import HostCopies
from learner.zero.optimizer_state import Fragment, FragmentFiles, check_layout, named_fragments, read_fragments

SIZES = {"first": 7, "second": 5}


def trained_flat(num_steps: int, seed: int = 0) -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
    """All parameters in one flat buffer, as ZeRO has them, after some steps."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.nn.Parameter(torch.randn(sum(SIZES.values()), generator=generator))
    optimizer = torch.optim.AdamW([flat], lr=0.1)
    for _ in range(num_steps):
        flat.grad = torch.randn(flat.shape, generator=generator)
        optimizer.step()
    return flat, optimizer


def cut(flat: torch.nn.Parameter, begin: int, end: int) -> list[Fragment]:
    """The fragments that lie in `begin` to `end` of the flat buffer of all parameters; `flat` holds just these."""
    fragments, first = [], 0
    for name, size in SIZES.items():
        low, high = max(begin, first), min(end, first + size)
        if low < high:
            fragments.append(Fragment(name, low - first, flat, low - begin, high - low))
        first += size
    return fragments


def write_in_parts(tmp_path: Path, num_parts: int, num_steps: int) -> tuple[torch.nn.Parameter, FragmentFiles]:
    flat, optimizer = trained_flat(num_steps)
    size = flat.numel() // num_parts
    paths = []
    for part in range(num_parts):
        begin, end = part * size, (part + 1) * size
        fragments = [Fragment(f.name, f.start, flat, begin + f.offset, f.numel) for f in cut(flat, begin, end)]
        paths.append(tmp_path / f"part{part}.safetensors")
        copies = HostCopies()
        copies.take([("rng_cpu:state:0", torch.zeros(3)), *named_fragments(fragments, optimizer)])
        save_file(copies.tensors, paths[-1])
    return flat, FragmentFiles(paths)


@pytest.mark.parametrize("num_parts", [1, 2, 3])
@pytest.mark.parametrize("num_readers", [1, 2, 4])
def test_any_number_of_readers_gets_weights_and_moments_that_any_number_wrote(
    tmp_path: Path, num_parts: int, num_readers: int
):
    flat, files = write_in_parts(tmp_path, num_parts, num_steps=3)
    assert files.names == set(SIZES)
    size = flat.numel() // num_readers
    twins = []
    for reader in range(num_readers):
        twin = torch.nn.Parameter(torch.zeros(size))
        optimizer = torch.optim.AdamW([twin], lr=0.1)
        read_fragments(files, cut(twin, reader * size, (reader + 1) * size), optimizer)
        twin.grad = torch.ones(size)
        optimizer.step()  # moments and bias correction show here
        twins.append(twin.detach())
    whole, optimizer = trained_flat(3)
    whole.grad = torch.ones_like(whole)
    optimizer.step()
    assert torch.equal(torch.cat(twins), whole.detach())


def test_before_the_first_step_there_are_weights_and_no_moments(tmp_path: Path):
    flat, files = write_in_parts(tmp_path, 1, num_steps=0)
    twin = torch.nn.Parameter(torch.zeros_like(flat))
    optimizer = torch.optim.AdamW([twin])
    read_fragments(files, cut(twin, 0, twin.numel()), optimizer)
    assert torch.equal(twin, flat)
    assert not optimizer.state
    assert files.step("first") is None


def test_missing_elements_are_named(tmp_path: Path):
    write_in_parts(tmp_path, 2, num_steps=1)
    files = FragmentFiles([tmp_path / "part0.safetensors"])
    with pytest.raises(LearnerError, match="1 elements of weight of first are in no file"):
        files.read("weight", "first", 0, 7)
    with pytest.raises(LearnerError, match="holds no weight of third"):
        files.read_weight("third", 0, 1)


def test_a_file_that_is_not_safetensors_is_named(tmp_path: Path):
    path = tmp_path / "part0.safetensors"
    path.write_bytes(b"\x80\x04 a pickle, say")
    with pytest.raises(LearnerError, match=r"part0\.safetensors cannot be read"):
        FragmentFiles([path])


Layout = tuple[list[tuple[str, torch.nn.Parameter]], SimpleNamespace]


def layout_of_stage_1() -> Layout:
    """Two bfloat16 parameters, and the float32 buffer that a ZeRO optimizer of stage 1 or 2 keeps of them."""
    parameters = [(name, torch.nn.Parameter(torch.randn(size).bfloat16())) for name, size in SIZES.items()]
    flat = torch.cat([parameter.detach().float() for _, parameter in parameters])
    begin = 0
    for _, parameter in parameters:
        address = SimpleNamespace(start=begin, numel=parameter.numel())
        parameter._hp_mapping = SimpleNamespace(
            lp_fragment_address=SimpleNamespace(start=0, numel=parameter.numel()),
            get_hp_fragment_address=lambda address=address: address,
            param_group_index=0,
        )
        begin += parameter.numel()
    return parameters, SimpleNamespace(optimizer=SimpleNamespace(param_groups=[{"params": [flat]}]))


def layout_of_stage_3() -> Layout:
    """The same as rank 1 of 2 has it at stage 3: half of each parameter, the second one padded."""
    parameters, pieces, positions = [], [], {}
    for name, size in SIZES.items():
        share = (size + 1) // 2
        parameter = torch.nn.Parameter(torch.empty(0))
        parameter.ds_numel, parameter.ds_tensor = size, torch.randn(share)
        positions[id(parameter)] = [0, sum(map(len, pieces)), share]
        pieces.append(parameter.ds_tensor)
        parameters.append((name, parameter))
    flat = torch.cat(pieces)
    return parameters, SimpleNamespace(grad_position=positions, get_param_id=id, fp32_partitioned_groups_flat=[flat])


def test_the_layouts_of_this_deepspeed_are_taken():
    check_layout(*layout_of_stage_1(), 1, 0)
    parameters, optimizer = layout_of_stage_3()
    with pytest.raises(LibraryError, match="5 of 12 elements were found"):  # the other rank has 7, and adds them
        check_layout(parameters, optimizer, 3, 1)


def _forget_mapping(parameters: list[tuple[str, torch.nn.Parameter]], optimizer: SimpleNamespace) -> None:
    del parameters[1][1]._hp_mapping


def _map_nowhere(parameters: list[tuple[str, torch.nn.Parameter]], optimizer: SimpleNamespace) -> None:
    parameters[1][1]._hp_mapping = None


def _shift(parameters: list[tuple[str, torch.nn.Parameter]], optimizer: SimpleNamespace) -> None:
    flat = optimizer.optimizer.param_groups[0]["params"][0]
    flat.copy_(flat.roll(1))


def _rename_groups(parameters: list[tuple[str, torch.nn.Parameter]], optimizer: SimpleNamespace) -> None:
    optimizer.flat_groups = optimizer.__dict__.pop("fp32_partitioned_groups_flat")


def _reorder(parameters: list[tuple[str, torch.nn.Parameter]], optimizer: SimpleNamespace) -> None:
    optimizer.fp32_partitioned_groups_flat[0] = optimizer.fp32_partitioned_groups_flat[0].flip(0)


@pytest.mark.parametrize(
    ("make", "stage", "rank", "change", "message"),
    [
        (layout_of_stage_1, 1, 0, _forget_mapping, "no attribute '_hp_mapping'"),
        (layout_of_stage_1, 2, 0, _map_nowhere, "7 of 12 elements were found"),
        (layout_of_stage_1, 1, 0, _shift, "first is not where it was looked for"),
        (layout_of_stage_3, 3, 1, _rename_groups, "no attribute 'fp32_partitioned_groups_flat'"),
        (layout_of_stage_3, 3, 1, _reorder, "first is not where it was looked for"),
    ],
)
def test_another_layout_is_refused_at_the_start_with_the_version(
    make: Callable[[], Layout], stage: int, rank: int, change: Callable[..., None], message: str
):
    parameters, optimizer = make()
    change(parameters, optimizer)
    with pytest.raises(LibraryError, match=f"deepspeed {deepspeed.__version__} .* ZeRO stage {stage} .*{message}"):
        check_layout(parameters, optimizer, stage, rank)
