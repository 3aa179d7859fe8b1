"""Pictures for people: what the policy draws, with prompt, plan and score under each.

┌ step 40 — mean reward 0.71 ────────────┐      ┌ before and after ───────────────────┐
│ ▢ picture      ▢ picture     ▢ picture │      │ prompt      ▢ before      ▢ after   │
│ prompt         prompt        prompt    │      │             plan, score   plan, score│
│ plan           plan          plan      │      └─────────────────────────────────────┘
│ score, why     score, why    …         │
└────────────────────────────────────────┘
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from cluster.reports.samples.lettering import load_font, wrap
from rollout.records import UInt8Array

PICTURE_SIDE: Final = 256
"""Pixels; smaller pictures are enlarged by whole factors without smoothing, larger ones are reduced."""

_COLUMNS: Final = 4
_GAP: Final = 20
_RADIUS: Final = 8
_MARGIN: Final = 28
_PADDING: Final = 12
_LINE_SPACING: Final = 1.3

_PAGE, _CARD, _EDGE = "#F4F5F7", "#FFFFFF", "#DFE2E8"
_INK, _SOFT, _BAR = "#1B1F27", "#69707D", "#E8EAEE"
_LOW, _MIDDLE, _HIGH = (204, 64, 52), (224, 160, 32), (40, 150, 86)


@dataclass(frozen=True, slots=True)
class SampleEntry:
    """One picture and what to say about it."""

    picture: UInt8Array
    """uint8 [height, width, 3], RGB."""
    prompt: str
    plan: str
    """The semantic CoT in words; empty when there is none."""
    score: float
    explanation: str = ""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Each reward by itself, of those that apply."""


@dataclass(frozen=True, slots=True)
class _Text:
    """A wrapped paragraph, and what it looks like."""

    lines: tuple[str, ...]
    size: int
    color: str
    bold: bool = False

    @property
    def height(self) -> int:
        return round(len(self.lines) * self.size * _LINE_SPACING)


def draw_samples(path: Path, entries: Sequence[SampleEntry], title: str = "") -> None:
    """Draw pictures as a grid of cards. Raises ValueError when there is none."""
    if not entries:
        raise ValueError("there is no picture to draw")
    columns = min(_COLUMNS, len(entries))
    cards = [_draw_card(entry, show_prompt=True) for entry in entries]
    rows = [_equally_high(cards[i : i + columns]) for i in range(0, len(cards), columns)]
    _save(_draw_page(rows, title), path)


def draw_before_after(path: Path, before: Sequence[SampleEntry], after: Sequence[SampleEntry], title: str) -> None:
    """Draw pairs of pictures of the same prompts side by side, two pairs a row, under the title and their mean scores.

    Raises ValueError when the two differ in their prompts.
    """
    if [entry.prompt for entry in before] != [entry.prompt for entry in after] or not before:
        raise ValueError("before and after must hold the same prompts, at least one")
    pairs = [_draw_pair(first, second) for first, second in zip(before, after, strict=True)]
    columns = min(2, len(pairs))
    change = f"{title} — of these {len(pairs)}: {_mean_score(before):.2f} → {_mean_score(after):.2f}"
    _save(_draw_page([pairs[i : i + columns] for i in range(0, len(pairs), columns)], change), path)


def enlarge(picture: UInt8Array, side: int = PICTURE_SIDE) -> Image.Image:
    """An RGB image of `side` x `side` pixels. A tiny picture keeps its pixels as sharp squares."""
    image = Image.fromarray(picture, "RGB")
    largest = max(image.size)
    if largest <= side // 2:
        factor = side // largest
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    elif largest != side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (side, side), _PAGE)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _draw_card(entry: SampleEntry, show_prompt: bool, heading: str = "") -> Image.Image:
    """A picture with its texts, as high as they need."""
    texts = []
    if heading:
        texts.append(_text(heading, 13, _SOFT, bold=True))
    if show_prompt:
        texts.append(_text(entry.prompt, 15, _INK, bold=True, max_lines=3))
    if entry.plan:
        texts.append(_text(entry.plan, 13, _SOFT, max_lines=5))
    score = _text(f"{entry.score:.2f}", 15, _score_color(entry.score), bold=True)
    why = _text(entry.explanation, 12, _SOFT, max_lines=4) if entry.explanation else None
    below = [*texts, score, *([why] if why else [])]
    height = _PADDING + PICTURE_SIDE + sum(text.height + 8 for text in below) + _PADDING
    card = _new_card(PICTURE_SIDE + 2 * _PADDING, height)
    card.paste(enlarge(entry.picture), (_PADDING, _PADDING))
    draw = ImageDraw.Draw(card)
    top = _PADDING + PICTURE_SIDE + 8
    for text in below:
        _write(draw, (_PADDING, top), text)
        if text is score:
            _draw_bar(draw, (_PADDING + 56, top + 6), PICTURE_SIDE - 56, entry.score)
        top += text.height + 8
    return card


