"""Pictures for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw

from cluster.reports.samples import SampleEntry, draw_before_after, draw_samples, lettering
from cluster.reports.samples.lettering import load_font, wrap
from cluster.reports.samples.page import PICTURE_SIDE, enlarge
from rollout.records import UInt8Array

FONT = load_font(13, False)


def picture(color: tuple[int, int, int], side: int = 32) -> UInt8Array:
    return np.full((side, side, 3), color, np.uint8)


def entry(color: tuple[int, int, int], prompt: str = "a red circle", score: float = 0.5) -> SampleEntry:
    return SampleEntry(picture(color), prompt, "a large red circle in the middle", score, "colour 1.0, count 0.0")


def area(path: Path, color: tuple[int, int, int]) -> int:
    """How many pixels of exactly this colour the file has."""
    return int((np.asarray(Image.open(path).convert("RGB")) == color).all(axis=2).sum())


def test_a_tiny_picture_is_enlarged_to_sharp_squares() -> None:
    small = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    large = np.asarray(enlarge(small))
    np.testing.assert_array_equal(large, small.repeat(8, axis=0).repeat(8, axis=1))


def test_a_size_that_does_not_divide_is_centred_unsmoothed() -> None:
    large = np.asarray(enlarge(picture((255, 0, 0), side=48)))
    assert large.shape == (PICTURE_SIDE, PICTURE_SIDE, 3)
    assert (large == (255, 0, 0)).all(axis=2).sum() == (48 * 5) ** 2


def test_a_large_picture_is_reduced() -> None:
    assert np.asarray(enlarge(picture((255, 0, 0), side=384))).shape == (PICTURE_SIDE, PICTURE_SIDE, 3)


def test_every_picture_is_in_the_grid(tmp_path: Path) -> None:
    path = tmp_path / "samples.png"
    colors = [(200, 10 * index, 7) for index in range(6)]
    draw_samples(path, [entry(color) for color in colors], "step 40 — mean reward 0.71")
    for color in colors:
        assert area(path, color) == PICTURE_SIDE**2
    assert [file.name for file in tmp_path.iterdir()] == ["samples.png"]


@pytest.mark.parametrize("field", ["prompt", "plan", "score", "explanation", "title"])
def test_every_text_is_shown(tmp_path: Path, field: str) -> None:
    texts = {"prompt": "one", "plan": "one", "explanation": "one", "score": 0.11, "title": "one"}
    drawn = []
    for value in (texts[field], 0.99 if field == "score" else "two"):
        chosen = {**texts, field: value}
        title = str(chosen.pop("title"))
        draw_samples(tmp_path / "samples.png", [SampleEntry(picture((0, 0, 0)), **chosen)], title)  # type: ignore[arg-type]
        drawn.append(np.asarray(Image.open(tmp_path / "samples.png")))
    assert drawn[0].shape == drawn[1].shape
    assert (drawn[0] != drawn[1]).any()


def test_wrapped_lines_fit_and_hold_every_word() -> None:
    text = "a small striped yellow triangle to the left of two large blue squares on a plain background"
    lines = wrap(text, FONT, 150, max_lines=20)
    assert all(FONT.getlength(line) <= 150 for line in lines)
    assert " ".join(lines) == text


def test_text_beyond_the_last_line_ends_in_an_ellipsis() -> None:
    lines = wrap("word " * 200, FONT, 150, max_lines=3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert FONT.getlength(lines[-1]) <= 150


def test_a_word_wider_than_a_line_is_broken() -> None:
    lines = wrap("start " + "x" * 100, FONT, 150, max_lines=20)
    assert "".join(lines) == "start" + "x" * 100
    assert all(FONT.getlength(line) <= 150 for line in lines)


def test_odd_texts_and_scores_are_drawn(tmp_path: Path) -> None:
    odd = SampleEntry(picture((9, 9, 9)), "", "plan\nwith\tbreaks 🦜 ψ", float("nan"), "")
    negative = SampleEntry(picture((8, 8, 8)), "prompt", "", -3.5)
    draw_samples(tmp_path / "samples.png", [odd, negative])
    assert area(tmp_path / "samples.png", (9, 9, 9)) == PICTURE_SIDE**2


@pytest.fixture
def machine_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The fonts of a machine that has only these."""
    fonts: list[str] = []
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: fonts)
    lettering._glyphs_of_machine.cache_clear()
    yield fonts
    lettering._glyphs_of_machine.cache_clear()


def page_of(folder: Path, prompt: str) -> UInt8Array:
    draw_samples(folder / "samples.png", [entry((9, 9, 9), prompt)])
    return np.asarray(Image.open(folder / "samples.png"))


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("a 猫 on it", r"a \u732b on it"),
        ("a 🦜!", "a :parrot:!"),
        ("\U00020000", r"\U00020000"),
        ("a cat\U000e0100", "a cat"),
        ("ψ, ☺ and 🜁", "ψ, ☺ and :alchemical symbol for air:"),
    ],
)
def test_a_character_that_no_font_has_is_told_and_no_box(
    tmp_path: Path, machine_fonts: list[str], prompt: str, shown: str
) -> None:
    assert " ".join(wrap(prompt, FONT, 300, max_lines=9)) == shown
    assert (page_of(tmp_path, prompt) == page_of(tmp_path, shown)).all()


def test_a_character_that_a_font_of_the_machine_has_is_shown_by_it(tmp_path: Path, machine_fonts: list[str]) -> None:
    (tmp_path / "Damaged.otf").write_bytes(b"no font")
    font = TTFont(FONT._own)
    for table in font["cmap"].tables:
        table.cmap = {ord("猫"): font.getBestCmap()[ord("W")]}
    font.save(tmp_path / "Cats.ttf")
    machine_fonts += [str(tmp_path / "Damaged.otf"), str(tmp_path / "Cats.ttf")]
    assert wrap("a 猫 on it", FONT, 300, max_lines=9) == ("a 猫 on it",)
    assert FONT.getlength("猫") == FONT.getlength("W")
    drawn = []
    for text in ("a 猫", "a W"):
        image = Image.new("RGB", (60, 30))
        FONT.write(ImageDraw.Draw(image), (2, 2), text, "#FFFFFF")
        drawn.append(np.asarray(image))
    assert drawn[0].any()
    assert (drawn[0] == drawn[1]).all()


def test_before_and_after_show_both_pictures_of_each_prompt(tmp_path: Path) -> None:
    path = tmp_path / "before_after.png"
    before = [entry((10, 20, index), f"prompt {index}") for index in range(3)]
    after = [entry((90, 80, index), f"prompt {index}", score=0.9) for index in range(3)]
    draw_before_after(path, before, after, "heldout")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    for index in range(3):
        columns = [np.nonzero((pixels == color).all(axis=2))[1] for color in ((10, 20, index), (90, 80, index))]
        assert [len(column) for column in columns] == [PICTURE_SIDE**2] * 2
        assert columns[0].max() < columns[1].min(), "before stands left of after"


def test_before_and_after_of_different_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same prompts"):
        draw_before_after(tmp_path / "x.png", [entry((0, 0, 0), "one")], [entry((0, 0, 0), "two")], "heldout")
    with pytest.raises(ValueError, match="no picture"):
        draw_samples(tmp_path / "x.png", [])
