"""The project's documents as the tests read them: fenced blocks and inline code, each with its place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "ARCHITECTURE.md", "BENCHMARKS.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
"""What is true today. The changelog tells of other days, so only its links are checked."""

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>```+)(?P<info>[^`\n]*)\n(?P<body>.*?)^(?P=indent)(?P=ticks) *$", re.S | re.M
)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True, slots=True)
class Example:
    """Something in a document that a reader may copy."""

    place: str
    """`docs/data.md:12`."""
    language: str
    """Of a fenced block; empty for inline code."""
    text: str

    def __str__(self) -> str:
        return self.place


def blocks(path: Path) -> Iterator[Example]:
    """The fenced blocks of a document."""
    text = path.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        language = match["info"].strip().partition(" ")[0]
        yield Example(_place(path, text, match.start()), language, match["body"])


def spans(path: Path) -> Iterator[Example]:
    """The inline code of a document, outside of fenced blocks."""
    text = path.read_text(encoding="utf-8")
    prose = _FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    for match in _SPAN.finditer(prose):
        yield Example(_place(path, prose, match.start()), "", match[1])


def all_blocks(*languages: str) -> list[Example]:
    """The fenced blocks of all documents in one of these languages."""
    return [block for path in DOCUMENTS for block in blocks(path) if block.language in languages]


def all_spans() -> list[Example]:
    """The inline code of all documents."""
    return [span for path in DOCUMENTS for span in spans(path)]


def _place(path: Path, text: str, offset: int) -> str:
    return f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, offset) + 1}"
