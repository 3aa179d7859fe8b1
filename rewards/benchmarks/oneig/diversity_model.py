"""DreamSim: how far apart the cells of a grid are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards.benchmarks.protocol import Item
from rewards.benchmarks.provenance import sha256_of
from rewards.loading import model_errors
from rewards.loading.dreamsim import DreamSim, find_files
from rollout.records import UInt8Array


class DiversityModel:
    """DreamSim's ensemble in float32, as the official script has it. Raises ModelError when it cannot be loaded."""

    found_as = "distances"

    def __init__(self, folder: Path, device: str) -> None:
        """folder: see `DreamSim`."""
        with model_errors("oneig_diversity", str(folder)):
            self._model = DreamSim(folder, device)
        self._about = {"dreamsim": {name: sha256_of(path) for name, path in find_files(folder).items()}}

    def embed(self, cells: UInt8Array) -> list[Tensor]:
        """float32 [e] of each cell, of unit length."""
        return list(self._model.embed(cells))

    def compare(self, embedded: Sequence[Tensor], item: Item) -> list[float]:
        """1 - cosine of each pair: first with second, first with third, and so on."""
        cosines = [one @ other for one, other in combinations(embedded, 2)]
        distances: list[float] = (1 - torch.stack(cosines)).tolist() if cosines else []
        return distances

    def about(self) -> Mapping[str, Any]:
        """Hashes of the files of DreamSim."""
        return self._about
