"""DreamSim's ensemble: equal to the authors' own code on small weights under their names; other files are refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rewards.benchmarks.oneig.diversity import RELEASE, find_release
from rewards.loading.dreamsim import DreamSim
from rollout.records import UInt8Array
from tests.pictures import tiled_pictures
from tests.unit.rewards.benchmarks.tiny_dreamsim import save_dreamsim

RECORD = json.loads((Path(__file__).parents[3] / "data" / "dreamsim" / "record.json").read_text())
SIZES = ((50, 70), (400, 300))
"""Height and width of the recorded pictures: enlarged, and made smaller."""


CLIP, ADAPTER, ADAPTER_CONFIG = (RELEASE[part] for part in ("clip", "adapter", "adapter_config"))


def load(folder: Path) -> DreamSim:
    return DreamSim(find_release(folder), "cpu")


def through_jpeg(picture: UInt8Array) -> UInt8Array:
    with io.BytesIO() as file:
        Image.fromarray(picture).save(file, "JPEG")
        return np.asarray(Image.open(file))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dreamsim(tmp_path_factory.mktemp("dreamsim") / "models")


def test_distances_are_those_of_the_authors_code(release: Path) -> None:
    model = load(release)
    for number, (height, width) in enumerate(SIZES):
        pictures = np.stack([through_jpeg(picture) for picture in tiled_pictures(4, height, width)])
        embedded = model.embed(pictures)
        recorded = torch.tensor(RECORD["embeddings"][4 * number : 4 * number + 4])
        torch.testing.assert_close(embedded[:, ::16], recorded, rtol=0, atol=2e-6)
        distances = [1 - float(one @ other) for one, other in combinations(embedded, 2)]
        assert distances == pytest.approx(RECORD["distances"][number], abs=2e-6)


def test_a_bias_of_clips_patches_counts(tmp_path: Path) -> None:
    """The authors' form has one. CLIP has none, so that the recorded one is zero."""
    plain = load(save_dreamsim(tmp_path / "plain", width=64, layers=1))
    folder = save_dreamsim(tmp_path / "moved", width=64, layers=1)
    content = torch.load(folder / CLIP)
    bias, positions = (content["state_dict"][name] for name in ("patch_embed.proj.bias", "pos_embed"))
    moved = torch.linspace(-1, 1, len(bias))
    bias += moved
    pictures = tiled_pictures(2)
    torch.save(content, folder / CLIP)
    assert not torch.allclose(load(folder).embed(pictures), plain.embed(pictures), atol=1e-3)
    positions[:, 1:] -= moved
    torch.save(content, folder / CLIP)
    torch.testing.assert_close(load(folder).embed(pictures), plain.embed(pictures), rtol=0, atol=1e-6)


def rewrite(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))
        elif path.suffix == ".safetensors":
            content = load_file(path)
            change(content)
            save_file(content, path)
        else:
            content = torch.load(path)
            change(content["state_dict"])
            torch.save(content, path)

    return apply


ATTENTION = "base_model.model.extractor_list.1.model.blocks.0.attn.qkv.lora_"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rewrite(ADAPTER_CONFIG, lambda config: config.update(use_dora=True)), "no plain LoRA use_dora"),
        (rewrite(ADAPTER_CONFIG, lambda config: config.update(r=8)), "has not A and B of rank 8"),
        (
            rewrite(ADAPTER, lambda weights: weights.pop(f"{ATTENTION}B.weight")),
            "of tower 1 has not A and B",
        ),
        (rewrite(ADAPTER, lambda weights: weights.update(other=torch.zeros(1))), "'other' is no low-rank weight"),
        (
            rewrite(CLIP, lambda weights: weights.pop("blocks.0.attn.qkv.weight")),
            "adapter changes blocks.0.attn.qkv",
        ),
        (rewrite(CLIP, lambda weights: weights.pop("norm.bias")), "lacks 1 weights, .*post_layernorm.bias"),
        (rewrite(CLIP, lambda weights: weights.update(text=torch.zeros(1))), "'text' is no weight of a tower"),
    ],
)
def test_other_files_are_refused(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    folder = save_dreamsim(tmp_path / "models", width=64, layers=1)
    change(folder)
    with pytest.raises((OSError, ValueError), match=message):
        load(folder)
