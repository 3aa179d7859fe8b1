"""GenEval++ and Imagine-Bench (Echo-4o, Ye et al. 2025, arXiv 2508.09987; Apache-2.0), judged as in its `test_scripts`.

GenEval++: 280 prompts, one picture each as JPEG; the judge gets a checklist and answers right or wrong in JSON.
Imagine-Bench: 270 prompts of objects that cannot be, one picture each; three scores of 0 to 10.

Two defects of the second one's script stand beside their corrections, as measures of their own: its parser reads −1
where the judge writes a score's name in bold, and its overall score weighs a type under a name that the data has not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from configs.errors import DataError, RewardError
from rewards.benchmarks.geneval.records import read_lines
from rewards.benchmarks.grading import by_tag
from rewards.benchmarks.judged.base import JudgedBenchmark
from rewards.benchmarks.protocol import Graded, Item, Values
from rewards.benchmarks.statistics import Measure, each_tag, mean_of_tags, weighted

JUDGES: Final = ("gpt-4.1-2025-04-14", "gpt-4.1")
"""The snapshot, and the alias that moves on."""
GENEVAL_PP_TAGS: Final = (
    "color_attr",
    "counting",
    "color_count_attr",
    "color_spatial_attr",
    "spatial_count_attr",
    "size_spatial_attr",
    "multi_object_count_attr",
)
IMAGINE_TYPES: Final = {
    "COLOR": "attribute_shift",
    "SHAPE": "attribute_shift",
    "SIZE": "attribute_shift",
    "MATERIAL": "hybridization",
    "COMBINATION": "hybridization",
    "TIME": "spatiotemporal",
    "ENVIRONMENT": "spatiotemporal",
    "Multi-Object": "multi_object",
}
IMAGINE_WEIGHTS: Final = {"attribute_shift": 3.0, "spatiotemporal": 2.0, "hybridization": 2.0, "multi_object": 2.0}
IMAGINE_SCALES: Final = ("Fantasy Fulfillment", "Identity Preservation", "Aesthetic Quality")


class GenEvalPlusPlus(JudgedBenchmark):
    """`geneval_pp`."""

    name = "geneval_pp"
    title = "GenEval++"
    repository = "yejy53/Echo-4o"
    needs = "a checkout of yejy53/Echo-4o, or its folder test_scripts"
    picture_score = "correct"
    judges = JUDGES
    script = "test_scripts/Eval-gpt-4.1-geneval++.py"
    files: ClassVar = {
        "test_scripts/Geneval++.jsonl": "9c1216a3f6fe2d99e4ffd63f3a6dba71f3dd7ab30a7c09cb41f03629b35d3e8f",
        script: "59329c7db829f4ee9837a33d90b2e111297752348217401c362407b20bdd6f83",
    }
    request: ClassVar = {"temperature": 0.0, "max_tokens": 200}
    as_jpeg = True

    def items(self, files: Mapping[str, Path]) -> tuple[Item, ...]:
        """Line N is picture N.jpg."""
        path = files["test_scripts/Geneval++.jsonl"]
        items = []
        for number, record in enumerate(read_lines(path), start=1):
            if record.get("tag") not in GENEVAL_PP_TAGS or not record.get("include") or not record.get("prompt"):
                raise DataError(f"{path}:{number}: no record of GenEval++; tag, include and prompt are expected")
            items.append(Item(str(number), record["prompt"].strip(), record["tag"], (f"{number}.jpg",), record))
        return tuple(items)

    def values(self, item: Item, picture: str) -> Mapping[str, Any]:
        """Instruction, checklist and picture."""
        return {"instruction": item.prompt, "explanation": checklist(item.record), "image_b64": picture}

    def read(self, reply: str) -> Values:
        """correct: 1 or 0."""
        return {"correct": float(read_json_reply(reply).get("correct", 0) == 1)}

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """overall: the unweighted mean of the seven tags; and each tag."""
        strata = {tag: values for tag, values in by_tag(graded, "correct", GENEVAL_PP_TAGS).items() if values}
        return [mean_of_tags("overall", strata), *each_tag(strata)]


def checklist(record: Mapping[str, Any]) -> str:
    """What the picture has to hold, in the words of the official script."""
    lines = ["This image should contain:"]
    for entry in record.get("include", ()):
        adjectives = [f"{entry['color']}-colored"] if entry.get("color") else []
        adjectives += [entry["size"]] if entry.get("size") else []
        noun = " ".join((*adjectives, str(entry.get("count", 1)), _plural(entry)))
        place = f"located in the {entry['region']} part of" if entry.get("region") else "present in"
        lines.append(f"- {noun} {place} the image.")
    return "\n".join(
        lines
        + [
            f"- No more than {entry.get('count', 1) - 1} {_plural(entry)} should appear."
            for entry in record.get("exclude", ())
        ]
    )


def _plural(entry: Mapping[str, Any]) -> str:
    return f"{entry['class']}s" if entry.get("count", 1) > 1 else str(entry["class"])


def read_json_reply(reply: str) -> dict[str, Any]:
    """The JSON object in a reply: from its first brace to its last. Raises RewardError."""
    text = re.sub(r"\s*```$", "", re.sub(r"^```json\s*", "", reply.strip()))
    found = re.search(r"\{.*\}", text, re.DOTALL)
    if found is None:
        raise RewardError(f"the reply holds no JSON object: {reply[:200]}")
    try:
        content = json.loads(found[0])
    except ValueError as error:
        raise RewardError(f"the reply's JSON is broken ({error}): {reply[:200]}") from error
    return dict(content)


class ImagineBench(JudgedBenchmark):
    """`imagine`."""

    name = "imagine"
    title = "Imagine-Bench"
    repository = "yejy53/Echo-4o"
    needs = "a checkout of yejy53/Echo-4o, or its folder test_scripts"
    picture_score = "score"
    judges = JUDGES
    script = "test_scripts/Eval-gpt-4.1-Imagine.py"
    files: ClassVar = {
        "test_scripts/Imagine.jsonl": "e22e33dd5e2722b9fedfb7ecddeb56841ec6ea93b3f0246a04d8dd374ab5a19e",
        script: "0dd6a1214c6b1fa9007d915bcf5cc7c3cf4a900db5b3de3c8d83c20af0d844d3",
    }
    request: ClassVar = {"temperature": 0.0, "max_tokens": 1024}
    as_jpeg = True

    def items(self, files: Mapping[str, Path]) -> tuple[Item, ...]:
        """Record `id` is picture id.png."""
        path = files["test_scripts/Imagine.jsonl"]
        items = []
        for number, record in enumerate(read_lines(path), start=1):
            if record.get("type") not in IMAGINE_TYPES or not {"id", "instruction", "note"} <= set(record):
                raise DataError(
                    f"{path}:{number}: no record of Imagine-Bench; id, instruction, note, type are expected"
                )
            tag = IMAGINE_TYPES[record["type"]]
            items.append(Item(str(record["id"]), record["instruction"], tag, (f"{record['id']}.png",), record))
        return tuple(items)

    def values(self, item: Item, picture: str) -> Mapping[str, Any]:
        """Record and picture."""
        return {"prompt_data": item.record, "image_base64": picture}

    def read(self, reply: str) -> Values:
        """score: the official parser's; corrected: names in bold are read, and what cannot be read counts 0."""
        return {
            "score": imagine_score(imagine_scores(reply.strip())),
            "corrected": imagine_score(imagine_scores(reply.replace("*", ""), unread=0.0)),
        }

    def measures(self, graded: Sequence[Graded]) -> list[Measure]:
        """The overall score as published, as the script computes it, and with its parser corrected; and each type."""
        types = tuple(IMAGINE_WEIGHTS)
        official = {tag: values for tag, values in by_tag(graded, "score", types).items() if values}
        corrected = {tag: values for tag, values in by_tag(graded, "corrected", types).items() if values}
        shipped = {tag: values for tag, values in official.items() if tag != "multi_object"}
        measures = [
            weighted("overall", official, IMAGINE_WEIGHTS, "comparable: as published, with the script's parser")
        ]
        if shipped:
            why = "comparable: the script's own sum, which leaves Multi-Object out (it looks for TWO_OBJECT)"
            measures.append(weighted("overall_as_shipped", shipped, IMAGINE_WEIGHTS, why))
        why = "corrected: scores under names in bold are read, and what cannot be read counts 0, not -1"
        return [*measures, weighted("overall_corrected", corrected, IMAGINE_WEIGHTS, why), *each_tag(official)]


def imagine_scores(reply: str, unread: float = -1.0) -> dict[str, float]:
    """Name -> 0 to 10, as the official parser reads them; `unread` where it finds none."""
    scores = dict.fromkeys(IMAGINE_SCALES, unread)
    for name, digits in re.findall(rf"({'|'.join(IMAGINE_SCALES)})\s*[:：]?\s*(\d{{1,2}})", reply):
        scores[name] = max(0.0, min(float(digits), 10.0))
    return scores


def imagine_score(scores: Mapping[str, float]) -> float:
    """0.8 x min(fulfilment, identity) + 0.2 x aesthetics, to three digits."""
    fulfilment, identity, aesthetics = (scores[name] for name in IMAGINE_SCALES)
    return round(0.8 * min(fulfilment, identity) + 0.2 * aesthetics, 3)
