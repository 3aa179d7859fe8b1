"""WISE (Niu et al. 2025, arXiv 2503.07265), which is two benchmarks of one name: knowledge that a prompt only hints at.

`wise`           `WISE_legacy/`: all published numbers until April 2026; GPT-4o gives three scores of 0 to 2
`wise_verified`  the repository's default since then: new prompts; an open judge answers 0 or 1

1,000 prompts each, one picture a prompt, ID.png. What a prompt is about goes by its id, as the fields disagree.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from configs.errors import DataError, RewardError
from rewards.benchmarks.grading import by_tag
from rewards.benchmarks.judged.base import JudgedBenchmark
from rewards.benchmarks.protocol import Graded, Item, Values
from rewards.benchmarks.statistics import Measure, each_tag, weighted

TAGS: Final = ("culture", "time", "space", "biology", "physics", "chemistry")
LEGACY_LAST: Final = (400, 567, 700, 800, 900, 1000)
"""The last id of each tag."""
VERIFIED_LAST: Final = (400, 520, 640, 760, 880, 1000)
LEGACY_WEIGHTS: Final = dict(zip(TAGS, (0.4, 0.167, 0.133, 0.1, 0.1, 0.1), strict=True))
VERIFIED_WEIGHTS: Final = dict(zip(TAGS, (0.4, *[0.12] * 5), strict=True))
SCALES: Final = ("consistency", "realism", "aesthetic_quality")
FIELDS: Final = {"Prompt", "Explanation", "prompt_id"}


class WiseLegacy(JudgedBenchmark):
    """`wise`."""

    name = "wise"
    title = "WISE (legacy)"
    repository = "PKU-YuanGroup/WISE"
    needs = "a checkout of PKU-YuanGroup/WISE"
    picture_score = "wiscore"
    judges = ("gpt-4o-2024-05-13",)
    script = "WISE_legacy/gpt_eval.py"
    files: ClassVar = {
        "WISE_legacy/data/cultural_common_sense.json": (
            "7a59216c768698280cea37caa574b52f3faf054d73b398b9bb6b3161baf8e3aa"
        ),
        "WISE_legacy/data/spatio-temporal_reasoning.json": (
            "e27d797885ad86e64d857d0cc93d33e04be572a8dcae95692a2c7e7876233f9a"
        ),
        "WISE_legacy/data/natural_science.json": "b262fae58e413c7a4bd3c3d5a089f8c6529feac227e4b6606be261a949035544",
        script: "06fd6dcd7cf45a638fe8a3634b880d936077f161f3641002e58d7bf51daa2407",
    }
    request: ClassVar = {"temperature": 0.0, "max_tokens": 2000}
    as_jpeg = False

    def items(self, files: Mapping[str, Path]) -> tuple[Item, ...]:
        """The three files as one."""
        prompts = [path for name, path in files.items() if name != self.script]
        return read_items(prompts, LEGACY_LAST)

    def values(self, item: Item, picture: str) -> Mapping[str, Any]:
        """Record and picture."""
        return {"prompt_data": item.record, "image_base64": picture}

    def read(self, reply: str) -> Values:
        """wiscore: (0.7 consistency + 0.2 realism + 0.1 aesthetics) / 2; and the three."""
        scores = legacy_scores(reply)
        lacking = [name for name in SCALES if name not in scores]
        if lacking:
            raise RewardError(f"the reply has no score of {', '.join(lacking)}: {reply[:200]}")
        consistency, realism, aesthetics = (scores[name] for name in SCALES)
        return {"wiscore": (0.7 * consistency + 0.2 * realism + 0.1 * aesthetics) / 2, **scores}

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """overall: weighted by the number of prompts; and each tag."""
        return _measures(graded, "wiscore", LEGACY_WEIGHTS)


class WiseVerified(JudgedBenchmark):
    """`wise_verified`."""

    name = "wise_verified"
    title = "WISE_Verified"
    repository = "PKU-YuanGroup/WISE"
    needs = "a checkout of PKU-YuanGroup/WISE"
    picture_score = "score"
    judges = ("Qwen/Qwen3.5-35B-A3B", "Qwen3.5-35B-A3B")
    script = "vllm_eval.py"
    files: ClassVar = {
        "data_verified/merge.json": "10f2690624ed8f03f21bd3e9c535e26f791da8bab67ac857903bede65985b82d",
        script: "e6c51c2ae81e4eb0465755b248cbcefeef3fb8340e281bb3ac43ea9689e32192",
    }
    request: ClassVar = {"temperature": 0.0, "max_tokens": 500, "chat_template_kwargs": {"enable_thinking": False}}
    as_jpeg = False

    def items(self, files: Mapping[str, Path]) -> tuple[Item, ...]:
        """The merged file."""
        return read_items([files["data_verified/merge.json"]], VERIFIED_LAST)

    def values(self, item: Item, picture: str) -> Mapping[str, Any]:
        """Record and picture."""
        return {"prompt_data": item.record, "image_base64": picture}

    def read(self, reply: str) -> Values:
        """score: 1 or 0."""
        scores = verified_scores(without_thoughts(reply))
        if not scores:
            raise RewardError(f"the reply has no score of 0 or 1: {reply[:200]}")
        return scores

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """overall: weighted by the number of prompts; and each tag."""
        return _measures(graded, "score", VERIFIED_WEIGHTS)


def read_items(paths: Sequence[Path], last_ids: Sequence[int]) -> tuple[Item, ...]:
    """The records of files, which are arrays, in the order of their ids. Raises DataError."""
    records: dict[int, Mapping[str, Any]] = {}
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        for place, record in enumerate(content if isinstance(content, list) else [None]):
            if not isinstance(record, Mapping) or not set(record) >= FIELDS or not isinstance(record["prompt_id"], int):
                raise DataError(f"{path}: record {place} has not {', '.join(sorted(FIELDS))}")
            if record["prompt_id"] in records or not 1 <= record["prompt_id"] <= last_ids[-1]:
                raise DataError(f"{path}: record {place}: prompt_id {record['prompt_id']} is there twice, or unknown")
            records[record["prompt_id"]] = record
    return tuple(
        Item(str(key), record["Prompt"], _tag_of(key, last_ids), (f"{key}.png",), record)
        for key, record in sorted(records.items())
    )


def _tag_of(prompt_id: int, last_ids: Sequence[int]) -> str:
    return next(tag for tag, last in zip(TAGS, last_ids, strict=True) if prompt_id <= last)


def _measures(graded: Sequence[Graded], name: str, weights: Mapping[str, float]) -> list[Measure]:
    strata = {tag: values for tag, values in by_tag(graded, name, TAGS).items() if values}
    return [weighted("overall", strata, weights), *each_tag(strata)]


def legacy_scores(reply: str) -> dict[str, float]:
    """Those of the three scales that the official parser finds; the last one of a name counts."""
    pattern = r"\*{0,2}(Consistency|Realism|Aesthetic Quality)\*{0,2}\s*:?\s*(\d)"
    named = re.findall(pattern, reply, re.IGNORECASE)
    if named:
        return {name.lower().replace(" ", "_"): float(digit) for name, digit in named}
    alone = re.findall(r"^\s*([0-2])\s*$", reply, re.MULTILINE)
    return dict(zip(SCALES, map(float, alone), strict=False)) if len(alone) >= len(SCALES) else {}


def verified_scores(reply: str) -> dict[str, float]:
    """{"score": 0 or 1} as the official parser finds it; empty where it finds none."""
    named = re.search(r"\*{0,2}Score\*{0,2}\s*:?\s*([01])\b", reply, re.IGNORECASE)
    if named:
        return {"score": float(named[1])}
    alone = re.findall(r"^\s*([01])\s*$", reply, re.MULTILINE)
    return {"score": float(alone[0])} if len(alone) == 1 else {}


def without_thoughts(reply: str) -> str:
    """The reply less what a thinking model wrote before it."""
    whole = re.sub(r"<think>.*?</think>\s*", "", reply, flags=re.DOTALL)
    return re.sub(r"</think>\s*", "", whole).strip()
