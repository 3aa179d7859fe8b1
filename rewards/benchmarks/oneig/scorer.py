"""OneIG-Bench's scorer: each cell of a grid, as a JPEG, with each question of its prompt, put to Qwen2.5-VL."""

from __future__ import annotations

import base64
import datetime
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import RewardError
from rewards.benchmarks.judged.scorer import ServerScorer
from rewards.benchmarks.judged.script import OfficialScript
from rewards.benchmarks.oneig.cells import as_jpeg, drawn_cells
from rewards.benchmarks.oneig.records import NUM_CELLS, WRITTEN
from rewards.benchmarks.pictures import open_picture
from rewards.benchmarks.protocol import Answer, Asked
from rewards.clients import JsonClient

NUM_TOKENS, NUM_TOKENS_OF_LONG_TEXT, LONG_TEXT = 128, 256, 60
"""Longest reply; and to a text of more than so many words."""
ASK, READ = "infer_semantic", "infer_ocr"
"""The functions of the official script that hold its two questions."""


class OneIGScorer(ServerScorer):
    """Asks about several pictures at once. Raises DataError for another script."""

    def __init__(self, client: JsonClient, model: str, script: Path, num_parallel: int) -> None:
        super().__init__(client, model, num_parallel, {"temperature": 0.0})
        self._ask, self._read_text = OfficialScript(script, ASK), OfficialScript(script, READ)

    def ask(self, one: Asked) -> Answer:
        """{"cells": the replies to each cell that is not black, by the questions' numbers; "num_black": the others}."""
        picture = open_picture(one)
        if isinstance(picture, RewardError):
            raise picture
        drawn = drawn_cells(picture)
        replies = [self._of_cell(one.item.record, one.item.tag, _in_base64(as_jpeg(cell))) for cell in drawn]
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        return {"cells": replies, "num_black": NUM_CELLS - len(drawn), "models": sorted(self.seen), "date": now}

    def _of_cell(self, record: Mapping[str, Any], tag: str, picture: str) -> dict[str, str]:
        if tag == WRITTEN:
            is_long = len(record["text"].split()) > LONG_TEXT
            messages = self._read_text.messages({"image_path": picture})
            return {"text": self._reply(messages, NUM_TOKENS_OF_LONG_TEXT if is_long else NUM_TOKENS)}
        return {
            str(number): self._reply(self._ask.messages({"image_path": picture, "question": text}), NUM_TOKENS)
            for number, text in record["questions"].items()
        }

    def _reply(self, messages: list[dict[str, Any]], max_tokens: int) -> str:
        reply, _ = self.post([_for_server(message) for message in messages], max_tokens=max_tokens)
        return reply


def _in_base64(file: io.BytesIO) -> str:
    return base64.b64encode(file.getvalue()).decode()


def _for_server(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message for transformers' chat template as an OpenAI-compatible server has it."""
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{part['image']}"}}
        if part["type"] == "image"
        else part
        for part in message["content"]
    ]
    return {**message, "content": content}
