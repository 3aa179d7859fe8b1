"""OneIG-Bench's style: CSD as its authors run it, cosines with the nearest reference, and all of it end to end."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from rewards.benchmark import main
from rewards.benchmarks import make_benchmark
from rewards.benchmarks.encoding import as_grid, write_picture
from rewards.benchmarks.oneig.style import read_styled
from rewards.benchmarks.protocol import Graded
from rewards.loading.csd import load_csd
from rollout.records import UInt8Array
from tests.official_data import official
from tests.pictures import tiled_pictures
from tests.unit.rewards.benchmarks import tiny_style
from tests.unit.rewards.benchmarks.oneig_data import write_repository

HEADS = tiny_style.WIDTH // 64


def style_embedding(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """What CSD makes of pixels [B, 3, side, side], written down from CLIP's paper layer by layer: [B, e]."""

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    patches = functional.conv2d(pixels, weights["backbone.conv1.weight"], stride=tiny_style.PATCH)
    x = patches.flatten(2).transpose(1, 2)
    first = weights["backbone.class_embedding"].expand(len(x), 1, -1)
    x = norm("backbone.ln_pre", torch.cat([first, x], dim=1) + weights["backbone.positional_embedding"])
    for layer in range(tiny_style.LAYERS):
        prefix = f"backbone.transformer.resblocks.{layer}"
        one = {name.removeprefix(f"{prefix}."): weight for name, weight in weights.items()}
        attention = torch.nn.MultiheadAttention(tiny_style.WIDTH, HEADS, batch_first=True)
        names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
        attention.load_state_dict({name: one[f"attn.{name}"] for name in names})
        y = norm(f"{prefix}.ln_1", x)
        x = x + attention(y, y, y, need_weights=False)[0]
        y = functional.linear(norm(f"{prefix}.ln_2", x), one["mlp.c_fc.weight"], one["mlp.c_fc.bias"])
        y = y * torch.sigmoid(1.702 * y)
        x = x + functional.linear(y, one["mlp.c_proj.weight"], one["mlp.c_proj.bias"])
    style: Tensor = norm("backbone.ln_post", x[:, 0]) @ weights["last_layer_style"]
    return style


@torch.inference_mode()
def test_the_converted_csd_is_that_of_openais_layers(tmp_path: Path) -> None:
    weights = tiny_style.csd_weights()
    model = load_csd(str(tiny_style.save_csd(tmp_path / "checkpoint.pth")), "cpu")
    pixels = torch.randn(3, 3, tiny_style.SIDE, tiny_style.SIDE, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(
        model(pixel_values=pixels).image_embeds, style_embedding(weights, pixels), rtol=0, atol=1e-5
    )


def test_another_file_is_refused(tmp_path: Path) -> None:
    for change, message in (
        (lambda weights: weights.pop("last_layer_style"), "lacks last_layer_style"),
        (lambda weights: weights.pop("backbone.ln_post.bias"), r"lacks 1 weights, the first is .*post_layernorm\.bias"),
        (lambda weights: weights.update(text=torch.zeros(1)), "'text' is no weight of CSD"),
    ):
        weights = tiny_style.csd_weights()
        change(weights)
        torch.save({"model_state_dict": weights}, tmp_path / "checkpoint.pth")
        with pytest.raises(ValueError, match=message):
            load_csd(str(tmp_path / "checkpoint.pth"), "cpu")


@torch.inference_mode()
def cosines_by_hand(cell: UInt8Array, style: str, folder: Path) -> tuple[float, float]:
    """Of one cell by itself, as the official script goes about it."""
    with io.BytesIO() as file:
        Image.fromarray(cell).save(file, "JPEG", quality=75)
        seen = Image.open(file).convert("RGB")
        size = {"height": tiny_style.SIDE, "width": tiny_style.SIDE}
        processor = CLIPImageProcessorPil(size={"shortest_edge": tiny_style.SIDE}, crop_size=size)
        pixels = processor(images=seen, return_tensors="pt").pixel_values
    embedded = functional.normalize(style_embedding(tiny_style.csd_weights(), pixels), dim=1)
    references = torch.load(folder / "data/scripts/style/CSD_embed.pt", weights_only=True)[style]
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder / "OneIG-StyleEncoder", dtype=torch.bfloat16)
    other = functional.normalize(encoder(pixels.to(torch.bfloat16)).image_embeds, p=2, dim=-1)
    others = torch.load(folder / "data/scripts/style/SE_embed.pt", weights_only=True)[style]
    return torch.max(embedded @ references.T).item(), torch.max(other @ others.T).item()


