"""The tiny Janus that comes with the project: it loads, it is what its config made, it scores what its card says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from configs.load import load_config
from configs.model_sections import TINY_JANUS, TINY_JANUS_FOLDER
from learner.janus_policy import load_janus
from rollout.janus_checkpoint import JanusCheckpoint, resolve_folder
from rollout.shapes.world import VOCABULARY
from scripts.score_tiny_janus import sample_scores

MAX_BYTES = 6_000_000
SAMPLE = json.loads((TINY_JANUS_FOLDER / "sample_scores.json").read_text(encoding="utf-8"))
"""As `python -m scripts.score_tiny_janus --sample` wrote it."""


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


def test_it_scores_what_was_recorded():
    for split, again in sample_scores(TINY_JANUS).items():
        # Another CPU rounds otherwise, and may sample another token here and there.
        assert np.mean(again) == pytest.approx(np.mean(SAMPLE[split]), abs=0.1)
        assert np.mean(np.abs(np.subtract(again, SAMPLE[split])) < 0.01) >= 0.6
