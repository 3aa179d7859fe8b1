"""Two style descriptors: how near each cell of a grid is to the references of its prompt's style."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from configs.errors import DataError, RewardError
from rewards.benchmarks.encoding import split_grid
from rewards.benchmarks.oneig.scorer import as_jpeg
from rewards.benchmarks.pictures import open_picture
from rewards.benchmarks.protocol import Answer, Asked
from rewards.benchmarks.provenance import weights_of
from rewards.loading import load_model, model_errors
from rewards.loading.csd import load_csd
from rewards.loading.pretrained import fetch_file
from rewards.pictures import Preprocessing


class StyleScorer:
    """CSD in float32 and OneIG's style encoder in bfloat16, as the official script has them."""

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

    def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Answer | RewardError]]:
        """{"cells": the cosines with the nearest reference, by descriptor; "num_black": the others}."""
        for one in asked:
            picture = open_picture(one)
            if isinstance(picture, RewardError):
                yield one, picture
                continue
            cells = split_grid(picture)
            drawn = [np.asarray(Image.open(as_jpeg(cell))) for cell in cells if cell.any()]
            found = self._cosines(np.stack(drawn), one.item.tag) if drawn else []
            yield one, {"cells": found, "num_black": len(cells) - len(drawn)}

    @torch.inference_mode()
    def _cosines(self, cells: Any, style: str) -> list[dict[str, float]]:
        """cells: uint8 [B, height, width, 3]."""
        nearest: dict[str, list[float]] = {}
        for name, model in (("csd", self._csd), ("se", self._encoder)):
            pixels = self._prepare[name](cells, model.device).to(model.dtype)
            embedded = functional.normalize(model(pixel_values=pixels).image_embeds, dim=-1)
            references = self._references[name].get(style)
            if references is None:
                raise DataError(f"the references of {name} have no style {style}")
            nearest[name] = (embedded @ references.to(embedded).T).amax(dim=1).float().tolist()
        return [{"csd": csd, "se": se} for csd, se in zip(nearest["csd"], nearest["se"], strict=True)]

    def about(self) -> Mapping[str, Any]:
        """Hashes of both models."""
        return self._about

    def close(self) -> None:
        """Its models go with it."""


def read_references(path: Path) -> Mapping[str, Tensor]:
    """Style -> unit embeddings [N, e]. Only tensors are unpickled. Raises DataError."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(one, Tensor) and one.ndim == 2 for one in content.values()):
        raise DataError(f"{path} holds no embeddings by style")
    return content
