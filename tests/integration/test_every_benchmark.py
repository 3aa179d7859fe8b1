"""Every benchmark from prompts to scores, eight prompts each: tiny Janus draws, and small random models score."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rewards.benchmark import main
from rewards.benchmarks import BENCHMARKS, make_benchmark
from tests.judge_server import JudgeServer, reply
from tests.unit.rewards.benchmarks import oneig_data, tiny_compbench
from tests.unit.rewards.benchmarks.judged_data import write_data
from tests.unit.rewards.benchmarks.tiny_dreamsim import save_dreamsim
from tests.unit.rewards.benchmarks.tiny_geneval import RECORDS, save_geneval_models
from tests.unit.rewards.benchmarks.tiny_mplug import write_data as write_dpg
from tests.unit.rewards.benchmarks.tiny_mplug import write_mplug
from tests.unit.rewards.benchmarks.tiny_style import save_csd, save_style_encoder

LIMIT = 8


def write_checkouts(root: Path) -> Path:
    """The repositories of all benchmarks, with invented data, under the names that `git clone` gives them."""
    judged = write_data(root)
    judged["geneval_pp"].rename(root / "Echo-4o")
    judged["wise"].rename(root / "WISE")
    (root / "geneval").mkdir()
    records = [record | {"prompt": f"{record['prompt']}{suffix}"} for suffix in ("", ", again") for record in RECORDS]
    lines = [json.dumps(record) for record in records]
    (root / "geneval" / "evaluation_metadata.jsonl").write_text("\n".join(lines) + "\n")
    tiny_compbench.write_checkout(root / "T2I-CompBench")
    write_dpg(root / "ELLA" / "dpg_bench")
    oneig_data.write_repository(root / "OneIG-Benchmark")
    return root


def save_models(folder: Path) -> dict[str, Path | int]:
    """Small models for all scorers, by NAME.SETTING; each has the official one's file name where there is one."""
    folder.mkdir()
    save_geneval_models(folder)
    compbench, plus = tiny_compbench.save_models(folder), tiny_compbench.save_plus_models(folder)
    return {
        "geneval.detector": folder / "mask2former.pth",
        "geneval.clip": folder / "clip-vit-large-patch14",
        "geneval.short_side": 64,
        **{f"t2i_compbench.{setting}": path for setting, path in compbench.items()},
        **{f"t2i_compbench_pp.{setting}": path for setting, path in plus.items()},
        "dpg.mplug": write_mplug(folder / "mplug"),
        "oneig_diversity.dreamsim": save_dreamsim(folder / "dreamsim", width=64, layers=2),
        "oneig_style.csd": save_csd(folder / "checkpoint.pth"),
        "oneig_style.style_encoder": save_style_encoder(folder / "OneIG-StyleEncoder"),
    }


@dataclass(frozen=True)
class Materials:
    """What every benchmark needs."""

    checkouts: Path
    settings: dict[str, Path | int]
    judge_url: str


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Materials]:
    root = tmp_path_factory.mktemp("materials")
    checkouts = write_checkouts(root / "checkouts")
    server = JudgeServer()
    server.answer = judge
    yield Materials(checkouts, save_models(root / "models"), server.url)
    server.close()


def judge(body: dict[str, Any]) -> Any:
    """What any of the benchmarks' judges says."""
    if len(body["messages"]) == 1 and body["messages"][0]["content"][0]["type"] == "image_url":
        return oneig_data.answer(body)
    scores = "Consistency: 2\nRealism: 1\nAesthetic Quality: 1\nScore: 1\n"
    imagine = "Fantasy Fulfillment: 8\nIdentity Preservation: 7\nAesthetic Quality: 2\n"
    return reply(scores + imagine + '{"correct": 1}')


@pytest.mark.proof
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_from_prompts_to_scores(name: str, materials: Materials, tmp_path: Path) -> None:
    fixed = ["--engine", "transformers", "--device", "cpu", "--no-cot", "--limit", str(LIMIT)]
    repository = make_benchmark(name).repository.rpartition("/")[2]
    data = materials.checkouts / repository
    where = ["--data", str(data), "--output-dir", str(tmp_path), "--judge-url", materials.judge_url]
    own = {key.partition(".")[2]: value for key, value in materials.settings.items() if key.startswith(f"{name}.")}
    settings = [text for key, value in own.items() for text in ("--scorer", f"{key}={value}")]
    assert main([name, "--model", "tiny-janus", *fixed, *where, *settings]) == 0
    (path,) = (tmp_path / name / "results").glob("*.json")
    result = json.loads(path.read_text())
    assert result["is_complete"]
    assert result["num_prompts"] == min(LIMIT, result["num_prompts_of_benchmark"])
    assert all(measure["num_prompts"] for measure in result["measures"].values())
    assert result["pictures"]["model"] == "tiny-janus"
