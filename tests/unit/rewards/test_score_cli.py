"""python -m rewards.score and the reading and matching of pictures, with rewards that need no model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from configs.errors import DataError
from rewards.pictures import check_pictures, match_pictures, read_picture
from rewards.pictures.input import MAX_PIXELS
from rewards.registry import create_reward
from rewards.score import main, parse_arguments
from rewards.scoring import choose_rewards
from rollout.pictures import PictureWriter
from rollout.records import GroupRequest, GroupRollout, Prompt, Score, UInt8Array
from rollout.shapes import load_split
from tests.records import make_trajectory


def brightness(pictures: UInt8Array, prompts: Sequence[Prompt], scale: float = 1.0) -> list[float]:
    return [scale * float(level) / 255 for level in pictures.mean(axis=(1, 2, 3))]


class Fussy:
    """Does not apply to prompts with `joy`, fails at those with `cursed`, and explains itself in NumPy."""

    def __init__(self, device: str) -> None:
        self.device = device

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[Score]:
        if any("cursed" in prompt.text for prompt in prompts):
            raise RuntimeError("a curse")
        parts = [{"side": np.float32(picture.shape[0]), "corner": picture[0, 0]} for picture in pictures]
        return [
            Score(None if "joy" in prompt.text else 0.5, parts=part)
            for part, prompt in zip(parts, prompts, strict=True)
        ]


class Homeless:
    """Cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("no such model")

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[float]:
        raise NotImplementedError


class Ranks:
    """Group-wise: the place of a picture among those of its prompt by brightness."""

    def score_group(self, pictures: UInt8Array, prompt: Prompt) -> list[int]:
        return list(np.argsort(np.argsort(pictures.mean(axis=(1, 2, 3)))))


def plan_words(pictures: UInt8Array, prompts: Sequence[Prompt], plans: Sequence[str]) -> list[int]:
    return [len(plan.split()) for plan in plans]


def tag(pictures: UInt8Array, prompts: Sequence[Prompt]) -> list[float | None]:
    return [prompt.metadata.get("level") for prompt in prompts]


BRIGHTNESS, FUSSY = f"{__name__}:brightness", f"{__name__}:Fussy"


def save(folder: Path, name: str, level: int, side: int = 8) -> Path:
    Image.new("RGB", (side, side + 2), (level, level, level)).save(folder / name)
    return folder / name


