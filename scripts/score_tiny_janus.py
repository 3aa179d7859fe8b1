"""How well a policy draws the shapes world: mean reward, pictures right in every detail, and what its plans are worth.

    python -m scripts.score_tiny_janus --model tiny-janus [--num-prompts 192] [--temperatures 0.3 1.0] [--output FILE]
    python -m scripts.score_tiny_janus --model tiny-janus --sample configs/tiny_janus/sample_scores.json

One picture of each prompt of `shapes:heldout` and `shapes:unseen_pairs`, with the guidance that the model has stored. A
plan is drawn by the renderer, too: what its picture scores is the plan's own reward, and 0 where the plan is none.
The figures of configs/tiny_janus/README.md are from this script; run it from the root of the project.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cluster.reports.reward_health import share_perfect
from rewards.shapes import ShapesReward
from rollout.drawing import draw
from rollout.drawing_options import DrawingOptions
from rollout.records import GroupRollout, Prompt, UInt8Array
from rollout.shapes import load_split, render
from rollout.shapes.world import parse_plan

SPLITS = ("heldout", "unseen_pairs")
SAMPLE_SIZE = 12
"""Prompts of each split in a sample."""


class Scores(NamedTuple):
    """Of one plan and its picture."""

    picture: float
    plan: float | None
    """None for a text that is no plan."""


def score_pictures(options: DrawingOptions, num_prompts: int) -> dict[str, list[Scores]]:
    """Split -> the scores of its first `num_prompts` prompts, in order; the first picture of each."""
    prompts = {split: load_split(split, num_prompts) for split in SPLITS}
    found: dict[str, Scores] = {}

    def take(rollout: GroupRollout, pictures: UInt8Array) -> None:
        prompt = rollout.request.prompt
        found[prompt.prompt_id] = Scores(
            _score(pictures[:1], prompt), _score_plan(rollout.trajectories[0].cot_text, prompt)
        )

    asyncio.run(draw(options, [prompt for split in SPLITS for prompt in prompts[split]], take))
    return {split: [found[prompt.prompt_id] for prompt in prompts[split]] for split in SPLITS}


def sample_scores(model: str) -> dict[str, list[float]]:
    """Split -> the scores of its first pictures, by the slow engine at temperature 0.3 with seed 0."""
    options = DrawingOptions(
        model=model, engine="transformers", num_images=1, temperature=0.3, seed=0, max_cot_tokens=48
    )
    scores = score_pictures(options, SAMPLE_SIZE)
    return {split: [round(each.picture, 4) for each in scores[split]] for split in SPLITS}


def summarize(scores: Sequence[Scores]) -> Mapping[str, float]:
    """The figures of the card."""
    pictures = np.array([each.picture for each in scores])
    plans = np.array([each.plan or 0.0 for each in scores])
    figures = {
        "reward": pictures.mean(),
        "perfect": share_perfect(pictures),
        "plan_reward": plans.mean(),
        "plan_perfect": share_perfect(plans),
        "malformed_plans": np.mean([each.plan is None for each in scores]),
    }
    return {name: round(float(value), 3) for name, value in figures.items()}


def _score(picture: UInt8Array, prompt: Prompt) -> float:
    (score,) = ShapesReward().score(picture, [prompt])
    return score.value or 0.0


def _score_plan(text: str, prompt: Prompt) -> float | None:
    """What the plan's picture scores, as the renderer draws it."""
    plan = parse_plan(text)
    return None if plan is None else _score(render(plan, random.Random(0))[None], prompt)


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores of a policy on the shapes world.")
    parser.add_argument("--model", default="tiny-janus")
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--num-prompts", type=int, default=192)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.3, 1.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the figures to this file as JSON, too")
    parser.add_argument("--sample", type=Path, help="score a few pictures only, and write them to this file")
    arguments = parser.parse_args()
    if arguments.sample is not None:
        arguments.sample.write_text(json.dumps(sample_scores(arguments.model)) + "\n", encoding="utf-8")
        return
    figures: dict[str, dict[str, Mapping[str, float]]] = {split: {} for split in SPLITS}
    for temperature in arguments.temperatures:
        options = DrawingOptions(
            model=arguments.model,
            engine=arguments.engine,
            num_images=1,
            temperature=temperature,
            seed=arguments.seed,
            max_cot_tokens=48,
        )
        for split, scores in score_pictures(options, arguments.num_prompts).items():
            figures[split][f"temperature {temperature:g}"] = summarize(scores)
            print(f"{split} at temperature {temperature:g}: {summarize(scores)}", flush=True)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
