"""How well a policy draws the shapes world: mean reward, pictures right in every detail, plans that are none.

    python scripts/score_tiny_janus.py --model tiny-janus [--num-prompts 192] [--temperatures 0.3 1.0] [--output FILE]

One picture of each prompt of `shapes:heldout` and `shapes:unseen_pairs`, with the guidance that the model has stored.
The figures of configs/tiny_janus/README.md are from this script; run it from the root of the project.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np

from rewards.shapes import ShapesReward
from rollout.drawing import draw
from rollout.drawing_options import DrawingOptions
from rollout.records import GroupRollout, UInt8Array
from rollout.shapes import load_split
from rollout.shapes.world import parse_plan

SPLITS = ("heldout", "unseen_pairs")
FULL_MARKS = 0.999


def score(options: DrawingOptions, split: str, num_prompts: int) -> dict[str, float]:
    """Reward, share of full marks and share of malformed plans over `num_prompts` prompts of a split."""
    rewards: list[float] = []
    is_malformed: list[bool] = []
    reward = ShapesReward()

    def take(rollout: GroupRollout, pictures: UInt8Array) -> None:
        rewards.extend(each.value for each in reward.score(pictures, [rollout.request.prompt] * len(pictures)))
        is_malformed.extend(parse_plan(trajectory.cot_text) is None for trajectory in rollout.trajectories)

    asyncio.run(draw(options, load_split(split, num_prompts), take))
    values = np.array(rewards)
    return {
        "reward": round(float(values.mean()), 3),
        "perfect": round(float((values >= FULL_MARKS).mean()), 3),
        "malformed_plans": round(float(np.mean(is_malformed)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores of a policy on the shapes world.")
    parser.add_argument("--model", default="tiny-janus")
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--num-prompts", type=int, default=192)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.3, 1.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the figures to this file as JSON, too")
    arguments = parser.parse_args()
    scores: dict[str, Any] = {}
    for temperature in arguments.temperatures:
        options = DrawingOptions(
            model=arguments.model,
            engine=arguments.engine,
            num_images=1,
            temperature=temperature,
            seed=arguments.seed,
            max_cot_tokens=48,
        )
        for split in SPLITS:
            found = score(options, split, arguments.num_prompts)
            scores.setdefault(split, {})[f"temperature {temperature:g}"] = found
            print(f"{split} at temperature {temperature:g}: {found}", flush=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
