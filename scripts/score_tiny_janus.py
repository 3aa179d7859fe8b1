"""How well a policy draws the shapes world: mean reward, pictures right in every detail, and what its plans are worth.

    python -m scripts.score_tiny_janus --model tiny-janus [--num-prompts 192] [--temperatures 0.3 1.0] [--output FILE]

One picture of each prompt of `shapes:heldout` and `shapes:unseen_pairs`, with the guidance that the model has stored. A
plan is drawn by the renderer, too: what its picture scores is the plan's own reward, and 0 where the plan is none.
The figures of configs/tiny_janus/README.md are from this script; run it from the root of the project.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from cluster.reports.reward_health import share_perfect
from rewards.shapes import ShapesReward
from rollout.drawing import draw
from rollout.drawing_options import DrawingOptions
from rollout.records import GroupRollout, Prompt, UInt8Array
from rollout.shapes import load_split, render
from rollout.shapes.world import parse_plan

SPLITS = ("heldout", "unseen_pairs")


def score(options: DrawingOptions, split: str, num_prompts: int) -> dict[str, float]:
    """The figures of one picture of each of `num_prompts` prompts of a split."""
    rewards: list[float] = []
    plan_rewards: list[float | None] = []

    def take(rollout: GroupRollout, pictures: UInt8Array) -> None:
        prompt = rollout.request.prompt
        rewards.extend(_score(pictures, prompt))
        plan_rewards.extend(_score_plan(trajectory.cot_text, prompt) for trajectory in rollout.trajectories)

    asyncio.run(draw(options, load_split(split, num_prompts), take))
    plan_values = np.array([value or 0.0 for value in plan_rewards])
    figures = {
        "reward": np.mean(rewards),
        "perfect": share_perfect(np.array(rewards)),
        "plan_reward": plan_values.mean(),
        "plan_perfect": share_perfect(plan_values),
        "malformed_plans": np.mean([value is None for value in plan_rewards]),
    }
    return {name: round(float(value), 3) for name, value in figures.items()}


def _score(pictures: UInt8Array, prompt: Prompt) -> list[float]:
    return [score.value or 0.0 for score in ShapesReward().score(pictures, [prompt] * len(pictures))]


def _score_plan(text: str, prompt: Prompt) -> float | None:
    """What the plan's picture scores, as the renderer draws it; None for a text that is no plan."""
    plan = parse_plan(text)
    return None if plan is None else _score(render(plan, random.Random(0))[None], prompt)[0]


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
