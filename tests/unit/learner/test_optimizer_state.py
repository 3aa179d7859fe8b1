"""Fragments of parameters on disk: what some ranks wrote, others read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.errors import LearnerError
from learner.optimizer_state import Fragment, FragmentFiles, read_fragments, write_fragments

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
        write_fragments(paths[-1], fragments, optimizer, {"rng_cpu:state:0": torch.zeros(3)})
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


def test_a_file_that_is_not_safetensors_is_named(tmp_path: Path):
    path = tmp_path / "part0.safetensors"
    path.write_bytes(b"\x80\x04 a pickle, say")
    with pytest.raises(LearnerError, match=r"part0\.safetensors cannot be read"):
        FragmentFiles([path])
