"""`python -m rewards.benchmark` draws with the real engine, scores, and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from configs.schema import TinyJanusConfig
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rewards.benchmark import main
from rollout.shapes.world import VOCABULARY

TRAINED = Path(__file__).resolve().parents[2] / "configs" / "tiny_janus"
LIMIT = 6


def benchmark(model: Path, output_dir: Path, *options: str) -> tuple[int, dict[str, Any]]:
    fixed = ["--engine", "transformers", "--device", "cpu", "--limit", str(LIMIT), "--max-cot-tokens", "24"]
    code = main(["shapes", "--model", str(model), "--output-dir", str(output_dir), *fixed, *options])
    path = output_dir / "shapes" / "results" / "shapes.json"
    return code, json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output_dir = tmp_path_factory.mktemp("trained")
    code, result = benchmark(TRAINED, output_dir, "--temperature", "0.3")
    assert code == 0
    return output_dir, result


def test_the_trained_tiny_janus_scores_between_a_rendered_picture_and_an_untrained_one(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    save_random_tiny_janus(tmp_path / "untrained", TinyJanusConfig(), VOCABULARY)
    code, untrained = benchmark(tmp_path / "untrained", tmp_path / "out", "--no-cot")
    assert code == 0
    low, high = (result["measures"]["overall"]["value"] for result in (untrained, trained[1]))
    assert 0.0 <= low + 0.2 < high < 1.0
    assert untrained["pictures"]["rewriter"] == "none"


def test_the_result_says_what_it_was_made_with(trained: tuple[Path, dict[str, Any]]) -> None:
    output_dir, result = trained
    pictures = result["pictures"]
    assert (pictures["seed"], pictures["temperature"], pictures["rewriter"]) == (0, 0.3, "semantic CoT")
    assert set(pictures["weights"]) == {"model.safetensors"}
    assert pictures["guidance_scale"] > 1
    assert (result["num_prompts"], result["num_files"]) == (LIMIT, LIMIT * 4)
    lines = [json.loads(line) for line in (output_dir / "shapes" / "drawn.jsonl").read_text().splitlines()]
    assert len(lines) == LIMIT * 4
    assert all(line["plan"] for line in lines)


def test_a_lost_picture_is_drawn_again_as_it_was_and_nothing_else_is_done_again(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    output_dir, result = trained
    folder = output_dir / "shapes"
    files = sorted((folder / "images").rglob("*.png"))
    before = {path: (path.read_bytes(), path.stat().st_ino) for path in files}
    key, number = files[1].parts[-3], int(files[1].stem)
    files[1].unlink()
    (folder / "drawn" / key / f"{number}.png").unlink()
    answers = (folder / "answers" / "shapes.jsonl").read_bytes()
    code, again = benchmark(TRAINED, output_dir, "--temperature", "0.3")
    assert code == 0
    assert {path: path.read_bytes() for path in files} == {path: content for path, (content, _) in before.items()}
    assert all(path.stat().st_ino == before[path][1] for path in files if path != files[1])
    assert (folder / "answers" / "shapes.jsonl").read_bytes() == answers
    assert again["measures"] == result["measures"]


def test_other_settings_do_not_join_a_folder_that_was_begun(
    trained: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = benchmark(TRAINED, trained[0], "--temperature", "0.5")
    assert code == 2
    assert "was begun with temperature 0.3, not 0.5" in capsys.readouterr().err
