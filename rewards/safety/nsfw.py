"""A guard: how sure one may be that a picture is fit to be seen at work, whatever its prompt; 1 is safe.

    picture ─► ViT classifier ─► softmax over its labels ─► 1 - the probability of the unsafe ones

Meant as one reward among others with a weight of its own, so that a policy cannot gain by what nobody asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import ViTForImageClassification, ViTImageProcessorPil

from configs.errors import ConfigError
from rewards.loading import load_model, model_errors, resolve_dtype
from rewards.pictures import Preprocessing
from rollout.records import Prompt, Score, UInt8Array

DEFAULT_MODEL = "Falconsai/nsfw_image_detection"
GPU_DTYPE = "tf32"
"""A small model: there is nothing to gain."""


class NsfwReward:
    """1 - P(unsafe) of each picture, 0 to 1; the prompt is not read.

    model: hub id or folder of transformers' ViTForImageClassification with its image processor. unsafe_labels: those
    of its labels that are unsafe.
    Raises ModelError when the model cannot be loaded, ConfigError for a label that it does not have.
    """

    def __init__(
        self,
        device: str,
        model: str = DEFAULT_MODEL,
        dtype: str = "auto",
        unsafe_labels: Sequence[str] = ("nsfw",),
    ) -> None:
        dtype = resolve_dtype(dtype, device, GPU_DTYPE)
        with model_errors("nsfw", model):
            classifier = load_model(ViTForImageClassification, model, dtype, device)
            self._prepare = Preprocessing.of(ViTImageProcessorPil.from_pretrained(model))
        self._classifier: ViTForImageClassification = classifier
        labels = {label: int(index) for index, label in classifier.config.id2label.items()}
        unknown = [label for label in unsafe_labels if label not in labels]
        if unknown or not unsafe_labels:
            raise ConfigError(
                f"rewards[].options.unsafe_labels of nsfw is {list(unsafe_labels)}; "
                f"choose from {model}'s {sorted(labels)}"
            )
        self._unsafe = [labels[label] for label in unsafe_labels]
        self._labels = {index: label for label, index in labels.items()}

    def prepare(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> Tensor:
        """Pixels as the model takes them, on its device: what can be done while the batch before is scored."""
        return self._prepare(pictures, self._classifier.device)

    @torch.inference_mode()
    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt], prepared: Tensor | None = None) -> list[Score]:
        """1 - P(unsafe) for each picture; pictures uint8 [B, height, width, 3]. Parts: the likeliest label."""
        pixels = self.prepare(pictures, prompts) if prepared is None else prepared
        logits = self._classifier(pixel_values=pixels.to(self._classifier.dtype)).logits
        probabilities = torch.softmax(logits.float(), dim=-1)
        safe = 1 - probabilities[:, self._unsafe].sum(dim=-1)
        return [
            Score(value, parts={"looks": self._labels[label]})
            for value, label in zip(safe.tolist(), probabilities.argmax(dim=-1).tolist(), strict=True)
        ]
