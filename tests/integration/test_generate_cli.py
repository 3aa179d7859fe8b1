"""`python -m rollout.generate` draws, says what it drew, and refuses wrong input in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs.schema import TinyJanusConfig
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.generate import main
from rollout.prompts.conversation import ConversationFormat

PROJECT_ROOT = Path(__file__).resolve().parents[2]
# Heads of 32: vLLM on CPU takes no smaller ones.
CONFIG = TinyJanusConfig(
    hidden_size=64, num_heads=2, num_layers=2, num_codes=32, image_size=16, patch_size=4, max_positions=64
)
WORDS = ["red", "blue", "circle", "star", "top", "left"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_random_tiny_janus(folder, CONFIG, WORDS)
    ConversationFormat(system_prompt="", instruction="{prompt}").save(folder)
    return folder


def generate(folder: Path, output_dir: Path, *options: str) -> int:
    return main(arguments(folder, output_dir, "--engine", "transformers", *options))


def arguments(folder: Path, output_dir: Path, *options: str) -> list[str]:
    fixed = {"--model": str(folder), "--output-dir": str(output_dir), "--device": "cpu", "--max-cot-tokens": "8"}
    return [*(text for option in fixed.items() for text in option), *options]


def manifest(output_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (output_dir / "images.jsonl").read_text().splitlines()]


def pixels(output_dir: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(output_dir.glob("*.png"))]


def test_pictures_plans_and_paths_are_written_and_shown(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    code = generate(folder, tmp_path, "--prompt", "Red star!", "--num-images", "4", "--images-per-cot", "2")
    shown = capsys.readouterr().out
    lines = manifest(tmp_path)
    assert code == 0
    assert [line["file"] for line in lines] == [f"0000-red-star-{number}.png" for number in range(4)]
    assert {line["guidance_scale"] for line in lines} == {2.0}, "the checkpoint's own"
    assert lines[0]["plan"] == lines[1]["plan"] != lines[2]["plan"]
    assert [picture.shape for picture in pixels(tmp_path)] == [(16, 16, 3)] * 4
    for line in lines:
        assert str(tmp_path / str(line["file"])) in shown
        assert f"plan: {line['plan']}" in shown
    assert shown.count("plan:") == 2


def test_the_seed_decides_the_pictures(folder: Path, tmp_path: Path):
    for name, seed in (("one", "1"), ("again", "1"), ("two", "2")):
        assert generate(folder, tmp_path / name, "--prompt", "red star", "--num-images", "2", "--seed", seed) == 0
    one, again, two = (pixels(tmp_path / name) for name in ("one", "again", "two"))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, two)


def test_a_second_call_into_the_same_folder_keeps_the_pictures_of_the_first(folder: Path, tmp_path: Path):
    for seed in ("0", "1"):
        assert generate(folder, tmp_path, "--prompt", "red star", "--num-images", "2", "--seed", seed) == 0
    files = [line["file"] for line in manifest(tmp_path)]
    assert files == [f"000{place}-red-star-{number}.png" for place in (0, 1) for number in (0, 1)]
    assert {path.name for path in tmp_path.glob("*.png")} == set(files)


def test_a_file_of_prompts_is_drawn_without_plans(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "red star"}\n{"prompt": 5}\n{"prompt": "blue circle"}\n')
    code = generate(
        folder, tmp_path / "out", "--prompts", str(prompts), "--num-images", "1", "--no-cot", "--guidance-scale", "3"
    )
    shown = capsys.readouterr().out
    assert code == 0
    assert "1 bad records are skipped" in shown
    assert "plan:" not in shown
    lines = sorted(manifest(tmp_path / "out"), key=lambda line: str(line["file"]))
    assert [(line["prompt"], line["plan"], line["guidance_scale"]) for line in lines] == [
        ("red star", "", 3.0),
        ("blue circle", "", 3.0),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "red " * 60], "takes 64 tokens with the words around it, at most 40 are allowed"),
        (["--prompt", " "], "missing or empty"),
        (["--prompt", "red \udcff"], "half a character"),
        (["--prompt", "<begin_of_image>"], "nothing but special tokens"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--prompt", "red", "--model", "./nowhere"], "model './nowhere': no such folder"),
        (["--prompt", "red", "--device", "cuda"], "no CUDA GPU"),
        (["--prompt", "red", "--output-dir", __file__], "cannot be made"),
    ],
)
def test_wrong_input_ends_with_code_2_and_one_line(
    folder: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    if "cuda" in options:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("needs a machine without a GPU")
    assert generate(folder, tmp_path / "out", *options) == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1
    assert not (tmp_path / "out" / "images.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--guidance-scale", "0.5"], "'0.5' is not a number of 1 or more"),
        (["--temperature", "nan"], "'nan' is not a number"),
        (["--num-images", "0"], "'0' is not a whole number of 1 or more"),
        (["--num-images", "4", "--images-per-cot", "3"], "--num-images 4 is no multiple of --images-per-cot 3"),
        (["--prompts", "file.txt"], "not allowed with argument --prompt"),
    ],
)
def test_a_wrong_option_is_named(options: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--model", "somewhere", "--prompt", "red", *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def command(folder: Path, output_dir: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "rollout.generate", *arguments(folder, output_dir, *options)]


def test_ctrl_c_ends_without_a_traceback(folder: Path, tmp_path: Path):
    process = subprocess.Popen(
        command(folder, tmp_path, "--engine", "transformers", "--prompts", "shapes:train:400", "--num-images", "1"),
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # something has been drawn
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert complaint.startswith("interrupted;")
    assert "Traceback" not in complaint
    for line in manifest(tmp_path):
        Image.open(tmp_path / str(line["file"])).load()


def test_the_fast_engine_draws_too(folder: Path, tmp_path: Path):
    done = subprocess.run(
        command(folder, tmp_path, "--engine", "vllm", "--prompt", "red star", "--num-images", "4"),
        cwd=PROJECT_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert len(manifest(tmp_path)) == len(pixels(tmp_path)) == 4
    assert done.stderr == "", "libraries say nothing that is no fault"
