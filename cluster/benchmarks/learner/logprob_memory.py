"""Memory of chunked log-probabilities, forward and backward, against `log_softmax` over all logits at once."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from cluster.benchmarks.isolation import isolated
from cluster.benchmarks.report import Table
from configs.schema import LearnerConfig
from learner.objective.logprobs import chunked_logprobs, entries_at_once

VOCABULARIES = (1_000, 16_000, 100_000)
NUM_POSITIONS = 2_048
WIDTH = 64
MIB = 2**20
_M_MMAP_THRESHOLD = -3  # malloc.h
CHUNK_MIB: int = LearnerConfig.model_fields["logprob_chunk_mb"].default
CHUNK_SIZE = entries_at_once(CHUNK_MIB * MIB, NUM_POSITIONS)


def measure_memory() -> Table:
    """Peaks of fresh processes."""
    rows = []
    for vocabulary in VOCABULARIES:
        plain = isolated(1, peak_bytes, vocabulary, None, False)
        chunked = isolated(1, peak_bytes, vocabulary, CHUNK_SIZE, False)
        # The gradient of the weight is the optimizer's to ask for, and not the log-probabilities' to save.
        trains = isolated(1, peak_bytes, vocabulary, CHUNK_SIZE, True) - vocabulary * WIDTH * 4
        logits = NUM_POSITIONS * vocabulary * 4
        cells = (f"{size / MIB:,.1f}" for size in (logits, plain, chunked, trains))
        rows.append((f"{vocabulary:,}", *cells, f"{plain / chunked:.1f} ×"))
    return Table(
        "Memory of log-probabilities and their gradient, MiB",
        f"Peak growth of a fresh process's resident memory during forward and backward of {NUM_POSITIONS} positions of "
        f"width {WIDTH} in float32: `log_softmax` over all logits, against `chunked_logprobs` in chunks of "
        f"{CHUNK_MIB} MiB, here {CHUNK_SIZE} tokens of the vocabulary. The weight is frozen; in one column it trains, "
        "and its gradient, as large as the weight whatever computes it, is subtracted. What is freed goes back to the "
        "system at once here; glibc would keep some of it for later, up to some tens of MiB, whatever the vocabulary.",
        (
            "vocabulary",
            "one copy of the logits",
            "plain",
            "chunked",
            "chunked, weight trains, less its gradient",
            "plain / chunked",
        ),
        tuple(rows),
    )


def peak_bytes(vocabulary: int, chunk_size: int | None, trains_weight: bool) -> int:
    """By how much resident memory grows at most while log-probabilities and their gradient are computed; in chunks of
    the vocabulary, or plainly where chunk_size is None. Linux with glibc only."""
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 64 * 1024)  # larger blocks are given back when they are freed
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, WIDTH, generator=generator).requires_grad_(trains_weight)
    hidden = torch.randn(NUM_POSITIONS, WIDTH, generator=generator).requires_grad_()
    targets = torch.randint(vocabulary, (NUM_POSITIONS,), generator=generator)
    few = slice(0, 2)
    _logprob_sum(hidden[few], weight, targets[few], chunk_size).backward()  # loads what is loaded at first use
    weight.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew from here
    before = _memory_bytes("VmRSS")
    _logprob_sum(hidden, weight, targets, chunk_size).backward()
    return _memory_bytes("VmHWM") - before


def _logprob_sum(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_size: int | None) -> Tensor:
    if chunk_size is not None:
        return chunked_logprobs(hidden, weight, None, targets, chunk_size)[0].sum()
    return torch.nn.functional.linear(hidden, weight).log_softmax(-1).gather(-1, targets[:, None]).sum()


def _memory_bytes(field: str) -> int:
    """A size of this process, as Linux gives it in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
