"""A benchmark whose process is killed in each stage goes on where it was, and no picture is judged twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from rewards.benchmarks import make_benchmark
from tests.judge_server import JudgeServer, reply
from tests.unit.rewards.benchmarks.judged_data import write_data

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 3
KILL = """
import os, signal, sys
import {module} as module
from rewards.benchmark import main
original, calls = module.{name}, []
def killing(*arguments, **others):
    calls.append(None)
    {before}
    result = original(*arguments, **others)
    {after}
    return result
module.{name} = killing
sys.exit(main(sys.argv[1:]))
"""
DIE = "if len(calls) == {count}: os.kill(os.getpid(), signal.SIGKILL)"


def killed_in(module: str, name: str, count: int, after: bool) -> str:
    """A program that kills itself before or after the `count`-th call of a function, and is the command else."""
    die = DIE.format(count=count)
    return KILL.format(module=module, name=name, before="pass" if after else die, after=die if after else "pass")


STAGES = {
    "draw": killed_in("rewards.benchmarks.drawing", "write_picture", 2, after=False),
    "encode": killed_in("rewards.benchmarks.stages", "encode_item", 2, after=False),
    "score": killed_in("rewards.benchmarks.folders", "append_line", 2, after=True),
    "aggregate": killed_in("rewards.benchmarks.stages", "make_result", 1, after=False),
}


@pytest.fixture
def judge() -> JudgeServer:
    return JudgeServer()


@pytest.mark.proof
def test_a_kill_in_each_stage_costs_what_was_in_flight(judge: JudgeServer, tmp_path: Path) -> None:
    judge.answer = lambda body: reply("Score: 1")
    data = write_data(tmp_path / "data")["wise_verified"]
    folder = tmp_path / "out" / "wise_verified"
    arguments = [
        *(
            "wise_verified",
            "--model",
            "tiny-janus",
            "--engine",
            "transformers",
            "--device",
            "cpu",
            "--limit",
            str(LIMIT),
        ),
        *("--no-cot", "--data", str(data), "--judge-url", judge.url, "--scorer", "num_parallel=1"),
        *("--output-dir", str(tmp_path / "out")),
    ]

    def run(program: list[str]) -> int:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *program, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, timeout=300, check=False).returncode

    try:
        states = {}
        for stage, program in STAGES.items():
            assert run(["-c", program]) == -signal.SIGKILL, stage
            states[stage] = state_of(folder)
        assert states == {
            "draw": (1, 0, 0),
            "encode": (LIMIT, 1, 0),
            "score": (LIMIT, LIMIT, 2),
            "aggregate": (LIMIT, LIMIT, LIMIT),
        }
        assert not (folder / "results" / "wise_verified.json").exists()
        drawn = {path: path.stat().st_mtime_ns for path in (folder / "drawn").rglob("*.png")}
        assert run(["-m", "rewards.benchmark"]) == 0
    finally:
        judge.close()
    result = json.loads((folder / "results" / "wise_verified.json").read_text())
    assert (result["is_complete"], result["num_files"]) == (True, LIMIT)
    assert {path: path.stat().st_mtime_ns for path in (folder / "drawn").rglob("*.png")} == drawn
    lines = [json.loads(line)["file"] for line in (folder / "drawn.jsonl").read_text().splitlines()]
    assert sorted(set(lines)) == sorted(str(path.relative_to(folder)) for path in drawn)
    asked = Counter(body["messages"][1]["content"][0]["text"] for _, _, body in judge.requests)
    # One reply may have been under way when the process died; it was never seen, and so never kept.
    kept = [json.loads(line) for line in (folder / "answers" / "wise_verified.jsonl").read_text().splitlines()]
    assert Counter(line["key"] for line in kept) == Counter(dict.fromkeys({line["key"] for line in kept}, 1))
    assert len(asked) == LIMIT
    assert sum(asked.values()) <= LIMIT + 1
    prompts = {item.key: item.prompt for item in make_benchmark("wise_verified").read_data(data).items}
    for line in kept[:2]:
        (text,) = [text for text in asked if prompts[line["key"]] in text]
        assert asked[text] == 1


def state_of(folder: Path) -> tuple[int, int, int]:
    """Pictures that are drawn, official files, answers."""
    answers = folder / "answers" / "wise_verified.jsonl"
    num_answers = len(answers.read_text().splitlines()) if answers.exists() else 0
    return len(list(folder.rglob("drawn/*/*.png"))), len(list(folder.rglob("images/*.png"))), num_answers
