"""A checkpoint in its authors' format, all the way: converted, planned, rehearsed, trained, and converted back.

What the authors' own code draws from such a folder, after training, is recorded in tests/data/janus_original, and
tests/unit/rollout/conversion/test_convert_janus.py holds bicot to it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rollout.conversion.weights import read_weights
from rollout.convert_janus import main as convert
from tests.integration.launcher import ROOT, write_config
from tests.original_janus import draw_greedily, write_original

NUM_STEPS = 2
TRAINED = ("language_model.",)
PROMPT_IDS = ([1, 20, 21, 22, 23, 24, 4], [1, 30, 31, 4])


def launch(config: Path, *arguments: str) -> str:
    """The launcher's output; it must end well."""
    command = [sys.executable, "-m", "cluster.launch", "--config", str(config), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_the_authors_checkpoint_is_converted_planned_rehearsed_trained_and_converted_back(tmp_path: Path) -> None:
    authors, policy, back = tmp_path / "authors", tmp_path / "policy", tmp_path / "back"
    original = write_original(authors, dtype=torch.bfloat16)
    assert convert([str(authors), str(policy), "--roles", "User,Assistant"]) == 0
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"word{n} word{n + 1}"}) + "\n" for n in range(8)))
    config = write_config(
        tmp_path,
        run={"steps": NUM_STEPS},
        model={"path": str(policy), "dtype": "bfloat16"},
        data={"train": str(prompts)},
        rewards=[{"name": "tests.integration.rewards:MoodyReward", "cpus_per_replica": 0.1}],
        learner={"zero_stage": 2, "lr": 1e-2},
    )
    assert f"path: {policy}" in launch(config, "--dry-run")
    assert "rehearsed: 3 steps in 2 lives" in launch(config, "--rehearse", "--layers", "1")
    launch(config)
    trained = tmp_path / "runs" / "launched" / "checkpoints" / f"step_{NUM_STEPS:06d}" / "model"
    assert convert([str(trained), str(back), "--like", str(authors)]) == 0

    tensors = read_weights(back)
    changed = {name for name in original if not torch.equal(tensors[name], original[name])}
    assert tensors.keys() == original.keys()
    assert {name for name in original if name.startswith(TRAINED)} >= changed
    assert len(changed) > 15, "training moved hardly anything"
    for name in ("config.json", "processor_config.json", "preprocessor_config.json"):
        assert (back / name).read_bytes() == (authors / name).read_bytes()

    again = tmp_path / "again"
    assert convert([str(back), str(again)]) == 0
    for ids in PROMPT_IDS:
        codes, picture = asyncio.run(draw_greedily(trained, ids))
        codes_again, picture_again = asyncio.run(draw_greedily(again, ids))
        before, _ = asyncio.run(draw_greedily(policy, ids))
        assert codes == codes_again
        assert codes != before, "training changed no picture"
        assert (picture == picture_again).all()
