"""Whether a trained policy draws what README, docs and the command's help show, before a release shows it again.

    python -m scripts.draw_shown_prompts --model runs/shapes_cpu/checkpoints/step_000080/model

Eight pictures of every prompt of the shapes world that stands behind a `--prompt`. At least seven must be right in
every detail, else the exit code is 1: then show another prompt, or train a better policy. Run it from the root of the
project.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from pathlib import Path

from cluster.reports.reward_health import FULL_MARKS
from configs.errors import DataError
from rewards.shapes import ShapesReward
from rollout.drawing import draw
from rollout.drawing_options import DrawingOptions
from rollout.records import CountInfo, GroupRollout, Prompt, SpatialInfo, UInt8Array
from rollout.shapes.world import RELATIONS, VOCABULARY

ROOT = Path(__file__).resolve().parents[1]
NUM_PICTURES, NUM_RIGHT = 8, 7
NUMBERS = {"two": 2, "three": 3, "four": 4}
_SHOWN = re.compile(r'--prompt "([^"]+)"')


def shown_prompts() -> dict[str, str]:
    """Text -> the first place that shows it, of all shown prompts that speak of the shapes world."""
    places = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "rollout" / "generate.py"]
    found: dict[str, str] = {}
    for path in places:
        for text in _SHOWN.findall(path.read_text(encoding="utf-8")):
            if set(text.split()) <= set(VOCABULARY):
                found.setdefault(text, str(path.relative_to(ROOT)))
    return found


def read_prompt(text: str) -> Prompt:
    """The prompt with what it demands: "A RELATION B", "NUMBER As", or objects with "and" between them.

    Raises DataError for any other wording.
    """
    for relation in RELATIONS:
        first, found, second = text.partition(f" {relation} ")
        if found:
            return Prompt(text, text, attr_nouns=(first, second), spatial_info=SpatialInfo(first, second, relation))
    number, _, rest = text.partition(" ")
    if number in NUMBERS:
        return Prompt(text, text, attr_nouns=(rest,), numeracy_info=(CountInfo(rest, NUMBERS[number]),))
    objects = tuple(text.split(" and "))
    if all(phrase.startswith(("a ", "an ")) for phrase in objects):
        return Prompt(text, text, attr_nouns=objects)
    raise DataError(f"'{text}': say it as 'A above B', 'two As' or 'A and B', so that it can be checked")


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draws every prompt that the documentation shows.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    arguments = parser.parse_args()
    num_right: dict[str, int] = {}

    def count(rollout: GroupRollout, pictures: UInt8Array) -> None:
        scores = ShapesReward().score(pictures, [rollout.request.prompt] * len(pictures))
        num_right[rollout.request.prompt.text] = sum((score.value or 0) >= FULL_MARKS for score in scores)

    shown = shown_prompts()
    options = DrawingOptions(model=arguments.model, engine=arguments.engine, num_images=NUM_PICTURES, max_cot_tokens=48)
    asyncio.run(draw(options, [read_prompt(text) for text in shown], count))
    for text, place in shown.items():
        verdict = "" if num_right[text] >= NUM_RIGHT else "  TOO FEW"
        print(f"{num_right[text]} of {NUM_PICTURES} right: {text} ({place}){verdict}")
    return int(min(num_right.values()) < NUM_RIGHT)


if __name__ == "__main__":
    sys.exit(main())
