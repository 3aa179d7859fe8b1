"""Texts on pictures: fonts that show every character or say what it is, and lines of a width.

character ─► DejaVu Sans has it ─► a font of this machine has it ─► told: :parrot:, \\u732b
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont


class Lettering:
    """DejaVu Sans, which comes with matplotlib: unlike Pillow's own font it is more than Latin, and has a bold cut.

    A character that it lacks is taken from a font of this machine that has it; where none has, an emoji is told by its
    name and any other character by its number, as in JSON: a box says nothing.
    """

    def __init__(self, size: int, bold: bool) -> None:
        from matplotlib import get_data_path

        self._size = size
        self._own = Path(get_data_path()) / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
        self._ascent = _font(self._own, size).getmetrics()[0]

    def readable(self, text: str) -> str:
        """The text, with what no font can show in words or numbers."""
        return "".join(char if self._path_of(char) is not None else _told(char) for char in text)

    def getlength(self, text: str) -> float:
        """Its width in pixels."""
        return sum(font.getlength(part) for font, part in self._parts(text))

    def write(self, draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, color: str) -> None:
        left: float = corner[0]
        for font, part in self._parts(text):
            draw.text((left, corner[1] + self._ascent), part, font=font, fill=color, anchor="ls")
            left += font.getlength(part)

    def _parts(self, text: str) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
        for path, part in groupby(text, self._path_of):
            yield _font(path or self._own, self._size), "".join(part)

    def _path_of(self, char: str) -> Path | None:
        return self._own if ord(char) in _glyphs_of(self._own) else _glyphs_of_machine().get(ord(char))


def wrap(text: str, font: Lettering, width: int, max_lines: int) -> tuple[str, ...]:
    """Break a text into lines of at most `width` pixels; a word that is too long is broken, and what
    is beyond `max_lines` is replaced by an ellipsis."""
    lines: list[str] = []
    line = ""
    for word in font.readable(" ".join(text.split())).split(" "):
        joined = f"{line} {word}".strip()
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width:
            cut = _num_characters_that_fit(word, font, width)
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    if line:
        lines.append(line)
    if len(lines) > max_lines:
        last = lines[max_lines - 1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: max_lines - 1], last.rstrip() + "…"]
    return tuple(lines)


@lru_cache(maxsize=32)
def load_font(size: int, bold: bool) -> Lettering:
    return Lettering(size, bold)


@lru_cache(maxsize=128)
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@lru_cache(maxsize=2)
def _glyphs_of(path: Path) -> frozenset[int]:
    """The characters that a font has. Raises OSError, and what else reading a damaged one raises."""
    from matplotlib.ft2font import FT2Font

    _font(path, 13)  # a font of bitmaps, as of coloured emoji, has one size only
    return frozenset(FT2Font(str(path)).get_charmap())


@lru_cache(maxsize=1)
def _glyphs_of_machine() -> Mapping[int, Path]:
    """Character -> a font that is installed here and has it. Looked up when a first character is missing."""
    from matplotlib import font_manager

    glyphs: dict[int, Path] = {}
    for path in sorted(map(Path, font_manager.findSystemFonts()), key=lambda path: path.name):
        if not path.name.startswith("LastResort"):  # it has a box for everything
            with suppress(OSError, RuntimeError, ValueError):
                glyphs = dict.fromkeys(_glyphs_of.__wrapped__(path), path) | glyphs
    return glyphs


def _told(char: str) -> str:
    """A character in others. What joins or varies others, and has no form of its own, is left out."""
    if unicodedata.category(char) in ("Cf", "Mn", "Me"):
        return ""
    if unicodedata.category(char) == "So" and (name := unicodedata.name(char, "")):
        return f":{name.lower()}:"
    return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}"


def _num_characters_that_fit(word: str, font: Lettering, width: int) -> int:
    """At least one, so that breaking a word always comes to an end."""
    count = 1
    while count < len(word) and font.getlength(word[: count + 1]) <= width:
        count += 1
    return count
