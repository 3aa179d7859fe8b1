"""A repository of OneIG-Bench's form with invented prompts, and a judge that answers as it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.judge_server import reply
from tests.unit.rewards.benchmarks.tiny_style import write_references

SCRIPT = """
class Inferencer:
    def __init__(self):
        self.TEXT = (
            "Read " "it."
        )

    def infer_semantic(self, images_path, question):
        messages = []
        for image_path in images_path:
            messages.append([{"role": "user", "content": [
                {"type": "image", "image": image_path}, {"type": "text", "text": f"{question} Yes/No."}]}])
        return messages

    def infer_ocr(self, images_path, max_new_tokens=128):
        messages = []
        for image_path in images_path:
            messages.append([{"role": "user", "content": [
                {"type": "image", "image": image_path}, {"type": "text", "text": self.TEXT}]}])
        return messages
"""


def write_repository(folder: Path) -> Path:
    rows = ["category,id,prompt_en,type,prompt_length,class"]
    rows += [
        f"{category},00{i},A prompt {i},NP,short," for category in ("Portrait", "General_Object") for i in range(2)
    ]
    rows += [f"Anime_Stylization,00{i},A prompt {i},NP,short," for i in range(2)]
    rows += ["Text_Rendering,000,A sign,NP,short,", "Text_Rendering,001,A book,NP,short,"]
    rows += ["Knowledge_Reasoning,000,Why,NP,short,"]
    for name in ("scripts/alignment/Q_D", "scripts/text", "scripts/utils"):
        (folder / name).mkdir(parents=True)
    (folder / "OneIG-Bench.csv").write_text("\n".join(rows) + "\n")
    graph = {"question": json.dumps({"2": "Is it red?", "1": "Is it there?"}), "dependency": '{"1": [0], "2": [1]}'}
    for name in ("anime", "human", "object"):
        (folder / f"scripts/alignment/Q_D/{name}.json").write_text(json.dumps({"000": graph, "001": graph}))
    long_text = " ".join(["word"] * 61)
    (folder / "scripts/text/text_content.csv").write_text(f",id,text_content\n0,000,OPEN NOW\n1,001,{long_text}\n")
    (folder / "scripts/utils/inference.py").write_text(SCRIPT)
    write_references(folder / "scripts" / "style")
    return folder


def question_of(body: dict[str, Any]) -> str:
    text: str = body["messages"][0]["content"][1]["text"]
    return text


def answer(body: dict[str, Any]) -> Any:
    question = question_of(body)
    if question == "Read it.":
        return reply("OPEN\nNOW")
    return reply("Yes" if question == "Is it there? Yes/No." else "No")