def write_prompts(folder: Path, *records: dict[str, Any] | str) -> Path:
    path = folder / "prompts.jsonl"
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_config(folder: Path, *rewards: dict[str, Any]) -> Path:
    config = {
        "run": {"name": "test"},
        "model": {"path": "deepseek-community/Janus-Pro-1B", "dtype": "float32"},
        "data": {"train": "shapes:train:10"},
        "rewards": list(rewards),
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(folder: Path, *more: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and lines of the output."""
    output = folder / "out" / "scores.jsonl"
    files = ["--prompts", str(folder / "prompts.jsonl"), "--images", str(folder), "--output", str(output)]
    code = main([*files, *more])
    lines = output.read_text().splitlines() if output.exists() else []
    return code, [json.loads(line) for line in lines]


def test_pictures_go_to_prompts_in_the_order_that_people_count(tmp_path: Path) -> None:
    for name, level in (("10.png", 255), ("2.png", 51), ("1.png", 0)):
        save(tmp_path, name, level)
    write_prompts(tmp_path, {"prompt": "night"}, {"prompt": "dusk"}, {"prompt": "noon"})
    code, lines = run(tmp_path, "--rewards", BRIGHTNESS)
    assert code == 0
    assert [(line["image"], line["prompt"]) for line in lines] == [
        ("1.png", "night"),
        ("2.png", "dusk"),
        ("10.png", "noon"),
    ]
    assert [line["scores"][BRIGHTNESS]["value"] for line in lines] == pytest.approx([0, 0.2, 1])
    assert lines[1]["prompt_id"] == "prompts.jsonl:2"


def test_an_image_field_beats_the_order_and_may_name_a_subfolder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    save(tmp_path, "a.png", 0)
    save(tmp_path / "b", "a.png", 255)
    write_prompts(tmp_path, {"prompt": "noon", "image": "b/a.png"}, {"prompt": "night", "file": "a.png"})
    code, lines = run(tmp_path, "--rewards", BRIGHTNESS)
    assert code == 0
    assert [(line["image"], line["scores"][BRIGHTNESS]["value"]) for line in lines] == [("b/a.png", 1), ("a.png", 0)]


def test_several_pictures_a_prompt_are_dealt_out_evenly(tmp_path: Path) -> None:
    for i in range(4):
        save(tmp_path, f"{i}.png", i)
    prompts = write_prompts(tmp_path, {"prompt": "first"}, {"prompt": "second"})
    pairs, skipped = match_pictures(prompts, tmp_path)
    assert [(pair.name, pair.prompt.text) for pair in pairs] == [
        ("0.png", "first"),
        ("1.png", "first"),
        ("2.png", "second"),
        ("3.png", "second"),
    ]
    assert skipped == []


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        save(tmp_path, f"{i}.png", i)
    write_prompts(tmp_path, {"prompt": "first"}, {"prompt": "second"})
    code, lines = run(tmp_path, "--rewards", BRIGHTNESS)
    assert (code, lines) == (2, [])
    assert "holds 3 pictures for the 2 records" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "odd"),
    [
        (("1.png", "2.png", "grid.png", "contact sheet.png"), "grid.png' belong|contact sheet.png' belong"),
        (("1.png", "2.png", "grid_1.png", "grid_2.png"), "grid_1.png' belong"),
        (("fox.png", "owl.png"), "owl.png' belong"),
    ],
)
def test_a_picture_that_has_no_place_among_the_others_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], odd: str
) -> None:
    for name in names:
        save(tmp_path, name, 0)
    write_prompts(tmp_path, {"prompt": "first"}, {"prompt": "second"})
    assert run(tmp_path, "--rewards", BRIGHTNESS) == (2, [])
    assert re.search(odd, capsys.readouterr().err)


@pytest.mark.parametrize(
    "names", [("seed7_1.png", "seed7_2.jpg"), ("00001.png", "00002.png"), ("1_2.webp", "1_10.webp")]
)
def test_names_that_differ_in_their_numbers_have_an_order(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        save(tmp_path, name, 0)
    pairs, skipped = match_pictures(write_prompts(tmp_path, {"prompt": "first"}, {"prompt": "second"}), tmp_path)
    assert [(pair.name, pair.prompt.text) for pair in pairs] == list(zip(names, ("first", "second"), strict=True))
    assert skipped == []


def test_a_bad_record_shifts_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, level in enumerate((0, 51, 255)):
        save(tmp_path, f"{i}.png", level)
    write_prompts(tmp_path, {"prompt": "night"}, "{broken", {"prompt": "noon"})
    code, lines = run(tmp_path, "--rewards", BRIGHTNESS)
    assert code == 1
    assert [(line["image"], line["prompt"]) for line in lines] == [("0.png", "night"), ("2.png", "noon")]
    assert "1.png: its prompt, prompts.jsonl:2, is bad: broken JSON" in capsys.readouterr().out


def test_records_that_name_no_picture_or_a_missing_one_are_skipped_by_name(tmp_path: Path) -> None:
    save(tmp_path, "a.png", 0)
    prompts = write_prompts(
        tmp_path, {"prompt": "a", "image": "a.png"}, {"prompt": "b", "image": "b.png"}, {"prompt": "c"}
    )
    pairs, skipped = match_pictures(prompts, tmp_path)
    assert [pair.name for pair in pairs] == ["a.png"]
    assert [str(entry).split(": ")[0] for entry in skipped] == ["prompts.jsonl:2", "prompts.jsonl:3"]
    assert "there is no picture 'b.png'" in skipped[0].reason
    assert "names no picture in image or file" in skipped[1].reason


def test_bad_pictures_are_skipped_by_name_and_the_others_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, "good.png", 255)
    whole = save(tmp_path, "truncated.png", 100, side=64).read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    frames = [Image.new("RGB", (8, 8), (level, 0, 0)) for level in (0, 255)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGBA", (8, 8)).save(tmp_path / "seen_through.png")
    Image.new("L", (8, 8)).save(tmp_path / "gray.png")
    names = ("good.png", "truncated.png", "text.png", "moving.gif", "seen_through.png", "gray.png")
    write_prompts(tmp_path, *({"prompt": name, "image": name} for name in names))
    code, lines = run(tmp_path, "--rewards", BRIGHTNESS)
    printed = capsys.readouterr().out
    assert code == 1
    assert [line["image"] for line in lines] == ["good.png"]
    assert "5 skipped" in printed
    for name, reason in (
        ("truncated.png", "cannot be read as a picture: "),
        ("text.png", "cannot be read as a picture: cannot identify image file"),
        ("moving.gif", "has 2 frames"),
        ("seen_through.png", "has channels RGBA, not RGB"),
        ("gray.png", "has channels L, not RGB"),
    ):
        assert f"{name}: {reason}" in printed


def test_a_failing_reward_costs_its_picture_alone_and_others_do_not_apply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        save(tmp_path, f"{i}.png", 51)
    write_prompts(tmp_path, {"prompt": "a cat"}, {"prompt": "a cursed cat"}, {"prompt": "joy"})
    code, lines = run(tmp_path, "--rewards", f"{FUSSY},{BRIGHTNESS}")
    assert code == 1
    good, cursed, joy = (line["scores"] for line in lines)
    assert good[FUSSY] == {"value": 0.5, "parts": {"side": 10.0, "corner": [51, 51, 51]}}
    assert "RuntimeError: a curse" in cursed[FUSSY]["error"]
    assert joy[FUSSY] is None
    assert all(scores[BRIGHTNESS]["value"] == pytest.approx(0.2) for scores in (good, cursed, joy))
    assert "1 failed" in capsys.readouterr().out


def test_pictures_of_several_sizes_are_scored_in_their_order(tmp_path: Path) -> None:
    for i in range(70):
        save(tmp_path, f"{i}.png", i, side=8 + i % 3)
    write_prompts(tmp_path, {"prompt": "a wall"})
    code, lines = run(tmp_path, "--rewards", BRIGHTNESS)
    assert code == 0
    assert [line["image"] for line in lines] == [f"{i}.png" for i in range(70)]
    assert [line["scores"][BRIGHTNESS]["value"] for line in lines] == pytest.approx([i / 255 for i in range(70)])


def test_a_config_gives_the_rewards_and_their_options(tmp_path: Path) -> None:
    save(tmp_path, "0.png", 51)
    write_prompts(tmp_path, {"prompt": "dusk"})
    path = write_config(tmp_path, {"name": BRIGHTNESS, "options": {"scale": 2.0}}, {"name": "shapes"})
    code, lines = run(tmp_path, "--config", str(path), "--rewards", BRIGHTNESS)
    assert code == 0
    assert lines[0]["scores"] == {BRIGHTNESS: {"value": pytest.approx(0.4), "parts": {}}}


@pytest.mark.parametrize(
    ("device", "gpus"), [([], [1.0, 0.0]), (["--device", "cpu"], [0.0, 0.0]), (["--device", "cuda"], [1.0, 1.0])]
)
def test_each_reward_runs_where_the_config_says_unless_told_otherwise(
    device: list[str], gpus: list[float], tmp_path: Path
) -> None:
    path = write_config(tmp_path, {"name": FUSSY, "gpus_per_replica": 1.0}, {"name": BRIGHTNESS})
    arguments = parse_arguments(["--config", str(path), "--prompts", "p.txt", "--images", ".", *device])
    rewards = choose_rewards(arguments.rewards, arguments.config, arguments.set, arguments.device)
    assert [config.gpus_per_replica for config in rewards] == gpus


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rewards", "hsp"], "'hsp' is not a reward"),
        (["--rewards", f"{__name__}:nothing"], "cannot import"),
        (["--rewards", "hps", "--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_wrong_input_is_one_clear_line(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, "0.png", 0)
    write_prompts(tmp_path, {"prompt": "a"})
    code, lines = run(tmp_path, *more)
    error = capsys.readouterr().err
    assert (code, lines) == (2, [])
    assert error.startswith("error: ")
    assert message in error


def test_earlier_scores_outlive_a_reward_that_cannot_start_and_no_other(tmp_path: Path) -> None:
    save(tmp_path, "0.png", 51)
    write_prompts(tmp_path, {"prompt": "dusk"})
    _, first = run(tmp_path, "--rewards", BRIGHTNESS)
    code, kept = run(tmp_path, "--rewards", f"{__name__}:Homeless", "--overwrite")
    assert (code, kept) == (1, first)
    code, again = run(tmp_path, "--rewards", BRIGHTNESS, "--overwrite")
    assert (code, again) == (0, first)


def test_without_rewards_or_config_there_is_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse_arguments(["--prompts", "p.txt", "--images", "."])
    assert exit_info.value.code == 2
    assert "give --rewards, --config, or both" in capsys.readouterr().err


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, {"prompt": "a"})
    with pytest.raises(DataError, match="there is no picture in this folder"):
        match_pictures(prompts, tmp_path)
    with pytest.raises(DataError, match="cannot list the pictures"):
        match_pictures(prompts, tmp_path / "nothing")


def test_a_picture_is_read_upright_and_exactly(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "plain.png"), pixels)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter to the right
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.png"), np.rot90(pixels, -1))


def test_a_picture_of_absurd_size_is_refused_by_its_header(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("RGB", (1, 1)).save(tmp_path / "huge.bmp")
    header = bytearray((tmp_path / "huge.bmp").read_bytes())
    header[18:26] = side.to_bytes(4, "little") * 2
    (tmp_path / "huge.bmp").write_bytes(header)
    with pytest.raises(ValueError, match=f"has {side} x {side} pixels"):
        read_picture(tmp_path / "huge.bmp")


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([[1]], "must be a NumPy array, not list"),
        (np.zeros((1, 4, 4, 3), np.float32), r"must be uint8 \(0 to 255\), not float32; round"),
        (np.full((1, 4, 4, 3), np.nan, np.float32), "not float32 with NaN in them"),
        (np.zeros((4, 4, 3), np.uint8), "of shape"),
        (np.zeros((1, 4, 4, 4), np.uint8), r"3 channels \(RGB\), not 4"),
        (np.zeros((1, 0, 4, 3), np.uint8), "are empty"),
        (np.zeros((2, 4, 4, 3), np.uint8), "2 pictures came with 1 prompts"),
    ],
)
def test_pictures_of_the_wrong_kind_are_refused_before_any_model_sees_them(pictures: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_pictures(pictures, [Prompt("p", "t")])


def one_picture(folder: Path, **record: Any) -> Path:
    save(folder, "0.png", 51)
    return write_prompts(folder, {"prompt": "dusk", **record})


def test_the_prompts_are_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = one_picture(tmp_path)
    before = prompts.read_text()
    for output in (prompts, tmp_path / "out" / ".." / "prompts.jsonl"):
        (tmp_path / "out").mkdir(exist_ok=True)
        arguments = ["--prompts", str(prompts), "--images", str(tmp_path), "--output", str(output), "--overwrite"]
        assert main(["--rewards", BRIGHTNESS, *arguments]) == 2
        assert "is the file of the prompts" in capsys.readouterr().err
    assert prompts.read_text() == before


def test_an_output_that_is_there_is_replaced_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_picture(tmp_path)
    _, first = run(tmp_path, "--rewards", BRIGHTNESS)
    code, kept = run(tmp_path, "--rewards", BRIGHTNESS, "--set", f"{BRIGHTNESS}.scale=2")
    assert (code, kept) == (2, first)
    assert "holds scores already; --resume goes on with it, --overwrite" in capsys.readouterr().err
    code, replaced = run(tmp_path, "--rewards", BRIGHTNESS, "--set", f"{BRIGHTNESS}.scale=2", "--overwrite")
    assert code == 0
    assert replaced[0]["scores"][BRIGHTNESS]["value"] == pytest.approx(0.4)


def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(5):
        save(tmp_path, f"{i}.png", i)
    write_prompts(tmp_path, {"prompt": "a wall"})
    _, whole = run(tmp_path, "--rewards", BRIGHTNESS)
    output = tmp_path / "out" / "scores.jsonl"
    content = output.read_text()
    output.write_text("".join(content.splitlines(keepends=True)[:2]) + '{"image": "2.p')
    capsys.readouterr()
    code, lines = run(tmp_path, "--rewards", BRIGHTNESS, "--resume")
    printed = capsys.readouterr().out
    assert (code, lines) == (0, whole)
    assert "2 of 5 pictures are scored already" in printed
    assert "│ 5 " in printed, "the summary is of all"
    code, _ = run(tmp_path, "--rewards", FUSSY, "--resume")
    assert code == 2
    assert "--resume goes on with the same rewards" in capsys.readouterr().err
    assert output.read_text() == content


def test_common_pictures_are_taken_as_rgb_when_asked_and_transparent_ones_never(tmp_path: Path) -> None:
    color = (10, 200, 30)
    rgb = Image.new("RGB", (8, 8), color)
    pictures = {
        "opaque.png": rgb.convert("RGBA"),
        "gray.png": Image.new("L", (8, 8), 77),
        "gray_alpha.png": Image.new("LA", (8, 8), (77, 255)),
        "bits.png": Image.new("1", (8, 8), 1),
        "palette.png": rgb.convert("P", palette=Image.Palette.ADAPTIVE),
        "still.gif": rgb.convert("P", palette=Image.Palette.ADAPTIVE),
        "print.jpg": rgb.convert("CMYK"),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
        with pytest.raises(ValueError, match="not RGB; convert it"):
            read_picture(tmp_path / name)
        pixels = read_picture(tmp_path / name, convert=True)
        assert (pixels.shape, pixels.dtype) == ((8, 8, 3), np.uint8)
    assert [read_picture(tmp_path / name, convert=True)[0, 0].tolist() for name in pictures][:4] == [
        list(color),
        [77] * 3,
        [77] * 3,
        [255] * 3,
    ]
    seen_through = Image.new("RGBA", (8, 8), (*color, 255))
    seen_through.putpixel((3, 3), (*color, 254))
    seen_through.save(tmp_path / "seen_through.png")
    hole = rgb.convert("P", palette=Image.Palette.ADAPTIVE)
    hole.save(tmp_path / "hole.png", transparency=0)
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    for name, reason in (("seen_through.png", "transparent"), ("hole.png", "transparent"), ("deep.png", "I;16")):
        with pytest.raises(ValueError, match=reason):
            read_picture(tmp_path / name, convert=True)


@pytest.mark.parametrize("size", [(1, 101), (3000, 1)])
def test_a_picture_that_is_all_length_is_refused_before_a_model_makes_gigabytes_of_it(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    Image.new("RGB", size).save(tmp_path / "long.png")
    with pytest.raises(ValueError, match="one side is more than 100 times the other"):
        read_picture(tmp_path / "long.png")
    Image.new("RGB", (1, 100)).save(tmp_path / "tall.png")
    assert read_picture(tmp_path / "tall.png").shape == (100, 1, 3)


def test_hidden_files_are_no_pictures(tmp_path: Path) -> None:
    for i, level in enumerate((0, 255)):
        save(tmp_path, f"{i}.png", level)
        (tmp_path / f"._{i}.png").write_bytes(b"\x00\x05\x16\x07 of a Mac")
    save(tmp_path, ".hidden.png", 7)
    write_prompts(tmp_path, {"prompt": "night"}, {"prompt": "noon"})
    code, lines = run(tmp_path, "--rewards", BRIGHTNESS)
    assert code == 0
    assert [(line["image"], line["prompt"]) for line in lines] == [("0.png", "night"), ("1.png", "noon")]


def test_a_picture_in_the_place_of_its_name_is_skipped(tmp_path: Path) -> None:
    one_picture(tmp_path)
    names = ("data:image/png;base64," + "A" * 5000, "a\0b.png", "0.png")
    prompts = write_prompts(tmp_path, *({"prompt": "dusk", "image": name} for name in names))
    pairs, skipped = match_pictures(prompts, tmp_path)
    assert [pair.name for pair in pairs] == ["0.png"]
    assert len(skipped) == 2
    assert len(str(skipped[0])) < 400


def test_all_that_was_skipped_is_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"prompt": "a", "image": f"{i}.png"} for i in range(30)]
    save(tmp_path, "0.png", 0)
    write_prompts(tmp_path, *records)
    code, lines = run(tmp_path, "--rewards", BRIGHTNESS)
    assert (code, len(lines)) == (1, 1)
    path = tmp_path / "out" / "scores.skipped.jsonl"
    skipped = [json.loads(line) for line in path.read_text().splitlines()]
    assert [entry["image"] for entry in skipped] == [f"prompts.jsonl:{i}" for i in range(2, 31)]
    assert all("there is no picture" in entry["reason"] for entry in skipped)
    printed = capsys.readouterr().out
    assert "and 9 more" in printed
    assert str(path) in printed


def test_options_and_kinds_are_set_on_the_command_line(tmp_path: Path) -> None:
    one_picture(tmp_path)
    code, lines = run(
        tmp_path,
        *("--rewards", "dark,light"),
        *("--set", f"dark.kind={BRIGHTNESS}", "--set", f"rewards.light.kind={BRIGHTNESS}"),
        *("--set", "light.scale=3.0", "--set", "light.batch_size=1"),
    )
    assert code == 0
    values = {name: score["value"] for name, score in lines[0]["scores"].items()}
    assert values == {"dark": pytest.approx(0.2), "light": pytest.approx(0.6)}


def test_a_config_may_hold_rewards_alone(tmp_path: Path) -> None:
    one_picture(tmp_path)
    path = tmp_path / "rewards.yaml"
    path.write_text(yaml.safe_dump({"rewards": [{"name": BRIGHTNESS, "options": {"scale": 2.0}}]}))
    code, lines = run(tmp_path, "--config", str(path))
    assert code == 0
    assert lines[0]["scores"][BRIGHTNESS]["value"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "hps.model=DIR"], "expected NAME.OPTION=VALUE with a NAME of"),
        (["--set", f"{BRIGHTNESS}.colour=red"], "does not take options {'colour': 'red'}"),
        (["--set", f"{BRIGHTNESS}.batch_size=0"], "batch_size: Input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_option_is_one_clear_line(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_picture(tmp_path)
    code, lines = run(tmp_path, "--rewards", BRIGHTNESS, *more)
    assert (code, lines) == (2, [])
    assert message in capsys.readouterr().err


def test_a_judge_without_its_server_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_picture(tmp_path)
    assert run(tmp_path, "--rewards", "vlm_judge")[0] == 2
    assert "'vlm_judge' does not take options {}: missing a required" in capsys.readouterr().err


def test_rewards_that_compare_or_read_plans_are_given_what_they_need(tmp_path: Path) -> None:
    records = []
    for prompt in range(30):
        for i in range(4):
            name = f"{prompt}-{i}.png"
            save(tmp_path, name, 40 * ((i + prompt) % 4))
            records.append({"prompt": f"wall {prompt}", "prompt_id": f"walls:{prompt}", "file": name})
            records[-1] |= {"plan": "a plan " * i, "level": 0.5 * i, "seed": 7}
    write_prompts(tmp_path, *records)
    ranks, plans, tags = f"{__name__}:Ranks", f"{__name__}:plan_words", f"{__name__}:tag"
    code, lines = run(tmp_path, "--rewards", f"{ranks},{plans},{tags}")
    assert code == 0
    assert [line["scores"][ranks]["value"] for line in lines] == [(i + p) % 4 for p in range(30) for i in range(4)]
    assert [line["scores"][plans]["value"] for line in lines] == [2.0 * i for _ in range(30) for i in range(4)]
    assert [line["scores"][tags]["value"] for line in lines] == [0.5 * i for _ in range(30) for i in range(4)]
    assert lines[5]["prompt_id"] == "walls:1"
    pairs, _ = match_pictures(tmp_path / "prompts.jsonl", tmp_path)
    assert pairs[1].prompt.metadata == {"level": 0.5}, "how it was drawn is not the prompt's"


def test_what_rollout_generate_drew_is_scored_as_in_training(tmp_path: Path) -> None:
    prompts = list(load_split("heldout", 8))
    writer = PictureWriter(tmp_path, {"model": "m", "temperature": 1.0, "seed": 0})
    expected = []
    for sequence, prompt in enumerate(prompts):
        request = GroupRequest(sequence, 0, prompt, 2, 1, 0)
        pictures = np.random.default_rng(sequence).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
        writer.write(GroupRollout(request, (make_trajectory(), make_trajectory()), "w", 0.0, 1.0), pictures)
        expected += [answer.value for answer in create_reward("shapes", {}, "cpu").score(pictures, [prompt] * 2)]  # type: ignore[union-attr]
    output = tmp_path / "scores.jsonl"
    files = ["--prompts", str(tmp_path / "images.jsonl"), "--images", str(tmp_path), "--output", str(output)]
    assert main(["--rewards", "shapes", *files]) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["scores"]["shapes"]["value"] for line in lines] == expected
    pairs, _ = match_pictures(tmp_path / "images.jsonl", tmp_path)
    assert [pair.prompt for pair in pairs] == [prompt for prompt in prompts for _ in range(2)]
