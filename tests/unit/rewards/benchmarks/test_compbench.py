"""T2I-CompBench: BLIP-VQA as its authors run it, products over noun chunks, raw cosines; and all of it end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import ConfigError, DataError
from rewards.benchmark import main
from rewards.benchmarks import make_benchmark
from rewards.benchmarks.compbench.benchmark import CATEGORIES, read_category
from rewards.benchmarks.compbench.chunks import SpacyChunks, choose_chunks, question_of
from rewards.benchmarks.compbench.scorer import product_of
from rewards.benchmarks.protocol import ScorerOptions
from rewards.loading.blip_vqa import load_blip_vqa, yes_probabilities
from tests.official_data import official
from tests.pictures import tiled_pictures
from tests.tiny_clip import save_tiny_clip
from tests.unit.rewards.benchmarks.tiny_blip import (
    IMAGE_SIZE,
    VOCABULARY,
    save_tiny_blip,
    tiny_blip_vqa,
    tokenizer,
    write_prompts,
)
from tests.unit.rewards.benchmarks.worlds import write_all

QUESTIONS = ["a red bench?", "the round blue metal bowl and car?", "a car?"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_blip(tmp_path_factory.mktemp("models"))
    save_tiny_clip(folder / "clip-vit-base-patch32", ["bench", "car"])
    return folder


def test_each_answer_is_that_of_the_original_worked_out_alone(models: Path) -> None:
    model = load_blip_vqa(str(models / "model_base_vqa_capfilt_large.pth"), "float32", "cpu")
    pixels = torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    given = yes_probabilities(model, tokenizer(models), pixels, QUESTIONS)
    original = tiny_blip_vqa()
    for row, question in enumerate(QUESTIONS):
        words = question.replace("?", " ?").split()
        ids = torch.tensor([[VOCABULARY["[ENC]"], *(VOCABULARY[word] for word in words), VOCABULARY["[SEP]"]]])
        with torch.no_grad():
            seen = original.vision_model(pixels[row : row + 1]).last_hidden_state
            asked = original.text_encoder(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
            start = torch.tensor([[VOCABULARY["[DEC]"]]])
            logits = original.text_decoder(input_ids=start, encoder_hidden_states=asked).logits[0, 0]
        yes, no = (logits[VOCABULARY[word]].exp() for word in ("yes", "no"))
        assert given[row].item() == pytest.approx((yes / (yes + no)).item(), abs=1e-5)
    assert given.std() > 0.01


def test_the_positions_are_the_files_own_and_not_interpolated(models: Path) -> None:
    model = load_blip_vqa(str(models / "model_base_vqa_capfilt_large.pth"), "float32", "cpu")
    assert model.config.vision_config.image_size == IMAGE_SIZE
    assert torch.equal(
        model.vision_model.embeddings.position_embedding, tiny_blip_vqa().vision_model.embeddings.position_embedding
    )


def test_another_file_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"visual_encoder.cls_token": torch.zeros(1, 1, 4)}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds nothing under text_encoder"):
        load_blip_vqa(str(tmp_path / "x.pth"), "float32", "cpu")


def test_questions_and_chunks_are_as_in_the_official_script() -> None:
    assert question_of('A "Red" (round) bench.') == "a red round bench?"
    assert question_of("x " * 60).split() == ["x"] * 50
    found = ["a bench", "the side", "top", "the left", "the right", *"abcdefghij"]
    assert choose_chunks(found) == ["a bench", *"abcdefg"]


def test_a_pictures_score_is_the_product_to_four_digits() -> None:
    assert product_of([]) == 1.0
    assert product_of([0.55555, 0.9]) == pytest.approx(0.5, abs=1e-4)
    assert product_of([0.12344, 0.5]) == 0.0617


def test_spacy_finds_the_noun_chunks() -> None:
    pytest.importorskip("spacy", reason="spaCy comes with the extra `benchmarks`")
    chunks = SpacyChunks()
    assert chunks("a green bench and a blue bowl on the side of the red car") == [
        "a green bench",
        "a blue bowl",
        "the red car",
    ]
    assert chunks.source.startswith("spaCy 3.")


def run(models: Path, folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    data = write_prompts(folder)
    items = make_benchmark("t2i_compbench").read_data(data).items
    chunks = {item.prompt: ["a red bench", "the left", "the car"] for item in items}
    (folder / "chunks.json").write_text(json.dumps(chunks))
    pictures = tiled_pictures(80, height=40, width=40)
    write_all(items, folder / "images", lambda item, number: pictures[10 * items.index(item) + number])
    chosen = [
        f"blip={models / 'model_base_vqa_capfilt_large.pth'}",
        f"tokenizer={models / 'bert'}",
        f"clip={models / 'clip-vit-base-patch32'}",
        f"chunks={folder / 'chunks.json'}",
    ]
    settings = [text for setting in (*chosen, *options) for text in ("--scorer", setting)]
    fixed = ["--data", str(data), "--images", str(folder / "images"), "--output-dir", str(folder / "out")]
    code = main(["t2i_compbench", *fixed, *settings])
    (path,) = (folder / "out" / "t2i_compbench" / "results").iterdir()
    return code, json.loads(path.read_text())


def test_it_runs_end_to_end(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(models, tmp_path)
    assert code == 0
    assert list(result["measures"]) == list(CATEGORIES)
    assert (result["metric"], result["num_files"]) == ("t2i_compbench", 80)
    assert result["scorer"]["chunks"] == "chunks.json"
    assert "spatial, numeracy, 3d_spatial and complex are not scored" in capsys.readouterr().out.replace("\n", " ")
    (path,) = (tmp_path / "out" / "t2i_compbench" / "answers").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    asked = [line["answer"]["chunks"] for line in lines if "chunks" in line["answer"]]
    assert {tuple(chunk for chunk, _ in chunks) for chunks in asked} == {("a red bench", "the car")}
    assert all(-1 <= line["answer"]["cosine"] <= 1 for line in lines if "cosine" in line["answer"])
    names = [path.name for path in (tmp_path / "images" / "color" / "samples").iterdir()]
    assert "a red bench and a color car 1._000013.png" in names


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    benchmark = make_benchmark("t2i_compbench")
    with pytest.raises(ConfigError, match="needs --scorer blip=…: the authors' file"):
        benchmark.variant(ScorerOptions())
    (tmp_path / "color_val.txt").write_text("a b_c\n")
    with pytest.raises(DataError, match=r"color_val\.txt:1: 'a b_c' is empty, or holds / or _"):
        read_category("color", tmp_path / "color_val.txt")
    (tmp_path / "color_val.txt").write_text("a bench\n")
    with pytest.raises(DataError, match=r"lacks shape_val\.txt"):
        benchmark.read_data(tmp_path)


def test_the_official_prompts_are_read_in_full() -> None:
    data = make_benchmark("t2i_compbench").read_data(official("t2i_compbench"))
    assert len(data.items) == 1200
    assert sum(item.num_pictures for item in data.items) == 12000
    assert len(data.departures) == 1
    assert max(len(Path(item.files[0]).name.encode()) for item in data.items) < 255
