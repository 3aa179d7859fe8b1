"""DPG-Bench's scorer: each cell of a picture is asked all questions of its prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image

from configs.errors import RewardError
from rewards.benchmarks.dpg.mplug import load_mplug
from rewards.benchmarks.encoding import split_grid
from rewards.benchmarks.pictures import open_picture
from rewards.benchmarks.protocol import Answer, Asked
from rewards.benchmarks.provenance import weights_of
from rewards.loading import model_errors
from rewards.pictures import Preprocessing

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)


class DPGScorer:
    """mPLUG-large in float32, as the official script runs it. Raises ModelError when it cannot be loaded."""

    def __init__(self, model: str, device: str, batch_size: int) -> None:
        """batch_size: questions at once."""
        with model_errors("dpg", model):
            self._model = load_mplug(Path(model), device)
        self._device, self._batch_size = device, batch_size
        side = self._model.image_size
        self._prepare = Preprocessing(lambda height, width: (side, side), Image.Resampling.BICUBIC, CLIP_MEAN, CLIP_STD)
        self._about = {"mplug": dict(weights_of(model)), "dtype": "float32"}

    def answers(self, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Answer | RewardError]]:
        """{"cells": the answers to the questions in their order, for each cell}."""
        for one in asked:
            picture = open_picture(one)
            if isinstance(picture, RewardError):
                yield one, picture
                continue
            with torch.inference_mode():
                seen = torch.cat(
                    [self._model.see(self._prepare(cell[None], self._device)) for cell in split_grid(picture)]
                )
            questions = [question.text for question in one.item.record["questions"]]
            pairs = [(cell, text) for cell in range(len(seen)) for text in questions]
            replies: list[str] = []
            for start in range(0, len(pairs), self._batch_size):
                part = pairs[start : start + self._batch_size]
                replies += self._model.answer(
                    seen[torch.tensor([cell for cell, _ in part])], [text for _, text in part]
                )
            num = len(questions)
            yield one, {"cells": [replies[cell * num : (cell + 1) * num] for cell in range(len(seen))]}

    def about(self) -> Mapping[str, Any]:
        """The hash of the weights."""
        return self._about

    def close(self) -> None:
        """Its model goes with it."""
