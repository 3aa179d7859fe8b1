"""The caption that a detector reads, and which of its tokens speak for which noun.

nouns  ─► caption "a cat. a dog."  ─► tokens
                   └───┘  └───┘
                   a span of each phrase
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Phrase:
    """A noun in a caption."""

    name: str
    """What its boxes are filed under; two phrases may share a name, and then their boxes are filed together."""
    spans: tuple[tuple[int, int], ...]
    """From, up to: the characters of the caption whose tokens are averaged into the confidence of a box."""


@dataclass(frozen=True, slots=True)
class Caption:
    """What a detector is asked to find in one picture."""

    text: str
    phrases: tuple[Phrase, ...]


def caption_of(nouns: Sequence[str]) -> Caption:
    """The caption "a. b." of nouns that hold no full stop, each with all its characters as its span."""
    phrases, start = [], 0
    for noun in nouns:
        phrases.append(Phrase(noun, ((start, start + len(noun)),)))
        start += len(noun) + len(". ")
    return Caption(". ".join(nouns) + ".", tuple(phrases))


def phrase_tokens(encoding: Any, row: int, phrase: Phrase) -> list[int]:
    """Positions of the tokens of a phrase, in order, in a row of a fast tokenizer's encoding.

    Empty when the tokenizer makes none of it, as of a text of control characters.
    """
    places = (encoding.char_to_token(row, at) for span in phrase.spans for at in range(*span))
    return sorted({place for place in places if place is not None})
