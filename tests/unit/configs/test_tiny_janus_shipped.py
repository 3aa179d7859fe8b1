"""The tiny Janus that comes with the project: it loads, it is what its config made, it scores what its card says."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from configs.load import load_config
from configs.model_sections import TINY_JANUS, TINY_JANUS_FOLDER
from learner.janus_policy import load_janus
from rewards.shapes import ShapesReward
from rollout.drawing import draw
from rollout.drawing_options import DrawingOptions
from rollout.janus_checkpoint import JanusCheckpoint, resolve_folder
from rollout.records import GroupRollout, UInt8Array
from rollout.shapes import load_split
from rollout.shapes.world import VOCABULARY

MAX_BYTES = 6_000_000
SAMPLE = json.loads((TINY_JANUS_FOLDER / "sample_scores.json").read_text(encoding="utf-8"))
"""Split -> the scores of its first prompts, one picture each, by the transformers engine at temperature 0.3, seed 0."""


def test_its_name_is_a_whole_checkpoint_of_at_most_6_megabytes():
    import torch

    assert resolve_folder(TINY_JANUS) == TINY_JANUS_FOLDER.resolve()
    model = load_janus(TINY_JANUS, torch.float32)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert sum(path.stat().st_size for path in TINY_JANUS_FOLDER.iterdir()) <= MAX_BYTES
    vocabulary = JanusCheckpoint.from_pretrained(TINY_JANUS).tokenizer.get_vocab()
    assert {word for text in VOCABULARY for word in text.split("-")} <= set(vocabulary)


def test_the_configs_it_was_made_with_are_the_ones_that_ship():
    recorded = sorted(TINY_JANUS_FOLDER.glob("*.yaml"))
    assert "tiny_janus_noisy" in {path.stem for path in recorded}
    for path in recorded:
        assert load_config(path) == load_config(TINY_JANUS_FOLDER.parent / path.name)


@pytest.mark.parametrize("split", sorted(SAMPLE))
def test_it_scores_what_was_recorded(split: str):
    scores: dict[str, float] = {}

    def take(rollout: GroupRollout, pictures: UInt8Array) -> None:
        (score,) = ShapesReward().score(pictures, [rollout.request.prompt])
        scores[rollout.request.prompt.prompt_id] = score.value

    options = DrawingOptions(
        model=TINY_JANUS, engine="transformers", num_images=1, temperature=0.3, seed=0, max_cot_tokens=48
    )
    asyncio.run(draw(options, load_split(split, len(SAMPLE[split])), take))
    again = np.array([scores[f"shapes:{split}:{index}"] for index in range(len(SAMPLE[split]))])
    # Another CPU rounds otherwise, and may sample another token here and there.
    assert again.mean() == pytest.approx(np.mean(SAMPLE[split]), abs=0.1)
    assert np.mean(np.abs(again - SAMPLE[split]) < 0.01) >= 0.6
