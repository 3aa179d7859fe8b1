"""T2I-CompBench: BLIP-VQA as its authors run it, products over noun chunks, raw cosines; and all of it end to end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import ConfigError, DataError, RewardError
from rewards.benchmark import main
from rewards.benchmarks import make_benchmark
from rewards.benchmarks.compbench import objects
from rewards.benchmarks.compbench.benchmark import CATEGORIES, read_category
from rewards.benchmarks.compbench.language import GivenLanguage, SpacyLanguage, choose_chunks, question_of
from rewards.benchmarks.compbench.numeracy import Nouns
from rewards.benchmarks.compbench.objects import read_labels
from rewards.benchmarks.compbench.scorer import product_of
from rewards.benchmarks.compbench.spatial import outer_nouns
from rewards.benchmarks.protocol import ScorerOptions
from rewards.loading.blip_vqa import load_blip_vqa, yes_probabilities
from rewards.objects.unidet import detector
from tests.official_data import official
from tests.pictures import tiled_pictures
from tests.unit.rewards.benchmarks.tiny_blip import (
    IMAGE_SIZE,
    VOCABULARY,
    tiny_blip_vqa,
    tokenizer,
)
from tests.unit.rewards.benchmarks.tiny_compbench import save_models, save_plus_models, write_checkout
from tests.unit.rewards.benchmarks.worlds import write_all

QUESTIONS = ["a red bench?", "the round blue metal bowl and car?", "a car?"]


BOX = [0, 0, 50, 50]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_models(tmp_path_factory.mktemp("models"))


def test_each_answer_is_that_of_the_original_worked_out_alone(models: dict[str, Path]) -> None:
    model = load_blip_vqa(str(models["blip"]), "float32", "cpu")
    pixels = torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    given = yes_probabilities(model, tokenizer(models["tokenizer"].parent), pixels, QUESTIONS)
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


def test_the_positions_are_the_files_own_and_not_interpolated(models: dict[str, Path]) -> None:
    model = load_blip_vqa(str(models["blip"]), "float32", "cpu")
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
    language = SpacyLanguage()
    assert language.chunks("a green bench and a blue bowl on the side of the red car") == [
        "a green bench",
        "a blue bowl",
        "the red car",
    ]
    assert language.source.startswith("spaCy 3.")


def run(name: str, settings: Mapping[str, Path], folder: Path) -> tuple[int, dict[str, Any]]:
    data = write_checkout(folder / "checkout")
    items = make_benchmark(name).read_data(data).items
    pictures = tiled_pictures(10 * len(items), height=40, width=40)
    write_all(items, folder / "images", lambda item, number: pictures[10 * items.index(item) + number])
    chosen = [text for key, value in settings.items() for text in ("--scorer", f"{key}={value}")]
    fixed = ["--data", str(data), "--images", str(folder / "images"), "--output-dir", str(folder / "out")]
    code = main([name, *fixed, *chosen])
    (path,) = (folder / "out" / name / "results").iterdir()
    return code, json.loads(path.read_text())


def answers_of(folder: Path, name: str, category: str) -> list[dict[str, Any]]:
    (path,) = (folder / "out" / name / "answers").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["answer"] for line in lines if line["file"].startswith(f"{category}/")]


@pytest.fixture
def _small_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are of 64 pixels to the detector and to the depth estimator, which saves most of the time."""
    monkeypatch.setattr(objects, "DEPTH_SIDE", 64)
    monkeypatch.setattr(detector, "SHORT_SIDE", 63)
    monkeypatch.setattr(detector, "LONG_SIDE", 64)


@pytest.mark.usefixtures("_small_frame")
def test_it_runs_end_to_end(models: dict[str, Path], tmp_path: Path) -> None:
    code, result = run("t2i_compbench", models, tmp_path)
    assert code == 0
    assert list(result["measures"]) == ["overall", *CATEGORIES, "spatial_corrected"]
    assert (result["metric"], result["num_files"]) == ("t2i_compbench", 120)
    assert result["scorer"]["language"] == "parsed.json"
    for answer in answers_of(tmp_path, "t2i_compbench", "color"):
        assert [chunk for chunk, _ in answer["chunks"]] == ["a red bench", "the car"]
    assert all(-1 <= answer["cosine"] <= 1 for answer in answers_of(tmp_path, "t2i_compbench", "non_spatial"))
    spatial = answers_of(tmp_path, "t2i_compbench", "spatial")
    assert any(answer["objects"] for answer in spatial)
    assert all(answer["nouns"] == ["bench", "car"] and answer["in_reach"] for answer in spatial)
    for answer in answers_of(tmp_path, "t2i_compbench", "complex"):
        assert set(answer) == {"chunks", "cosine", "objects", "nouns", "in_reach"}
    mean = sum(result["measures"][category]["value"] for category in CATEGORIES) / len(CATEGORIES)
    assert result["measures"]["overall"]["value"] == pytest.approx(mean)
    names = [path.name for path in (tmp_path / "images" / "color" / "samples").iterdir()]
    assert "a red bench and a color car 1._000013.png" in names


