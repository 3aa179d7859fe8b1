"""Two style descriptors: how near each cell of a grid is to the references of its prompt's style."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from configs.errors import DataError
from rewards.benchmarks.protocol import Item
from rewards.benchmarks.provenance import weights_of
from rewards.loading import load_model, model_errors
from rewards.loading.csd import load_csd
from rewards.loading.pretrained import fetch_file
from rewards.pictures import Preprocessing
from rollout.records import UInt8Array


class StyleModel:
    """CSD in float32 and OneIG's style encoder in bfloat16, as the official script has them."""

    found_as = "cells"

    def __init__(self, csd: str, style_encoder: str, references: tuple[Path, Path], device: str) -> None:
        """references: files of unit embeddings by style, of CSD and of the encoder. Raises ModelError, DataError."""
        with model_errors("oneig_style", csd):
            self._csd = load_csd(fetch_file(csd), device)
        with model_errors("oneig_style", style_encoder):
            self._encoder = load_model(CLIPVisionModelWithProjection, style_encoder, "bfloat16", device)
        self._references = dict(zip(("csd", "se"), map(read_references, references), strict=True))
        self._prepare = {
            name: Preprocessing.of(
                CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
            )
            for name, side in (("csd", self._csd.config.image_size), ("se", self._encoder.config.image_size))
        }
        self._about = {"csd": dict(weights_of(csd)), "style_encoder": dict(weights_of(style_encoder))}

    @torch.inference_mode()
    def embed(self, cells: UInt8Array) -> list[tuple[Tensor, Tensor]]:
        """Unit embeddings of each cell: CSD's [e] and the encoder's [e']."""
        found = []
        for name, model in (("csd", self._csd), ("se", self._encoder)):
            pixels = self._prepare[name](cells, model.device).to(model.dtype)
            found.append(functional.normalize(model(pixel_values=pixels).image_embeds, dim=-1))
        return list(zip(*found, strict=True))

    def compare(self, embedded: Sequence[Any], item: Item) -> list[dict[str, float]]:
        """The cosines of each cell with the nearest reference of its prompt's style, by descriptor."""
        nearest: dict[str, list[float]] = {}
        for name, own in zip(("csd", "se"), zip(*embedded, strict=True), strict=True):
            references = self._references[name].get(item.tag)
            if references is None:
                raise DataError(f"the references of {name} have no style {item.tag}")
            cells = torch.stack(own)
            nearest[name] = (cells @ references.to(cells).T).amax(dim=1).float().tolist()
        return [{"csd": csd, "se": se} for csd, se in zip(nearest["csd"], nearest["se"], strict=True)]

    def about(self) -> Mapping[str, Any]:
        """Hashes of both models."""
        return self._about


def read_references(path: Path) -> Mapping[str, Tensor]:
    """Style -> unit embeddings [N, e]. Only tensors are unpickled. Raises DataError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(one, Tensor) and one.ndim == 2 for one in content.values()):
        raise DataError(f"{path} holds no embeddings by style")
    return content
