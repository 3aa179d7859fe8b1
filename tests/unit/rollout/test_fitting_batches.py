"""Passes of the VQ decoder take what a GPU has free, over a pretended GPU; what a device without figures does, and the
real decoder, is in test_image_decoder.py."""

from __future__ import annotations

import pytest
import torch

from rollout.pictures.fitting_batches import SHARE, FittingBatches

PICTURE_BYTES = 100


class PretendedGpu:
    """Counts bytes as PyTorch does on a GPU: of a pass while it runs, and of others who share the device."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.others = 0
        self.cached = 0
        """Reserved by PyTorch and not used."""
        self.peak = 0
        self.passes: list[int] = []

    def draw(self, start: int, end: int) -> list[int]:
        self.passes.append(end - start)
        needed = (end - start) * PICTURE_BYTES
        if needed > self.total - self.others:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.peak = needed
        return list(range(start, end))

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return self.total - self.others - self.cached, self.total


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PretendedGpu:
    gpu = PretendedGpu(total=1_000)
    answers = {
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: 0,
        "max_memory_allocated": lambda device: gpu.peak,
        "memory_reserved": lambda device: gpu.cached,
        "mem_get_info": gpu.mem_get_info,
        "empty_cache": lambda: None,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return gpu


def run(batches: FittingBatches, gpu: PretendedGpu, count: int) -> list[int]:
    """Pictures of each pass."""
    gpu.passes.clear()
    drawn = [picture for part in batches.run(count, gpu.draw) for picture in part]
    assert drawn == list(range(count)), "each once, in order"
    return list(gpu.passes)


def test_the_first_pass_shows_what_a_picture_takes_and_later_ones_take_what_is_free(gpu: PretendedGpu) -> None:
    batches = FittingBatches(16, torch.device("cuda"))
    assert run(batches, gpu, 19) == [1, 9, 9]
    assert int(SHARE * gpu.total) // PICTURE_BYTES == 9


def test_passes_shrink_and_grow_with_what_others_leave(gpu: PretendedGpu) -> None:
    batches = FittingBatches(16, torch.device("cuda"))
    run(batches, gpu, 1)
    gpu.others = 600
    assert run(batches, gpu, 6) == [3, 3]
    gpu.others = 0
    assert run(batches, gpu, 9) == [9]


def test_a_pass_is_never_larger_than_the_config_says_nor_smaller_than_one_picture(gpu: PretendedGpu) -> None:
    batches = FittingBatches(4, torch.device("cuda"))
    assert run(batches, gpu, 9) == [1, 4, 4]
    gpu.others = 900
    assert run(batches, gpu, 2) == [1, 1]


def test_what_pytorch_keeps_without_using_it_is_free(gpu: PretendedGpu) -> None:
    batches = FittingBatches(16, torch.device("cuda"))
    run(batches, gpu, 1)
    gpu.cached = 800
    assert run(batches, gpu, 9) == [9]


def test_memory_that_goes_while_a_pass_runs_halves_it_for_good(
    gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = FittingBatches(16, torch.device("cuda"))
    run(batches, gpu, 1)
    free_when_asked = gpu.mem_get_info(torch.device("cuda"))
    gpu.others = 500
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: free_when_asked)
    assert run(batches, gpu, 9) == [9, 4, 4, 1]
    assert batches.size == 4