@pytest.mark.usefixtures("_small_frame")
def test_numeracy_and_3d_run_end_to_end(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    code, result = run("t2i_compbench_pp", save_plus_models(tmp_path / "models"), tmp_path)
    assert code == 0
    assert list(result["measures"]) == ["numeracy", "3d_spatial", "3d_spatial_corrected"]
    assert (result["metric"], result["num_files"]) == ("t2i_compbench_pp", 40)
    for answer in answers_of(tmp_path, "t2i_compbench_pp", "numeracy"):
        assert answer["wanted"] == [["bench", 1], ["car", 2]]
    seen = [one for answer in answers_of(tmp_path, "t2i_compbench_pp", "3d_spatial") for one in answer["objects"]]
    assert any(one["depth"] is not None and 0 <= one["depth"] <= 1 for one in seen)


def test_a_complex_prompt_is_scored_by_what_it_is_about(tmp_path: Path) -> None:
    benchmark = make_benchmark("t2i_compbench")
    items = [one for one in benchmark.read_data(write_checkout(tmp_path / "checkout")).items if one.tag == "complex"]
    assert [item.record["parts"] for item in items] == [("attributes", "spatial"), ("action", "attributes")]
    bench, car = ({"label": name, "score": 1.0, "box": box} for name, box in (("bench", BOX), ("car", BOX)))
    answer = {"chunks": [["x", 0.5]], "cosine": 0.3, "objects": [bench, car], "nouns": ["bench", "car"]}
    answer["in_reach"] = True
    assert [benchmark.grade(item, answer)["score"] for item in items] == [0.75, pytest.approx(0.4)]
    everything = replace(items[0], record={"parts": ("action", "attributes", "spatial")})
    assert benchmark.grade(everything, answer)["score"] == pytest.approx(0.6)
    with pytest.raises(RewardError, match="lacks what this category is scored by"):
        benchmark.grade(items[0], {"cosine": 0.3})


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    benchmark = make_benchmark("t2i_compbench")
    with pytest.raises(ConfigError, match="needs --scorer blip=…: the authors' file"):
        benchmark.variant(ScorerOptions())
    settings = {"blip": "model_base_vqa_capfilt_large.pth", "unidet": "other.pth"}
    assert benchmark.variant(ScorerOptions(settings=settings)) == {"unidet": "other.pth"}
    with pytest.raises(ConfigError, match=r"lacks UniDet_eval/dataset/detection_features\.pt, the detector's labels"):
        benchmark.variant(ScorerOptions(settings=settings, data=tmp_path))
    (tmp_path / "color_val.txt").write_text("a b_c\n")
    with pytest.raises(DataError, match=r"color_val\.txt:1: 'a b_c' is empty, or holds / or _"):
        read_category("color", tmp_path / "color_val.txt")
    (tmp_path / "color_val.txt").write_text("a bench\n")
    with pytest.raises(DataError, match=r"lacks shape_val\.txt"):
        benchmark.read_data(tmp_path)
    (tmp_path / "parsed.json").write_text(json.dumps({"a bench": {"chunks": []}}))
    with pytest.raises(DataError, match=r"parsed\.json lacks the words of the prompt 'a bench'"):
        GivenLanguage(tmp_path / "parsed.json").words("a bench")
    torch.save({"labels": [1]}, tmp_path / "labels.pt")
    with pytest.raises(DataError, match=r"labels\.pt holds no labels"):
        read_labels(tmp_path / "labels.pt")


@pytest.mark.parametrize(("name", "num_prompts"), [("t2i_compbench", 1800), ("t2i_compbench_pp", 600)])
def test_the_official_prompts_are_read_in_full(name: str, num_prompts: int) -> None:
    data = make_benchmark(name).read_data(official("t2i_compbench"))
    assert len(data.items) == num_prompts
    assert sum(item.num_pictures for item in data.items) == 10 * num_prompts
    assert not data.departures
    assert max(len(Path(item.files[0]).name.encode()) for item in data.items) < 255
    kinds = Counter(item.record["parts"] for item in data.items if item.tag == "complex")
    assert sorted(kinds.values()) == ([30, 58, 212] if kinds else [])


def test_every_official_prompt_names_what_to_look_for() -> None:
    pytest.importorskip("spacy", reason="spaCy comes with the extra `benchmarks`")
    language = SpacyLanguage()
    folder = official("t2i_compbench")
    nouns = Nouns(folder / "new_objects.txt")
    for item in make_benchmark("t2i_compbench_pp").read_data(folder).items:
        words = language.words(item.prompt)
        assert nouns.wanted(words) if item.tag == "numeracy" else len(outer_nouns(words)) == 2
