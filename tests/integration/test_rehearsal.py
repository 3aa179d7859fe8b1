"""--rehearse, as people start it: the tiny model in the quick tests, Janus-Pro's widths among the proofs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.load import load_config
from tests.integration.launcher import ROOT, write_config

REHEARSE = [sys.executable, "-m", "cluster.launch", "--rehearse", "--layers"]
GPUS = {"gpus_per_worker": 1, "engine": "transformers"}
ROWS = ("random weights", "Ray and Redis", "learner (ZeRO", "rollout (", "weight sync", "checkpoint", "resume")


def rehearse(config: Path, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*REHEARSE, *arguments, "--config", str(config)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def test_a_config_for_gpus_is_rehearsed_without_them(tmp_path: Path) -> None:
    learner = {"gpus_per_rank": 1, "num_ranks": 2, "zero_stage": 2, "micro_batch_size": 1}
    config = write_config(tmp_path, rollout=GPUS, learner=learner, data={"train": "nowhere.jsonl"})
    done = rehearse(config, "1", timeout_s=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"cut +learner\.num_ranks +2 → 1 +\(no GPU here\)", done.stdout)
    assert re.search(r"cut +data\.train +\S*nowhere\.jsonl → shapes:train:40", done.stdout)
    assert re.search(
        r"^  memory +about [\d.]+ GiB \(learner [\d.]+, checkpoint .*\) of [\d.]+ that may be taken$",
        done.stdout,
        re.MULTILINE,
    )
    for row in ROWS:
        assert re.search(rf"^  {re.escape(row)}", done.stdout, re.MULTILINE), row
    assert re.search(r"learner \(ZeRO 2\) +[\d.]+ to start, [\d.]+ a step +[\d.]+ GiB", done.stdout)
    assert "rehearsed: 3 steps in 2 lives" in done.stdout
    folder = Path(re.search(r"rehearsal of launched in (\S+)", done.stdout)[1])  # type: ignore[index]
    assert not folder.exists()


def test_the_first_failure_is_named_with_its_remedy_and_the_logs_stay(tmp_path: Path) -> None:
    broken = [{"name": "tests.integration.rewards:BreaksWhenMade"}]
    config = write_config(tmp_path, rollout=GPUS, rewards=broken)
    done = rehearse(config, "1", timeout_s=280)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the rehearsal FAILED in the run, while starting learner, rollout workers and rewards" in done.stdout
    assert re.search(r"reward tests\.integration\.rewards:BreaksWhenMade +(not seen|did not start)", done.stdout)
    assert "no more of this" in done.stderr
    folder = Path(re.search(r"stays for a look, its logs above all: (\S+)", done.stderr)[1])  # type: ignore[index]
    assert (folder / "launched" / "logs").is_dir()
    shutil.rmtree(folder)


@pytest.mark.proof
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["janus_pro_1b_1gpu", "janus_pro_7b_8gpu", "janus_pro_7b_cluster", "t2i_r1"])
def test_the_shipped_gpu_configs_are_rehearsed_on_a_cpu(name: str) -> None:
    """The 1B config takes some 10 GiB of memory, each of the others some 15."""
    done = rehearse(ROOT / "configs" / f"{name}.yaml", "2", timeout_s=1700)
    if done.returncode == 2 and "a rehearsal of this model needs" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rehearsed: 3 steps in 2 lives" in done.stdout
    rewards = [f"reward {reward.name}" for reward in load_config(ROOT / "configs" / f"{name}.yaml").rewards]
    for row in (*ROWS, *rewards):
        assert re.search(rf"^  {re.escape(row)}", done.stdout, re.MULTILINE), row
