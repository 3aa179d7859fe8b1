"""Benchmarks through Ray: the pictures are those of one process, and a worker's death costs none."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from cluster.evaluate import build_parser
from cluster.evaluation import Evaluation, drawing_of
from cluster.evaluation.settings import DRAWING
from configs.schema import RunConfig
from rewards.benchmark import main
from rewards.benchmarks.command import choose, parse
from tests.integration.training import run_tree

LIMIT = 4


def evaluation(config: RunConfig, output_dir: Path) -> tuple[Evaluation, io.StringIO]:
    argv = ["shapes", "--config", "given", "--limit", str(LIMIT), "--output-dir", str(output_dir)]
    arguments = parse(build_parser(), argv, argparse.Namespace(**dict.fromkeys(DRAWING)))
    chosen, _ = choose(arguments, config.data.benchmarks)
    shown = io.StringIO()
    return Evaluation(arguments, chosen, config, drawing_of(arguments, config), Console(file=shown)), shown


async def killed_once(work: Evaluation, folder: Path) -> bool:
    """Kill a worker as soon as one prompt is drawn."""
    running = asyncio.create_task(work.execute())
    async with asyncio.timeout(300):
        while not any(folder.rglob("drawn/*/*.png")) and not running.done():
            await asyncio.sleep(0.02)
        ray.kill(ray.get_actor(f"evaluate-{os.getpid()}-rollout-0"))
        return await running


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("images/**/*.png")}


def test_workers_draw_what_one_process_draws_though_one_dies(ray_cluster: None, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "rollout": {"num_workers": 2, "max_groups_per_worker": 1},
        "data": {"benchmarks": {"shapes": {"replicas": 2, "cpus": 0.5}}},
    }
    config = RunConfig.model_validate(run_tree("evaluated", tmp_path, **sections))
    folder = tmp_path / "ray" / "shapes"
    work, shown = evaluation(config, tmp_path / "ray")
    assert asyncio.run(killed_once(work, folder))
    assert "rollout-0 died" in shown.getvalue()
    result = json.loads((folder / "results" / "shapes.json").read_text())
    assert (result["is_complete"], result["num_files"]) == (True, LIMIT * 4)

    rollout = config.rollout
    fixed = ["--engine", "transformers", "--device", "cpu", "--dtype", "float32", "--seed", str(config.run.seed)]
    sampling = ["--guidance-scale", str(rollout.guidance_scale), "--max-cot-tokens", str(rollout.max_cot_tokens)]
    here = ["--limit", str(LIMIT), "--output-dir", str(tmp_path / "here"), "--model", config.model.path]
    assert main(["shapes", *here, *fixed, *sampling]) == 0
    assert pictures(folder) == pictures(tmp_path / "here" / "shapes")
    alone = json.loads((tmp_path / "here" / "shapes" / "results" / "shapes.json").read_text())
    assert result["measures"] == alone["measures"]

    answers = (folder / "answers" / "shapes.jsonl").read_bytes()
    work, shown = evaluation(config, tmp_path / "ray")
    assert asyncio.run(work.execute())
    assert (folder / "answers" / "shapes.jsonl").read_bytes() == answers
    assert "died" not in shown.getvalue()
