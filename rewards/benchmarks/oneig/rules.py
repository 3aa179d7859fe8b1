"""OneIG-Bench's arithmetic, of answers to questions and of transcribed text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

MAX_EDITS: Final = 100
YES: Final = "Yes"
STOCK_REPLIES: Final = ("addCriterion", "No text recognized.")
"""Left out of a transcription; the second one with its full stop only."""
_ACCENTS: Final = "àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"
_LEFT_OUT: Final = re.compile(rf"[^\u4e00-\u9fa5a-zA-Z0-9\s{_ACCENTS}]")
_CHINESE: Final = re.compile("[\u4e00-\u9fff]")


def cell_score(replies: Mapping[int, str], parents: Mapping[int, Sequence[int]]) -> float:
    """The share of questions whose answer is exactly "Yes", and the answers to those that they depend on, too.

    Parents are looked at as they were answered, and not as they were scored: a grandparent's No costs its child alone.
    """
    is_yes = {number: reply == YES for number, reply in replies.items()}
    held = [
        yes and all(is_yes.get(parent, True) for parent in parents.get(number, ())) for number, yes in is_yes.items()
    ]
    return sum(held) / len(held)


def clean_text(text: str) -> str:
    """Letters, digits, some accents and single blanks; without blanks where it is Chinese."""
    kept = _LEFT_OUT.sub("", text)
    return re.sub(r"\s+", "" if _CHINESE.search(kept) else " ", kept).strip()


def clean_reply(reply: str) -> str:
    """A transcription without the stock replies."""
    for stock in STOCK_REPLIES:
        reply = reply.replace(stock, "")
    return clean_text(reply)


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        above, row[0] = row[0], i
        for j, letter_of_other in enumerate(other, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (letter != letter_of_other))
    return row[-1]


@dataclass(frozen=True, slots=True)
class Written:
    """How one text was written, or several together."""

    edits: float
    complete: float
    matched_words: float
    words: float
    cells: float = 1.0

    def __add__(self, other: Written) -> Written:
        pairs = zip(self.parts, other.parts, strict=True)
        return Written(*(one + another for one, another in pairs))

    @property
    def parts(self) -> tuple[float, float, float, float, float]:
        """All numbers, in their order."""
        return self.edits, self.complete, self.matched_words, self.words, self.cells


NOTHING: Final = Written(0.0, 0.0, 0.0, 0.0, 0.0)


def compare_text(wanted: str, reply: str) -> Written:
    """A transcription against the text that was asked for."""
    wanted, written = clean_text(wanted), clean_reply(reply)
    edits = edit_distance(written, wanted)
    words, found = Counter(wanted.split()), Counter(written.split())
    return Written(edits, float(edits == 0), float((words & found).total()), float(words.total()))
