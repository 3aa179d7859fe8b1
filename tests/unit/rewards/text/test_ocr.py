"""rewards/text/ocr.py: the accuracy against a slow edit distance, and real weights on real pictures of words."""

from __future__ import annotations

import random
import string
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from configs.errors import ConfigError
from rewards.text import OcrReward
from rewards.text.ocr import quoted_texts, score_lines, text_accuracy
from rollout.records import Prompt, UInt8Array
from tests.missing_package import hide_package

SIDE = 192
SIGN = Prompt("p", 'a white sign that says "HELLO WORLD"')


def slow_distance(target: str, words: list[str]) -> int:
    """Least edit distance of the target to any run of neighbouring words, by trying every run."""

    @cache
    def distance(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        if a[0] == b[0]:
            return distance(a[1:], b[1:])
        return 1 + min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))

    runs = ["".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
    return min((distance(target, run) for run in runs), default=len(target))


def test_the_accuracy_is_that_of_the_closest_run_of_words_found_by_trying_all() -> None:
    rng = random.Random(0)
    differing = 0
    for _ in range(150):
        target = "".join(rng.choices("abc", k=rng.randint(1, 5)))
        words = ["".join(rng.choices("abc", k=rng.randint(1, 4))) for _ in range(rng.randint(0, 4))]
        if len(target) >= 4 and target in "".join(words):
            continue
        expected = max(0.0, 1 - slow_distance(target, words) / len(target))
        cut = rng.randint(0, len(words))
        lines = [" ".join(words[:cut]), " ".join(words[cut:])]
        assert text_accuracy(target, lines) == pytest.approx(expected), (target, words)
        differing += 0 < expected < 1
    assert differing > 50


@pytest.mark.parametrize(
    ("target", "lines", "accuracy"),
    [
        ("OPEN", ["open"], 1.0),
        ("open late", ["OPEN", "LATE"], 1.0),
        ("open late", ["OPENLATE"], 1.0),
        ("open", ["we are open all day"], 1.0),
        ("open", ["weareopenallday"], 1.0),
        ("no", ["nostalgia"], 0.0),
        ("开放", ["今日开放"], 1.0),
        ("open", [], 0.0),
        ("open", ["xyz"], 0.0),
        ("open late", ["open iate"], 7 / 8),
        ("caf\u00e9", ["cafe\u0301"], 1.0),
    ],
)
def test_spaces_case_and_further_words_do_not_count(target: str, lines: list[str], accuracy: float) -> None:
    assert text_accuracy(target, lines) == pytest.approx(accuracy)


def test_a_second_sign_is_free_and_more_letters_than_that_cost() -> None:
    assert score_lines(["OPEN"], ["OPEN", "bakery and cafe"]) == 1.0
    assert score_lines(["OPEN"], ["OPEN", "a" * 24]) == pytest.approx(1 - (24 - 16) / 16)
    assert score_lines(["OPEN"], ["OPEN", "a" * 40]) == 0.0
    long = "a rather long announcement of the house"
    assert score_lines([long], [long, "b" * 32]) == 1.0


@pytest.mark.parametrize("target", ["OPEN", "HELLO WORLD", "STOP"])
@pytest.mark.parametrize("num_letters", [30, 300, 1000])
@pytest.mark.parametrize("word_length", [4, 11, 1000])
def test_a_wall_of_random_letters_earns_next_to_nothing(target: str, num_letters: int, word_length: int) -> None:
    rng, values = random.Random(num_letters), []
    for _ in range(10):
        letters = "".join(rng.choices(string.ascii_uppercase, k=num_letters))
        words = [letters[i : i + word_length] for i in range(0, num_letters, word_length)]
        values.append(score_lines([target], [" ".join(words[i : i + 8]) for i in range(0, len(words), 8)]))
    assert sum(values) / len(values) < 0.15
    assert num_letters == 30 or values == [0.0] * 10


def test_the_target_in_a_wall_of_words_earns_nothing_either() -> None:
    assert score_lines(["OPEN"], ["OPEN SHUT SALE STOP"] * 6) == 0.0


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign "OPEN"', ["OPEN"]),
        ("a sign that says 'OPEN LATE' and “no dogs”", ["OPEN LATE", "no dogs"]),
        ("the dog's bowl and the cat's bed", []),
        ('a "don\'t panic" badge', ["don't panic"]),
        ('an empty "" quote and a blank " " one', []),
        ("a badge 'don't stop' and a ‘don’t panic’ mug", ["don't stop", "don’t panic"]),
        ("a cake that says 'Happy Mother's Day'", ["Happy Mother's Day"]),
        ('a 5" screen and a 7" tablet', []),
        ('a 12" by 10" canvas', []),
        ('a 6\'2" man with a sign that says "HI"', ["HI"]),
        ('a jersey with the number "23" on it', ["23"]),
        ("a poster for rock 'n' roll", []),
        ("the '90s kitchen of the twins' house", []),
        ("the dogs' bowl beside the cats' bed", []),
        (
            "„Zur Post“, «Café», »Bar«, ‹Tabac›, 「営業中」 and 『本』",
            ["Zur Post", "Café", "Bar", "Tabac", "営業中", "本"],
        ),
        ("« OPEN »", ["OPEN"]),
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


def test_the_cheapest_pictures_earn_next_to_nothing_of_the_real_reader(reward: OcrReward) -> None:
    """Blank, noise, a wall of letters with the target somewhere in it, the target over and over, words over words."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    letters = ["".join(rng.choice(list(string.ascii_uppercase), 14)) for _ in range(9)]
    wall = draw(*letters[:4], "HELLO WORLD", *letters[4:], size=16)
    again = draw(*["HELLO WORLD"] * 6, size=16)
    over = np.minimum(draw("HELLO", "WORLD"), draw("OTHER", "WORDS"))
    pictures = np.stack([draw(), noise, wall, again, over])
    scores = reward.score(pictures, [SIGN] * len(pictures))
    values = [score.value for score in scores]
    assert len("".join(scores[2].parts["read"])) > 60, "the wall was read"
    assert (values[0], values[2], values[3]) == (0.0, 0.0, 0.0)
    assert max(values) < 0.5


def test_a_picture_scores_the_same_alone_and_in_company(reward: OcrReward) -> None:
    pictures = np.stack([draw("OPEN", "LATE"), draw("HELLO", "WORLD"), draw("NO DOGS", size=30)])
    prompts = [Prompt("a", 'says "open late"'), SIGN, Prompt("c", 'says "no bogs" and "open"')]
    batch = [score.value for score in reward.score(pictures, prompts)]
    single = [reward.score(pictures[i : i + 1], prompts[i : i + 1])[0].value for i in range(3)]
    assert batch == pytest.approx(single, abs=1e-5)
    assert batch[2] == pytest.approx((5 / 6 + text_accuracy("open", ["NO DOGS"])) / 2)


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
