"""The plan's bytes of a learner rank against those that DeepSpeed holds, at every stage and dtype."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.planning.memory import learner_rank
from cluster.planning.model_shape import ModelShape
from configs.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]
HELD = ("weights", "gradients", "optimizer", "embedding", "buffers")
"""The parts that stay between two steps, with the gradients."""


@pytest.fixture(scope="module")
def measured() -> list[dict]:
    command = [sys.executable, "-m", "tests.integration.learner_memory"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_what_a_rank_holds_is_predicted_within_five_percent(measured: list[dict]) -> None:
    assert len(measured) == 14
    wrong = []
    for case in measured:
        config = RunConfig.model_validate(
            {
                "model": {"path": "a/b", "dtype": case["dtype"]},
                "data": {"train": "prompts.txt"},
                "rewards": [{"name": "shapes"}],
                "learner": {"zero_stage": case["zero_stage"]},
                "algorithm": {"kl_coef": 0.0},
            }
        )
        shape = ModelShape.of(case["config"])
        parts = learner_rank(config, shape).parts
        # The measured module is the language model with its head, without the generation head and embeddings.
        beside = (shape.drawing - shape.trainable) * (2 if case["dtype"] == "bfloat16" else 4)
        predicted = sum(parts[name] for name in HELD) - beside
        told = f"{case['dtype']}, ZeRO {case['zero_stage']}, {shape.language_model + shape.lm_head:,} parameters"
        print(f"| learner rank: {told} | {predicted:,} | {case['bytes']:,} |")
        if predicted != pytest.approx(case["bytes"], rel=0.05):
            wrong.append((case, predicted))
    assert wrong == []
