"""OCR: does the picture hold the words that its prompt puts in quotes?

    prompt  a shop sign that says "OPEN LATE"  ─► targets: openlate
    picture ─► PP-OCRv6: find lines, read them ─► text: openiate       ─► 1 - distance / length = 1 - 1 / 8

Spaces and case do not count. The distance is the number of letters to insert, delete or replace to make the target of
that stretch of the text which is closest to it, so that further words in the picture cost nothing; it is at most the
target's length. Flow-GRPO (arXiv 2505.05470) takes the distance to all of the text unless that contains the target.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.errors import ConfigError
from rewards.pictures import check_pictures
from rollout.records import Prompt, Score, UInt8Array

_QUOTED = re.compile(r"\"([^\"]*)\"|“([^”]*)”|(?<!\w)['‘]([^'’]*)['’](?!\w)")


class OcrReward:
    """Share of the quoted letters that the picture shows, mean over the quotes of a prompt, 0 to 1.

    Runs on CPU, with the weights that the package rapidocr carries (PP-OCRv6 small, Apache-2.0). min_confidence: lines
    read with less do not count. num_threads: of one picture.
    Raises ConfigError when the package is missing, and for a GPU.
    """

    def __init__(self, device: str, min_confidence: float = 0.5, num_threads: int = 1) -> None:
        if device != "cpu":
            raise ConfigError("rewards[].gpus_per_replica of ocr is above 0, but it runs on CPU only; set it to 0")
        if not 0 <= min_confidence <= 1:
            raise ConfigError(f"rewards[].options.min_confidence of ocr is {min_confidence}; set it between 0 and 1")
        self._read = _load_reader(min_confidence, num_threads)

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        """Accuracy for each picture; pictures uint8 [B, height, width, 3]. Parts: the lines read.

        Not applicable to a prompt without quoted words.
        """
        check_pictures(pictures, prompts)
        return [self._score_one(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]

    def _score_one(self, picture: UInt8Array, prompt: Prompt) -> Score:
        targets = quoted_texts(prompt.text)
        if not targets:
            return Score(None)
        # The models were trained on OpenCV's order of channels.
        lines = list(self._read(np.ascontiguousarray(picture[:, :, ::-1])).txts or ())
        text = "".join(lines)
        accuracies = [text_accuracy(target, text) for target in targets]
        return Score(sum(accuracies) / len(accuracies), parts={"read": lines, "wanted": targets})


def quoted_texts(prompt: str) -> list[str]:
    """What stands in double, curly or single quotes, in order; an apostrophe is no quote."""
    found = ("".join(groups).strip() for groups in _QUOTED.findall(prompt))
    return [text for text in found if _letters(text)]


def text_accuracy(target: str, text: str) -> float:
    """1 - distance / length of the target to the closest stretch of the text, 0 to 1; see the top of this file."""
    wanted, given = _letters(target), _letters(text)
    # distances[j]: of the first letters of `wanted` to the closest stretch of `given` that ends before letter j.
    distances = np.zeros(len(given) + 1, dtype=np.int64)
    steps = np.arange(len(given) + 1)
    for i, letter in enumerate(wanted, start=1):
        replaced = distances[:-1] + [letter != other for other in given]
        best = np.concatenate([[i], np.minimum(replaced, distances[1:] + 1)])
        # A letter of the text too many costs 1 each: the running minimum of best[k] + (j - k) over k <= j.
        distances = np.minimum.accumulate(best - steps) + steps
    return 1 - int(distances.min()) / len(wanted)


def _letters(text: str) -> str:
    return "".join(text.casefold().split())


def _load_reader(min_confidence: float, num_threads: int) -> Any:
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ConfigError(
            f"reward 'ocr' needs packages that are not installed ({error}); install them with: "
            "pip install 'bicot[rewards]'"
        ) from error
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.text_score": min_confidence,
            "EngineConfig.onnxruntime.intra_op_num_threads": num_threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