def run(folder: Path, pictures: list[list[UInt8Array]]) -> tuple[int, dict[str, Any]]:
    data = write_repository(folder / "data")
    for item, cells in zip(make_benchmark("oneig_style").read_data(data).items, pictures, strict=True):
        write_picture(as_grid(cells), (folder / "images" / item.files[0]).with_suffix(".png"))
    models = (f"csd={tiny_style.save_csd(folder / 'checkpoint.pth')}",)
    models += (f"style_encoder={tiny_style.save_style_encoder(folder / 'OneIG-StyleEncoder')}",)
    settings = [text for setting in models for text in ("--scorer", setting)]
    where = ["--data", str(data), "--images", str(folder / "images"), "--output-dir", str(folder / "out")]
    code = main(["oneig_style", *where, *settings])
    return code, json.loads((folder / "out" / "oneig_style" / "results" / "oneig_style.json").read_text())


def test_it_runs_end_to_end_with_the_cosines_of_each_cell_by_itself(tmp_path: Path) -> None:
    cells = list(tiled_pictures(8, height=40, width=40))
    cells[6] = np.zeros_like(cells[6])  # one could not be drawn
    code, result = run(tmp_path, [cells[:4], cells[4:]])
    assert code == 0
    assert [(prompt["key"], prompt["tag"]) for prompt in result["prompts"]] == [
        ("anime-000", "comic"),
        ("anime-001", "pixel_art"),
    ]
    lines = (tmp_path / "out/oneig_style/answers/oneig_style.jsonl").read_text().splitlines()
    means = []
    for line, own, style in zip(map(json.loads, lines), (cells[:4], cells[4:]), ("comic", "pixel_art"), strict=True):
        drawn = [cell for cell in own if cell.any()]
        by_hand = [cosines_by_hand(cell, style, tmp_path) for cell in drawn]
        found = [(cell["csd"], cell["se"]) for cell in line["answer"]["cells"]]
        assert line["answer"]["num_black"] == 4 - len(drawn)
        assert [csd for csd, _ in found] == pytest.approx([csd for csd, _ in by_hand], abs=1e-5)
        assert [se for _, se in found] == pytest.approx([se for _, se in by_hand], abs=2**-7)  # bfloat16
        means.append(sum((max(csd, 0) + max(se, 0)) / 2 for csd, se in found))
    measures = {name: measure["value"] for name, measure in result["measures"].items()}
    assert measures["style"] == pytest.approx((means[0] / 4 + means[1] / 3) / 2)
    assert measures["style_corrected"] == pytest.approx((means[0] / 4 + means[1] / 4) / 2)
    assert set(result["scorer"]["csd"]) == {"checkpoint.pth"}


def test_a_negative_cosine_counts_nought_and_a_missing_picture_too(tmp_path: Path) -> None:
    benchmark = make_benchmark("oneig_style")
    items = benchmark.read_data(write_repository(tmp_path)).items
    answer = {"cells": [{"csd": -0.5, "se": 0.5}] * 4, "num_black": 0}
    values = benchmark.grade(items[0], answer)
    assert values["score"] == 0.25
    black = benchmark.grade(items[1], {"cells": [], "num_black": 4})
    measures = {
        name: {measure.name: measure.value() for measure in benchmark.measures(graded)}
        for name, graded in {
            "black": [Graded(items[0], (values,)), Graded(items[1], (black,))],
            "missing": [Graded(items[0], (values,)), Graded(items[1], (None,))],
        }.items()
    }
    assert measures["black"] == {"style": 0.25, "style_corrected": 0.125}
    assert measures["missing"] == {"style": 0.125, "style_corrected": 0.125}


def test_wrong_input_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_repository(tmp_path / "data")
    (tmp_path / "images").mkdir()
    where = ["--images", str(tmp_path / "images"), "--output-dir", str(tmp_path / "out")]
    assert main(["oneig_style", *where, "--data", str(data)]) == 2
    assert "oneig_style needs --scorer csd=…: CSD's checkpoint.pth" in capsys.readouterr().err
    (data / "scripts/style/SE_embed.pt").unlink()
    assert main(["oneig_style", *where, "--data", str(data), "--scorer", "csd=x.pth"]) == 2
    assert "lacks scripts/style/SE_embed.pt" in capsys.readouterr().err


def test_the_official_files_are_read_in_full() -> None:
    folder = official("oneig_bench")
    items = read_styled(folder)
    assert (len(items), len({item.tag for item in items})) == (114, 29)
