"""Every benchmark from prompts to scores, eight prompts each: tiny Janus draws, and small random models score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.benchmark import main
from rewards.benchmarks import BENCHMARKS, make_benchmark
from tests.judge_server import JudgeServer, reply
from tests.tiny_clip import save_tiny_clip
from tests.unit.rewards.benchmarks import oneig_data
from tests.unit.rewards.benchmarks.judged_data import write_data
from tests.unit.rewards.benchmarks.tiny_blip import save_tiny_blip, write_prompts
from tests.unit.rewards.benchmarks.tiny_geneval import RECORDS, save_geneval_models
from tests.unit.rewards.benchmarks.tiny_mplug import write_data as write_dpg
from tests.unit.rewards.benchmarks.tiny_mplug import write_mplug

LIMIT = 8


def write_checkouts(root: Path) -> Path:
    """The repositories of all benchmarks, with invented data, under the names that `git clone` gives them."""
    judged = write_data(root)
    judged["geneval_pp"].rename(root / "Echo-4o")
    judged["wise"].rename(root / "WISE")
    for name in ("geneval", "T2I-CompBench"):
        (root / name).mkdir()
    lines = [json.dumps(record | {"prompt": f"{record['prompt']}, again" * i}) for i in range(2) for record in RECORDS]
    (root / "geneval" / "evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")
    write_prompts(root / "T2I-CompBench")
    write_dpg(root / "ELLA" / "dpg_bench")
    oneig_data.write_repository(root / "OneIG-Benchmark")
    return root


def scorer_settings(models: Path, checkouts: Path) -> list[str]:
    """Small models for all scorers; each has the official one's file name where there is one."""
    save_geneval_models(models)
    save_tiny_blip(models)
    save_tiny_clip(models / "clip-vit-base-patch32", ["bench", "car"])
    items = make_benchmark("t2i_compbench").read_data(checkouts / "T2I-CompBench").items
    (models / "chunks.json").write_text(json.dumps({item.prompt: ["a red bench", "the car"] for item in items}))
    settings = {
        "geneval.detector": models / "mask2former.pth",
        "geneval.clip": models / "clip-vit-large-patch14",
        "geneval.short_side": 64,
        "t2i_compbench.blip": models / "model_base_vqa_capfilt_large.pth",
        "t2i_compbench.tokenizer": models / "bert",
        "t2i_compbench.clip": models / "clip-vit-base-patch32",
        "t2i_compbench.chunks": models / "chunks.json",
        "dpg.mplug": write_mplug(models / "mplug"),
    }
    return [text for name, value in settings.items() for text in ("--scorer", f"{name}={value}")]


def judge(body: dict[str, Any]) -> Any:
    """What any of the benchmarks' judges says."""
    if len(body["messages"]) == 1 and body["messages"][0]["content"][0]["type"] == "image_url":
        return oneig_data.answer(body)
    scores = "Consistency: 2\nRealism: 1\nAesthetic Quality: 1\nScore: 1\n"
    imagine = "Fantasy Fulfillment: 8\nIdentity Preservation: 7\nAesthetic Quality: 2\n"
    return reply(scores + imagine + '{"correct": 1}')


@pytest.mark.proof
def test_every_benchmark_runs_from_prompts_to_scores(tmp_path: Path) -> None:
    checkouts = write_checkouts(tmp_path / "checkouts")
    settings = scorer_settings(tmp_path / "models", checkouts)
    server = JudgeServer()
    server.answer = judge
    try:
        fixed = ["--engine", "transformers", "--device", "cpu", "--no-cot", "--limit", str(LIMIT)]
        where = ["--data", str(checkouts), "--output-dir", str(tmp_path / "out"), "--judge-url", server.url]
        assert main(["all", "--model", "tiny-janus", *fixed, *where, *settings]) == 0
    finally:
        server.close()
    for name in BENCHMARKS:
        (path,) = (tmp_path / "out" / name / "results").glob("*.json")
        result = json.loads(path.read_text())
        assert result["is_complete"], name
        assert 6 <= result["num_prompts"] <= LIMIT, name
        assert all(measure["num_prompts"] for measure in result["measures"].values()), name
        assert result["pictures"]["model"] == "tiny-janus"
