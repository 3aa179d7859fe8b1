"""Pictures are read once and for all: upright, in RGB, whole, or refused with the reason."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from configs.schema import WarmStartConfig
from learner.warm_start.data import load_examples
from rewards.pictures import match_pictures
from rewards.pictures import read_picture as read_for_rewards
from rollout.pictures.reader import is_file, read_picture
from tests.fuzzing import looking_at

LINE = '{"prompt": "a", "plan": "b", "image": "%s"}\n'
NUM_ORIENTATIONS = 8


def sideways(path: Path, orientation: int) -> None:
    """Red, then blue, as a camera stores it; `orientation` says how to hold it."""
    stored = Image.new("RGB", (32, 32), "blue")
    stored.paste("red", (0, 0, 16, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif, quality=95)


@pytest.mark.parametrize("orientation", range(1, NUM_ORIENTATIONS + 1))
def test_the_warm_start_trains_on_what_rewards_score_and_viewers_show(tmp_path: Path, orientation: int):
    sideways(tmp_path / "phone.jpg", orientation)
    (tmp_path / "x.jsonl").write_text(LINE % "phone.jpg")
    examples = load_examples(WarmStartConfig(examples=str(tmp_path / "x.jsonl")), 32)
    seen = examples.load_pictures([0])[0]
    np.testing.assert_array_equal(seen, read_for_rewards(tmp_path / "phone.jpg"))
    red = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}[orientation]
    y, x = {"left": (16, 3), "right": (16, 28), "top": (3, 16), "bottom": (28, 16)}[red]  # EXIF 2.32, tag Orientation
    assert seen[y, x, 0] > 200
    assert seen[y, x, 2] < 60


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (level, 0, 0)) for level in (0, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def make(path: Path) -> None:
    """The picture that its name says."""
    modes = {"cut_out": "RGBA", "gray_16": "I;16", "float": "F", "cmyk": "CMYK", "palette": "P", "gray": "L"}
    if path.stem == "animated":
        animated(path)
    elif path.stem == "transparent_color":
        Image.new("RGB", (8, 8), "red").save(path, transparency=(255, 0, 0))
    elif path.stem == "text":
        path.write_text("this is no picture")
    elif path.stem == "truncated":
        whole = io.BytesIO()
        Image.effect_noise((64, 64), 50).convert("RGB").save(whole, "PNG")
        path.write_bytes(whole.getvalue()[:500])
    else:
        Image.new(modes[path.stem], (8, 8)).save(path)


REFUSED = {
    "cut_out.png": "has channels RGBA, not RGB; convert it first",
    "gray_16.png": "not RGB; convert it to 8 bits a channel first",
    "float.tif": "has channels F, not RGB",
    "cmyk.jpg": "has channels CMYK, not RGB",
    "palette.png": "has channels P, not RGB",
    "gray.png": "has channels L, not RGB",
    "transparent_color.png": "has a transparent colour; convert it first",
    "animated.gif": "has 2 frames; only still pictures are read",
    "animated.webp": "has 2 frames",
    "text.png": "cannot be read as a picture",
    "truncated.png": "cannot be read as a picture",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_of_no_one_meaning_is_refused_by_name_in_warm_start_and_rewards_alike(tmp_path: Path, name: str):
    make(tmp_path / name)
    with pytest.raises(ValueError, match=REFUSED[name]):
        read_for_rewards(tmp_path / name)
    (tmp_path / "x.jsonl").write_text(LINE % name)
    examples = load_examples(WarmStartConfig(examples=str(tmp_path / "x.jsonl")), 32)
    (fault,) = examples.bad_pictures(range(1)).values()
    assert fault.startswith(f"picture {name} ")
    assert REFUSED[name] in fault


def test_a_picture_whose_name_no_file_can_have_is_a_bad_line(tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    names = ["good.png", "x" * 1000 + ".png", "a\\u0000b.png", "."]
    (tmp_path / "x.jsonl").write_text("".join(LINE % name for name in names))
    examples = load_examples(WarmStartConfig(examples=str(tmp_path / "x.jsonl")), 32)
    assert [len(examples), len(examples.skipped)] == [1, 3]
    assert not any(is_file(tmp_path / name) for name in ("x" * 1000, "a\0b", "\ud800", "."))


def encoded(suffix: str) -> bytes:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((24, 16), 50).convert("RGB").save(out, suffix, exif=exif)
    return out.getvalue()


ENCODED = [encoded(suffix) for suffix in ("PNG", "JPEG", "WEBP", "TIFF")]


@pytest.fixture(scope="module")
def damaged_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


@looking_at(one_in=5)
@given(
    st.sampled_from(ENCODED),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=5),
    st.integers(20, 4000),
)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it finds in damaged files
def test_damaged_bytes_are_a_picture_or_a_value_error(
    damaged_folder: Path, content: bytes, damages: list[tuple[int, int]], length: int
):
    damaged = bytearray(content)
    for place, value in damages:
        damaged[place % len(damaged)] = value
    path = damaged_folder / "picture"
    path.write_bytes(damaged[:length])
    try:
        picture = read_picture(path)
    except ValueError as error:
        reason = str(error)
        assert reason.isprintable()
    else:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3


def test_hidden_companions_of_pictures_are_not_paired_with_prompts(tmp_path: Path):
    for number in (1, 2):
        Image.new("RGB", (8, 8), (30 * number,) * 3).save(tmp_path / f"{number}.png")
        (tmp_path / f"._{number}.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "two.txt").write_text("a dark picture\na bright picture\n")
    pairs, skipped = match_pictures(tmp_path / "two.txt", tmp_path)
    assert [(pair.name, pair.prompt.text) for pair in pairs] == [
        ("1.png", "a dark picture"),
        ("2.png", "a bright picture"),
    ]
    assert skipped == []


def test_of_a_file_that_is_no_picture_a_record_gives_nothing_away(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "password.txt").write_text("swordfish")
    (tmp_path / "data/x.jsonl").write_text(LINE % "../password.txt" + LINE % str(tmp_path / "password.txt"))
    examples = load_examples(WarmStartConfig(examples=str(tmp_path / "data/x.jsonl")), 32)
    faults = list(examples.bad_pictures(range(2)).values())
    pairs, _ = match_pictures(tmp_path / "data/x.jsonl", _folder_with_a_picture(tmp_path / "data"))
    for pair in pairs:
        with pytest.raises(ValueError, match="cannot be read as a picture") as raised:
            read_for_rewards(pair.path)
        faults.append(str(raised.value))
    assert len(faults) == 4
    assert not any("swordfish" in fault for fault in faults)


def _folder_with_a_picture(folder: Path) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    return folder
