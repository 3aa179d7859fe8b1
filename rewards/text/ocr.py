"""OCR: does the picture hold the words that its prompt puts in quotes, and not much else to read?

    prompt  a shop sign that says "OPEN LATE"  ─► targets: OPEN LATE
    picture ─► PP-OCRv6: find lines, read them ─► words: OPEN, IATE ─► (1 - distance / length) x (1 - surplus)

Spaces, case and how accents are encoded do not count. The distance is the number of letters to insert, delete or
replace to make the target of the run of neighbouring words that is closest to it; it is 0 for a target that stands
whole in the text, if it is long enough not to stand there by chance; it is at most the target's length. Letters beyond
the targets are free up to the length of a second sign, and from there take the score down to 0: or else the easiest way
to be paid would be to fill the picture with letters. Flow-GRPO (arXiv 2505.05470) takes the distance to all of the text
unless that contains the target.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from configs.errors import ConfigError
from rollout.records import Prompt, Score, UInt8Array

FREE_LETTERS = 16
"""A second sign may be as long as the targets, and at least as long as this."""
SURELY_MEANT = 4
"""Letters of a target from which it counts where it stands whole between other letters."""
_QUOTED = re.compile(
    r"""
      (?<!\w)"([^"]*)"                                     # not after a digit: 7" is seven inches
    | “([^“”]*)” | „([^„“”]*)[“”] | «([^«»]*)» | »([^«»]*)« | ‹([^‹›]*)› | 「([^「」]*)」 | 『([^『』]*)』
    | (?<!\w)['‘](?!\d\ds\b)(?=\S)                        # not before a decade: the '90s
      ((?:[^'’‘]|(?<=\w)['’](?=\w))*?) (?<=\S)['’](?!\w)  # an apostrophe stands within a word
    """,
    re.VERBOSE,
)
_AND = "n"
"""What rock 'n' roll puts between two apostrophes."""


class OcrReward:
    """Share of the quoted letters that the picture shows, mean over the quotes of a prompt, less for surplus, 0 to 1.

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

    @staticmethod
    def applies_to(prompt: Prompt, options: Mapping[str, Any]) -> bool:
        """Whether the prompt says what is to be read."""
        return bool(wanted_texts(prompt))

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        """Accuracy for each picture; pictures uint8 [B, height, width, 3]. Parts: the lines read.

        Not applicable to a prompt without quoted words.
        """
        return [self._score_one(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]

    def _score_one(self, picture: UInt8Array, prompt: Prompt) -> Score:
        targets = wanted_texts(prompt)
        if not targets:
            return Score(None)
        # The models were trained on OpenCV's order of channels.
        lines = list(self._read(np.ascontiguousarray(picture[:, :, ::-1])).txts or ())
        value = score_lines(targets, lines)
        return Score(value, parts={"read": lines, "wanted": targets})


def wanted_texts(prompt: Prompt) -> list[str]:
    """What is to be read: `ocr_text` of the prompt's metadata, one text or several, or else what it has in quotes."""
    stated = prompt.metadata.get("ocr_text")
    if stated is None:
        return quoted_texts(prompt.text)
    texts = stated if isinstance(stated, list) else [stated]
    return [text for text in map(str, texts) if _letters(text)]


def quoted_texts(prompt: str) -> list[str]:
    """What stands in quotes, in order: double, single, curly, „low“, «angled» or 「cornered」.

    An apostrophe is no quote, and neither are the signs of feet and inches.
    """
    found = ("".join(group or "" for group in groups).strip() for groups in _QUOTED.findall(prompt))
    return [text for text in found if _letters(text) and text != _AND]


def score_lines(targets: Sequence[str], lines: Sequence[str]) -> float:
    """Mean accuracy of the targets in the lines read, less the surplus, 0 to 1; see the top of this file."""
    num_wanted = sum(len(_letters(target)) for target in targets)
    num_read = sum(len(_letters(line)) for line in lines)
    second_sign = max(num_wanted, FREE_LETTERS)
    surplus = max(0, num_read - num_wanted - second_sign) / second_sign
    accuracies = [text_accuracy(target, lines) for target in targets]
    return sum(accuracies) / len(accuracies) * max(0.0, 1 - surplus)


def text_accuracy(target: str, lines: Sequence[str]) -> float:
    """1 - distance / length of the target to the closest run of words of the lines, 0 to 1."""
    wanted = _letters(target)
    words = [letters for line in lines for word in line.split() if (letters := _letters(word))]
    sure = len(wanted) >= SURELY_MEANT or not wanted.isascii()
    if sure and wanted in "".join(words):
        return 1.0
    distance = min((_distance_from(wanted, words[start:]) for start in range(len(words))), default=len(wanted))
    return 1 - min(distance, len(wanted)) / len(wanted)


def _distance_from(wanted: str, words: Sequence[str]) -> int:
    """Least number of edits from `wanted` to the first word, the first two, and so on."""
    text, ends = "", []
    for word in words:
        text += word
        ends.append(len(text))
        if len(text) >= 2 * len(wanted):
            break  # a longer run costs the whole target in surplus letters alone
    steps = np.arange(len(text) + 1)
    # distances[j]: from the first letters of `wanted` to the first j of the text.
    distances = steps
    for i, letter in enumerate(wanted, start=1):
        replaced = distances[:-1] + [letter != other for other in text]
        best = np.concatenate([[i], np.minimum(replaced, distances[1:] + 1)])
        # A letter of the text too many costs 1 each: the running minimum of best[k] + (j - k) over k <= j.
        distances = np.minimum.accumulate(best - steps) + steps
    return int(distances[ends].min())


def _letters(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


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
