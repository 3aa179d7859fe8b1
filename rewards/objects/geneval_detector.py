"""GenEval's eyes: Mask2Former finds objects with their masks, and CLIP names the colour of each.

    picture ─► short side to 800 ─► Mask2Former ─► 100 surest (query, class) ─► masks at the picture's own size
                                                     score = P(class) x mean sigmoid over the mask
    object ─► all but its mask gray, cut to its box ─► CLIP ─► nearest of ten colours, three templates each

Pre- and post-processing are those of GenEval's detector (mmdetection), and not transformers' defaults, which work at
384 pixels, drop what scores below 0.5 and give no boxes. The weights differ by default: the hub's copy for transformers
is Meta's own training, GenEval's file is mmdetection's; scores near the thresholds differ between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPModel, Mask2FormerForUniversalSegmentation
from transformers.image_transforms import get_size_with_aspect_ratio

from rewards.loading import load_model, load_tokenizer
from rewards.loading.clip_embedder import normalize
from rewards.loading.mmdet_mask2former import load_mmdet_mask2former
from rewards.loading.pretrained import fetch_file
from rewards.objects.coco import CLASS_NAMES
from rewards.objects.geneval import COLORS, FoundObject
from rewards.objects.passes import passes
from rewards.pictures import Preprocessing
from rewards.pictures.preprocessing import normalize_pixels
from rewards.pictures.resize import resize_as_opencv
from rollout.records import UInt8Array

MAX_ASPECT = 1333 / 800
"""Of a picture, beyond which its short side is enlarged less."""
PAD_TO = 32
MEAN = tuple(value / 255 for value in (123.675, 116.28, 103.53))
STD = tuple(value / 255 for value in (58.395, 57.12, 57.375))
MAX_PER_PICTURE = 100
WEIGHT_FILES = (".pth", ".pt")
OUTSIDE = (0x99, 0x99, 0x99)
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


class ObjectDetector:
    """Mask2Former on COCO's classes.

    model: hub id or folder of Mask2FormerForUniversalSegmentation, or a .pth file of mmdetection's, such as GenEval's
    own; short_side: pixels to which pictures are enlarged.
    """

    def __init__(self, model: str, dtype: str, device: str, short_side: int) -> None:
        if model.endswith(WEIGHT_FILES):
            self._model = load_mmdet_mask2former(fetch_file(model), dtype, device)
        else:
            self._model = load_model(Mask2FormerForUniversalSegmentation, model, dtype, device)
        labels = self._model.config.id2label
        # Published copies name COCO's classes in several ways; their order is one.
        self.names = CLASS_NAMES if len(labels) == len(CLASS_NAMES) else tuple(labels[i] for i in range(len(labels)))
        self._size_of = partial(get_size_with_aspect_ratio, size=short_side, max_size=round(short_side * MAX_ASPECT))

    @torch.inference_mode()
    def __call__(self, pictures: UInt8Array) -> list[dict[str, list[FoundObject]]]:
        """Class -> the objects found, for each picture, uint8 [B, height, width, 3]."""
        return [
            found
            for some in passes(len(pictures), self._model.device)
            for found in self.see_in_one_pass(pictures[some])
        ]

    @torch.inference_mode()
    def see_in_one_pass(self, pictures: UInt8Array) -> list[dict[str, list[FoundObject]]]:
        """The same, with all of them in one pass of the model."""
        pixels = torch.tensor(pictures).to(self._model.device)
        size = self._size_of(tuple(pixels.shape[1:3]))
        seen = normalize_pixels(resize_as_opencv(pixels, size), MEAN, STD)
        padding = [-length % PAD_TO for length in size]
        padded = functional.pad(seen, (0, padding[1], 0, padding[0]))
        outputs = self._model(
            pixel_values=padded.to(self._model.dtype),
            pixel_mask=functional.pad(
                torch.ones(len(seen), *size, device=seen.device), (0, padding[1], 0, padding[0])
            ).long(),
        )
        return [
            self._objects(classes.float(), masks.float(), tuple(padded.shape[2:]), size, pictures.shape[1:3])
            for classes, masks in zip(outputs.class_queries_logits, outputs.masks_queries_logits, strict=True)
        ]

    def _objects(
        self, class_logits: Tensor, mask_logits: Tensor, padded: Any, size: Any, original: Any
    ) -> dict[str, list[FoundObject]]:
        """Of one picture: class_logits [queries, classes + 1], mask_logits [queries, rows, columns]."""
        probabilities = torch.softmax(class_logits, dim=-1)[:, :-1].flatten()
        surest = probabilities.topk(min(MAX_PER_PICTURE, len(probabilities)))
        # Several classes of one query share its mask.
        queries, places = torch.unique(surest.indices // len(self.names), return_inverse=True)
        logits = _resize_masks(mask_logits[queries], padded)[:, : size[0], : size[1]]
        logits = _resize_masks(logits, tuple(original))
        masks = logits > 0
        confidences = (logits.sigmoid() * masks).sum(dim=(1, 2)) / (masks.sum(dim=(1, 2)) + 1e-6)
        boxes, bits = _tight_boxes(masks), masks.cpu().numpy()
        scores = (surest.values * confidences[places]).tolist()
        found: dict[str, list[FoundObject]] = {}
        for score, index, place in zip(scores, surest.indices.tolist(), places.tolist(), strict=True):
            name = self.names[index % len(self.names)]
            found.setdefault(name, []).append(FoundObject(boxes[place], score, bits[place]))
        return found


def _resize_masks(logits: Tensor, size: Any) -> Tensor:
    return functional.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def _tight_boxes(masks: Tensor) -> list[tuple[float, float, float, float]]:
    """x0, y0, and one beyond x1, y1 of each of bool [N, height, width]; zeros of an empty mask."""
    bounds = []
    for held in (masks.any(dim=1), masks.any(dim=2)):  # columns, rows
        first = held.int().argmax(dim=1)
        beyond = held.shape[1] - held.flip(1).int().argmax(dim=1)
        bounds.append((first, torch.where(held.any(dim=1), beyond, 0)))
    (x0, x1), (y0, y1) = bounds
    boxes = torch.stack([x0, y0, x1, y1], dim=1).tolist()
    return [(float(a), float(b), float(c), float(d)) for a, b, c, d in boxes]


class ColorNamer:
    """CLIP as a classifier of colours. model: hub id or folder of CLIPModel, with tokenizer and image processor."""

    def __init__(self, model: str, dtype: str, device: str) -> None:
        self._clip = load_model(CLIPModel, model, dtype, device)
        self._tokenizer = load_tokenizer(model)
        self._prepare = Preprocessing.of(CLIPImageProcessorPil.from_pretrained(model))
        self._classifiers: dict[str, Tensor] = {}

    @torch.inference_mode()
    def __call__(self, picture: UInt8Array, name: str, objects: Sequence[FoundObject]) -> list[str]:
        """The colour, one of COLORS, of each of some objects of a class in a picture, uint8 [height, width, 3]."""
        crops = [self._prepare(_cut_out(picture, item)[None], self._clip.device) for item in objects]
        embedded = self._clip.get_image_features(torch.cat(crops).to(self._clip.dtype)).pooler_output
        nearest = (normalize(embedded) @ self._classifier(name).T).argmax(dim=-1)
        return [COLORS[index] for index in nearest.tolist()]

    def _classifier(self, name: str) -> Tensor:
        """Unit embeddings, float32 [colours, e]: of each colour the mean over the templates."""
        if name not in self._classifiers:
            texts = [template.format(color=color, name=name) for color in COLORS for template in TEMPLATES]
            token_ids = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids
            embedded = normalize(self._clip.get_text_features(token_ids.to(self._clip.device)).pooler_output)
            self._classifiers[name] = normalize(embedded.view(len(COLORS), len(TEMPLATES), -1).mean(dim=1))
        return self._classifiers[name]


def _cut_out(picture: UInt8Array, item: FoundObject) -> UInt8Array:
    """The box of an object, uint8, with gray where it is not; a pixel of gray for an empty one."""
    assert item.mask is not None
    image = Image.fromarray(np.where(item.mask[:, :, None], picture, np.array(OUTSIDE, dtype=np.uint8)))
    x0, y0, x1, y1 = item.box
    return np.asarray(image.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))))
