"""Accelerators by their published figures, for a roofline: what a step cannot be faster than."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Card:
    """One accelerator. memory_bytes: what processes can use; bandwidth: bytes/s; flops: dense bfloat16, a second."""

    name: str
    memory_bytes: int
    bandwidth: float
    flops: float


CARDS: Final[Mapping[str, Card]] = {
    "h200": Card("H200 SXM", int(139 * GIB), 4.8e12, 989e12),
    "h100": Card("H100 SXM", int(78 * GIB), 3.35e12, 989e12),
    "a100": Card("A100 SXM 80 GB", int(78 * GIB), 2.04e12, 312e12),
    "l40s": Card("L40S", int(44 * GIB), 0.864e12, 362e12),
    "rtx4090": Card("GeForce RTX 4090", int(23 * GIB), 1.008e12, 165e12),
}
"""NVIDIA's data sheets (bfloat16 dense, without sparsity); memory is what is left of the nominal size for use."""
EFFICIENCY: Final = 0.5
"""Share of the peak that large matrix products reach in practice; a convention, to be replaced by measurements."""
STEP_OVERHEAD_S: Final = 0.005
"""Of one decoding step: kernel launches, sampling, scheduling. Facts of other engines; not measured here."""
