"""T2I-CompBench in small: a checkout with invented prompts, small random models, and what spaCy would find."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import DPTConfig, DPTForDepthEstimation

from rewards.benchmarks.compbench.benchmark import CATEGORIES, KINDS_OF_COMPLEX, LABELS
from rewards.benchmarks.compbench.plus import CATEGORIES as PLUS_CATEGORIES
from rewards.benchmarks.compbench.plus import NOUNS
from tests.tiny_clip import save_tiny_clip
from tests.unit.rewards.benchmarks.tiny_blip import save_tiny_blip
from tests.unit.rewards.benchmarks.tiny_unidet import read_record, weights_of

NUM_PROMPTS = 2
NAMES = ("cup", "sky", "road", "tree", "dog", "hat", "car", "sun", "bench", "ball", "bench, stool")
PROMPT = {
    "spatial": "a bench on the left of a car",
    "complex": "The red bench is next to the car",
    "numeracy": "one bench and two cars",
    "3d_spatial": "a bench in front of a car",
}
KINDS = {"bench": "NOUN", "car": "NOUN", "cars": "NOUN", "red": "ADJ"}


def write_checkout(folder: Path) -> Path:
    dataset = folder / "examples" / "dataset"
    dataset.mkdir(parents=True)
    for category in (*CATEGORIES, *PLUS_CATEGORIES):
        lines = prompts_of(category)
        (dataset / f"{category}_val.txt").write_text("".join(f"{line}\tdropped\r\n" for line in lines), newline="")
    for index, name in enumerate(KINDS_OF_COMPLEX):
        (dataset / name).write_text(f"{PROMPT['complex'].lower()} {index}.\r\n", newline="")
    (dataset / NOUNS).write_text("bench - benches\ncar - cars\n")
    (folder / LABELS).parent.mkdir(parents=True)
    torch.save({"labels": list(NAMES), "features": torch.zeros(len(NAMES), 2)}, folder / LABELS)
    return folder


def save_models(folder: Path) -> dict[str, Path]:
    """All models under official names, and what is found in the prompts; by setting."""
    save_tiny_blip(folder)
    save_tiny_clip(folder / "clip-vit-base-patch32", ["bench", "car"])
    torch.save({"model": weights_of(read_record()["R50"])}, folder / "Unified_learned_OCIM_RS200_6x+2x.pth")
    (folder / "parsed.json").write_text(json.dumps(parsed_prompts()))
    return {
        "blip": folder / "model_base_vqa_capfilt_large.pth",
        "unidet": folder / "Unified_learned_OCIM_RS200_6x+2x.pth",
        "tokenizer": folder / "bert",
        "clip": folder / "clip-vit-base-patch32",
        "parsed": folder / "parsed.json",
    }


def save_plus_models(folder: Path) -> dict[str, Path]:
    """Those of T2I-CompBench++."""
    torch.save({"model": weights_of(read_record()["R50"])}, folder / "Unified_learned_OCIM_R50_6x+2x.pth")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    necks = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8, "backbone_out_indices": [0, 1, 2, 3]}
    DPTForDepthEstimation(DPTConfig(image_size=64, **sizes, **necks)).save_pretrained(folder / "dpt-hybrid-midas")
    (folder / "parsed_pp.json").write_text(json.dumps(parsed_prompts()))
    return {
        "unidet": folder / "Unified_learned_OCIM_R50_6x+2x.pth",
        "depth": folder / "dpt-hybrid-midas",
        "parsed": folder / "parsed_pp.json",
    }


def prompts_of(category: str) -> list[str]:
    prompt = PROMPT.get(category, f"a red bench and a {category.replace('_', '-')} car")
    return [f"{prompt} {index}." for index in range(NUM_PROMPTS)]


def parsed_prompts() -> dict[str, dict[str, list[object]]]:
    """What spaCy would find."""
    return {
        prompt: {
            "chunks": ["a red bench", "the left", "the car"],
            "words": [[f"{word} ", KINDS.get(word, "X")] for word in prompt.split()],
        }
        for category in (*CATEGORIES, *PLUS_CATEGORIES)
        for prompt in prompts_of(category)
    }
