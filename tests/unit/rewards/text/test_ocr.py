"""rewards/text/ocr.py: the accuracy against a slow edit distance, and real weights on real pictures of words."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from configs.errors import ConfigError
from rewards.text import OcrReward
from rewards.text.ocr import quoted_texts, text_accuracy
from rollout.records import Prompt, UInt8Array
from tests.missing_package import hide_package

SIDE = 192
SIGN = Prompt("p", 'a white sign that says "HELLO WORLD"')


def slow_distance(target: str, text: str) -> int:
    """Least edit distance of the target to any stretch of the text, by trying every stretch."""

    @cache
    def distance(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        if a[0] == b[0]:
            return distance(a[1:], b[1:])
        return 1 + min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))

    return min(distance(target, text[i:j]) for i in range(len(text) + 1) for j in range(i, len(text) + 1))


def test_the_accuracy_is_that_of_the_closest_stretch_found_by_trying_all() -> None:
    rng = random.Random(0)
    for _ in range(60):
        target = "".join(rng.choices("abc", k=rng.randint(1, 5)))
        text = "".join(rng.choices("abc", k=rng.randint(0, 7)))
        expected = 1 - slow_distance(target, text) / len(target)
        assert text_accuracy(target, text) == pytest.approx(expected), (target, text)


@pytest.mark.parametrize(
    ("target", "text", "accuracy"),
    [
        ("OPEN", "open", 1.0),
        ("open late", "OPENLATE", 1.0),
        ("open", "we are open all day", 1.0),
        ("open", "", 0.0),
        ("open", "xyz", 0.0),
        ("open late", "openiate", 7 / 8),
    ],
)
def test_spaces_case_and_further_words_do_not_count(target: str, text: str, accuracy: float) -> None:
    assert text_accuracy(target, text) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign "OPEN"', ["OPEN"]),
        ("a sign that says 'OPEN LATE' and “no dogs”", ["OPEN LATE", "no dogs"]),
        ("the dog's bowl and the cat's bed", []),
        ('a "don\'t panic" badge', ["don't panic"]),
        ('an empty "" quote and a blank " " one', []),
    ],
)
def test_targets_are_what_stands_in_quotes(prompt: str, texts: list[str]) -> None:
    assert quoted_texts(prompt) == texts


@pytest.fixture(scope="module")
def reward() -> OcrReward:
    return OcrReward(device="cpu")


def draw(*lines: str, size: int = 38) -> UInt8Array:
    """Black words on a white sign, in the font that Pillow carries."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    ImageDraw.Draw(image).multiline_text((14, 40), "\n".join(lines), "black", ImageFont.load_default(size), spacing=18)
    return np.asarray(image)


def garble(picture: UInt8Array) -> UInt8Array:
    """The same ink, its strips shuffled and smeared: like words from afar, and not to be read."""
    order = np.random.default_rng(0).permutation(SIDE // 8)
    strips = np.concatenate([picture[:, 8 * i : 8 * i + 8] for i in order], axis=1)
    return np.asarray(Image.fromarray(strips).filter(ImageFilter.GaussianBlur(2)))


def test_clean_words_beat_one_wrong_letter_beat_other_words_beat_garbled_ones(reward: OcrReward) -> None:
    clean = draw("HELLO", "WORLD")
    pictures = np.stack([clean, draw("HELLO", "WORLO"), draw("HELLO"), garble(clean), draw()])
    scores = reward.score(pictures, [SIGN] * len(pictures))
    values = [score.value for score in scores]
    assert values[0] == 1.0
    assert scores[0].parts["read"] == ["HELLO", "WORLD"]
    assert values[1] == pytest.approx(0.9)
    assert values[2] == pytest.approx(0.5)
    assert values[3] < 0.4
    assert (values[4], scores[4].parts["read"]) == (0.0, [])


def test_a_picture_scores_the_same_alone_and_in_company(reward: OcrReward) -> None:
    pictures = np.stack([draw("OPEN", "LATE"), draw("HELLO", "WORLD"), draw("NO DOGS", size=30)])
    prompts = [Prompt("a", 'says "open late"'), SIGN, Prompt("c", 'says "no bogs" and "open"')]
    batch = [score.value for score in reward.score(pictures, prompts)]
    single = [reward.score(pictures[i : i + 1], prompts[i : i + 1])[0].value for i in range(3)]
    assert batch == pytest.approx(single, abs=1e-5)
    assert batch[2] == pytest.approx((5 / 6 + text_accuracy("open", "NO DOGS")) / 2)


def test_a_prompt_without_quotes_is_not_scored(reward: OcrReward) -> None:
    (score,) = reward.score(draw("HELLO")[None], [Prompt("p", "a sign")])
    assert not score.applicable


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_package(monkeypatch, "rapidocr")
    with pytest.raises(ConfigError, match=r"No module named 'rapidocr'.*pip install 'bicot\[rewards\]'"):
        OcrReward(device="cpu")


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="runs on CPU only"):
        OcrReward(device="cuda")
    with pytest.raises(ConfigError, match=r"min_confidence of ocr is 1\.5"):
        OcrReward(device="cpu", min_confidence=1.5)