def _draw_pair(before: SampleEntry, after: SampleEntry) -> Image.Image:
    """The prompt, and under it the two cards."""
    cards = _equally_high(
        [_draw_card(before, show_prompt=False, heading="before"), _draw_card(after, show_prompt=False, heading="after")]
    )
    width = sum(card.width for card in cards) + _GAP
    prompt = _text(before.prompt, 17, _INK, bold=True, width=width, max_lines=2)
    top = prompt.height + _PADDING
    pair = Image.new("RGB", (width, top + cards[0].height), _PAGE)
    _write(ImageDraw.Draw(pair), (0, 0), prompt)
    pair.paste(cards[0], (0, top))
    pair.paste(cards[1], (cards[0].width + _GAP, top))
    return pair


def _draw_page(rows: Sequence[Sequence[Image.Image]], title: str) -> Image.Image:
    """Rows of equally wide tiles; the tiles of a row hang from its top."""
    tile_width = rows[0][0].width
    width = 2 * _MARGIN + len(rows[0]) * (tile_width + _GAP) - _GAP
    heading = _text(title, 22, _INK, bold=True, width=width - 2 * _MARGIN, max_lines=2) if title else None
    top = _MARGIN + (heading.height + _GAP if heading else 0)
    heights = [max(tile.height for tile in row) for row in rows]
    page = Image.new("RGB", (width, top + sum(heights) + _GAP * (len(rows) - 1) + _MARGIN), _PAGE)
    if heading:
        _write(ImageDraw.Draw(page), (_MARGIN, _MARGIN), heading)
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            page.paste(tile, (_MARGIN + column * (tile_width + _GAP), top))
        top += height + _GAP
    return page


def _new_card(width: int, height: int) -> Image.Image:
    card = Image.new("RGB", (width, height), _PAGE)
    ImageDraw.Draw(card).rounded_rectangle((0, 0, width - 1, height - 1), radius=_RADIUS, fill=_CARD, outline=_EDGE)
    return card


def _equally_high(cards: Sequence[Image.Image]) -> list[Image.Image]:
    height = max(card.height for card in cards)
    stretched = []
    for card in cards:
        taller = _new_card(card.width, height)
        taller.paste(card.crop((0, 0, card.width, card.height - _RADIUS - 1)))
        stretched.append(taller)
    return stretched


def _draw_bar(draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, score: float) -> None:
    """How much of 1 the score is, as a bar; scores outside [0, 1] fill none or all of it."""
    left, top = corner
    draw.rounded_rectangle((left, top, left + width - 1, top + 7), radius=4, fill=_BAR)
    filled = round(width * _clamp(score))
    if filled >= 8:
        draw.rounded_rectangle((left, top, left + filled - 1, top + 7), radius=4, fill=_score_color(score))


def _score_color(score: float) -> str:
    """From red over amber at 0.5 to green at 1."""
    share = 2 * _clamp(score)
    low, high = (_LOW, _MIDDLE) if share < 1 else (_MIDDLE, _HIGH)
    mixed = (round(a + (b - a) * (share % 1 if share < 2 else 1)) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{channel:02X}" for channel in mixed)


def _clamp(score: float) -> float:
    return min(1.0, max(0.0, score)) if math.isfinite(score) else 0.0


def _mean_score(entries: Sequence[SampleEntry]) -> float:
    return sum(entry.score for entry in entries) / len(entries)


def _text(text: str, size: int, color: str, bold: bool = False, width: int = PICTURE_SIDE, max_lines: int = 1) -> _Text:
    return _Text(wrap(text, load_font(size, bold), width, max_lines), size, color, bold)


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], text: _Text) -> None:
    left, top = corner
    for number, line in enumerate(text.lines):
        place = (left, top + round(number * text.size * _LINE_SPACING))
        load_font(text.size, text.bold).write(draw, place, line, text.color)


def _save(image: Image.Image, path: Path) -> None:
    """A reader sees the whole file or none."""
    temporary = path.with_name(path.name + ".tmp")
    image.save(temporary, format="PNG", optimize=True)
    os.replace(temporary, path)
