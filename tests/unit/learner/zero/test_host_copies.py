"""Copies that stay as they were while what they were taken of goes on."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from learner.zero import HostCopies


def test_copies_do_not_change_with_what_they_were_taken_of_and_can_be_written(tmp_path: Path) -> None:
    flat = torch.nn.Parameter(torch.arange(6.0))
    copies = HostCopies()
    copies.take([("a", flat[:2]), ("b", flat[1:5].view(2, 2).t()), ("half", flat.bfloat16())])
    with torch.no_grad():
        flat.zero_()
    save_file(copies.tensors, tmp_path / "file")  # refuses views that share memory, or are not contiguous
    loaded = load_file(tmp_path / "file")
    assert loaded["a"].tolist() == [0.0, 1.0]
    assert loaded["b"].tolist() == [[1.0, 3.0], [2.0, 4.0]]
    assert loaded["half"].dtype == torch.bfloat16
    assert not any(tensor.requires_grad for tensor in copies.tensors.values())


def test_the_next_copies_use_the_same_memory_and_what_is_no_more_is_dropped() -> None:
    copies = HostCopies()
    copies.take([("stays", torch.zeros(4)), ("grows", torch.zeros(2)), ("goes", torch.zeros(2))])
    place = copies.tensors["stays"].data_ptr()
    copies.take([("stays", torch.ones(4)), ("grows", torch.ones(3))])
    assert copies.tensors["stays"].data_ptr() == place
    assert {name: tensor.tolist() for name, tensor in copies.tensors.items()} == {
        "stays": [1.0] * 4,
        "grows": [1.0] * 3,
    }
