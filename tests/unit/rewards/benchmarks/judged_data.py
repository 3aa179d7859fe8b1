"""Invented data of the judged benchmarks, in the form of the official files, and scripts of the official form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCRIPT = '''
import openai
RULES = """Be strict."""

def ask(prompt_data, instruction, explanation, image_base64, image_b64):
    messages = [
        {"role": "system", "content": RULES},
        {"role": "user", "content": [
            {"type": "text", "text": f"TEXT"},
            {"type": "image_url", "image_url": {"url": f"data:image/FORMAT;base64,{PICTURE}"}},
        ]},
    ]
    return openai.ask(model="m", messages=messages)
'''
ECHO_TEXT = "Draw: {instruction} | {explanation}"
IMAGINE_TEXT = "P: {prompt_data['instruction']} E: {prompt_data['note']}"
WISE_TEXT = "P: {prompt_data['Prompt']} E: {prompt_data['Explanation']}"


def script(text: str, picture: str = "image_base64", form: str = "png") -> str:
    return SCRIPT.replace("TEXT", text).replace("FORMAT", form).replace("PICTURE", picture)


def write_data(folder: Path) -> dict[str, Path]:
    """Benchmark -> its invented data."""
    echo, wise = folder / "echo", folder / "wise"
    (echo / "test_scripts").mkdir(parents=True)
    for name in ("WISE_legacy/data", "data_verified"):
        (wise / name).mkdir(parents=True)
    tags = ("color_attr", "counting", "size_spatial_attr")
    records: list[Mapping[str, Any]] = [
        {
            "tag": tags[i % 3],
            "include": [{"class": "mug", "count": 1 + i, "color": "red", "region": "left", "size": "larger"}],
            "prompt": f"A photo of {i + 1} mugs",
        }
        for i in range(6)
    ]
    _lines(echo / "test_scripts" / "Geneval++.jsonl", records)
    (echo / "test_scripts" / "Eval-gpt-4.1-geneval++.py").write_text(script(ECHO_TEXT, "image_b64", "jpeg"))
    types = ("COLOR", "TIME", "COMBINATION", "Multi-Object", "SIZE", "MATERIAL")
    records = [
        {"id": i + 1, "instruction": f"A teapot of fur {i}", "note": f"note {i}", "type": types[i]} for i in range(6)
    ]
    _lines(echo / "test_scripts" / "Imagine.jsonl", records)
    (echo / "test_scripts" / "Eval-gpt-4.1-Imagine.py").write_text(script(IMAGINE_TEXT))

    def of(ids: tuple[int, ...]) -> str:
        return json.dumps(
            [
                {
                    "Prompt": f"Flower {i}",
                    "Explanation": f"tulip {i}",
                    "Category": "c",
                    "Subcategory": "p",
                    "prompt_id": i,
                }
                for i in ids
            ]
        )

    (wise / "WISE_legacy" / "data" / "cultural_common_sense.json").write_text(of((1, 2)))
    (wise / "WISE_legacy" / "data" / "spatio-temporal_reasoning.json").write_text(of((567, 568)))
    (wise / "WISE_legacy" / "data" / "natural_science.json").write_text(of((701, 1000)))
    (wise / "WISE_legacy" / "gpt_eval.py").write_text(script(WISE_TEXT))
    (wise / "data_verified" / "merge.json").write_text(of((1, 401, 521, 641, 761, 1000)))
    (wise / "vllm_eval.py").write_text(script(WISE_TEXT))
    return {"geneval_pp": echo, "imagine": echo / "test_scripts", "wise": wise, "wise_verified": wise}


def _lines(path: Path, records: list[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
