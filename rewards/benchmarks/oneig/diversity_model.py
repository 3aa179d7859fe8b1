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
from rewards.loading.dreamsim import DreamSim
from rollout.records import UInt8Array


class DiversityModel:
    """DreamSim's ensemble in float32, as the official script has it. Raises ModelError when it cannot be loaded."""

    found_as = "distances"

    def __init__(self, files: Mapping[str, Path], device: str) -> None:
        """files: see `DreamSim`."""
        with model_errors("oneig_diversity", str(files["dino"].parent)):
            self._model = DreamSim(files, device)
        self._about = {"dreamsim": {path.name: sha256_of(path) for path in files.values()}}

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
