"""A small mPLUG in the folder of its authors, with the weights that the recorded outputs were made with; questions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

RECORD = Path(__file__).resolve().parents[3] / "data" / "mplug" / "record.json"
SPECIAL = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
END = 102


def read_record() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(RECORD.read_text())
    return record


def weight_of(name: str, shape: list[int]) -> Tensor:
    """Noise whose seed is the name's hash; the end of an answer is likelier than other tokens."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    values = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if name.endswith(("predictions.bias", "predictions.decoder.bias")):
        values[END] += 12
    is_norm = any(part in name for part in ("LayerNorm", "layer_norm", "ln_")) and name.endswith("weight")
    return torch.from_numpy(np.asarray(1 + 0.1 * values if is_norm else 0.15 * values, dtype=np.float32))


def write_mplug(folder: Path) -> Path:
    record = read_record()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(record["config"]))
    (folder / "config_bert.json").write_text(json.dumps(record["bert"]))
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *record["words"]]) + "\n")
    weights = {name: weight_of(name, shape) for name, shape in record["weights"]}
    tied = "text_decoder.cls.predictions"
    weights[f"{tied}.decoder.weight"] = weights["text_decoder.bert.embeddings.word_embeddings.weight"]
    weights[f"{tied}.decoder.bias"] = weights[f"{tied}.bias"]
    torch.save({"model": weights}, folder / "pytorch_model.bin")
    return folder


HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
)


def write_data(folder: Path) -> Path:
    (folder / "prompts").mkdir(parents=True)
    rows = []
    for number in range(8):
        key = f"{'park' if number % 2 else ''}{number}"
        (folder / "prompts" / f"{key}.txt").write_text(f"A long description of bench {number}.\n")
        rows.append(
            f'{key},"A long description, {number}",,1,0,entity,whole,"entity - whole (bench)",Is there a bench?'
        )
        rows.append(f'{key},,,2,1,attribute,color,"attribute - color (bench, red)",Is the bench red?')
        rows.append(
            f'{key},,,3,"1, 2",relation,spatial,"relation - spatial (bench, car)",Is the bench left of the car?'
        )
    (folder / "dpg_bench.csv").write_text(HEADER + "\n".join(rows) + "\n")
    return folder
