"""T2I-CompBench++'s numeracy: is each kind of object there, and as often as the prompt says?

A kind counts 1 / kinds: half of it for being there, half for the right number. (Huang et al. 2025, T2I-CompBench++.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from configs.errors import DataError
from rewards.benchmarks.compbench.language import Word, spaceless
from rewards.benchmarks.compbench.spatial import PERSONS, Box, Found

ONES: Final = frozenset({"a", "an", "one"})
NUMBERS: Final[Mapping[str, int]] = {
    **dict.fromkeys(ONES, 1),
    **{word: number for number, word in enumerate(("two", "three", "four", "five", "six", "seven", "eight"), start=2)},
}
ALIASES: Final[Mapping[str, str]] = {
    **dict.fromkeys(PERSONS, "person"),
    "ship": "boat",
    "telivision": "tv",  # as the official list of objects spells it
    "goldfish": "fish",
    "painting": "picture",
}
SAME_OBJECT: Final = 0.9
SEPARATOR: Final = " - "


class Nouns:
    """The official list of objects, one a line: "singular - plural"."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for a file of another form."""
        self._singular_of: dict[str, str] = {}
        self._singular: set[str] = set()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            singular, _, plural = (part.strip().lower() for part in line.partition(SEPARATOR))
            if not (singular and plural):
                raise DataError(f"{path}:{number}: 'singular{SEPARATOR}plural' is expected, not '{line[:80]}'")
            self._singular.add(singular)
            self._singular_of.setdefault(plural, singular)

    def wanted(self, words: Sequence[Word]) -> list[tuple[str, int]]:
        """Singular nouns of a prompt with their numbers, in its order.

        A noun has two words or one, and stands right behind its number.
        """
        texts = [spaceless(word) for word in words]
        found = []
        for index, text in enumerate(texts[:-1]):
            if text not in NUMBERS:
                continue
            two = " ".join(texts[index + 1 : index + 3]) if index < len(texts) - 2 else ""
            noun = next((name for name in (two, texts[index + 1]) if self._knows(name)), None)
            if noun is not None:
                found.append(self._read(noun, text))
        return found

    def _knows(self, name: str) -> bool:
        return name in self._singular or name in self._singular_of

    def _read(self, noun: str, number: str) -> tuple[str, int]:
        is_plural = noun in self._singular_of and (number not in ONES or noun not in self._singular)
        return self._singular_of[noun] if is_plural else noun, NUMBERS[number]


def merged(objects: Sequence[Found]) -> list[str]:
    """The labels of the objects, without those that a surer one of their label covers, or that cover it."""
    kept: list[Found] = []
    for one in objects:
        if not any(one["label"] == other["label"] and _is_same(one["box"], other["box"]) for other in kept):
            kept.append(one)
    return [str(one["label"]) for one in kept]


def _is_same(first: Box, second: Box) -> bool:
    """Sides are counted in whole pixels, both ends included."""
    sides = [min(first[axis + 2], second[axis + 2]) - max(first[axis], second[axis]) + 1 for axis in (0, 1)]
    shared = max(0, sides[0]) * max(0, sides[1])
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (first, second)]
    return any(shared / whole > SAME_OBJECT for whole in (sum(areas) - shared, *areas))


def numeracy_score(wanted: Sequence[tuple[str, int]] | Sequence[Sequence[Any]], objects: Sequence[Found]) -> float:
    """The official score of a picture; objects: the surest first.

    Labels that hold a noun are taken for it where none is the noun itself, and stay so for the nouns that follow.
    """
    labels = merged(objects)
    score = 0.0
    for noun, number in wanted:
        name = ALIASES.get(noun, noun)
        if name not in labels:
            labels = [name if name in label else label for label in labels]
        found = labels.count(name)
        score += (0.5 / len(wanted)) * ((found > 0) + (found == number))
    return score
