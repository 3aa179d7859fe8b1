"""--serve-judge: the server starts when it is needed, wants its key, and ends with the command, however that ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from configs.errors import ModelError
from rewards.benchmark import main
from rewards.benchmarks import make_benchmark
from rewards.benchmarks.command import judge_server as serving
from rewards.benchmarks.command.judge_server import ServedJudge
from tests.unit.rewards.benchmarks.judged_data import write_data
from tests.unit.rewards.benchmarks.worlds import right_picture, write_all
from tests.waiting import wait_until

STAND_IN = "tests.stand_in_vllm"
ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MODULE", STAND_IN)
    monkeypatch.setattr(serving, "_POLL_S", 0.02)


def are_gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


@pytest.fixture
def where(tmp_path: Path) -> list[str]:
    """Options of `wise_verified`: invented data, and a picture of each prompt."""
    data = write_data(tmp_path / "data")["wise_verified"]
    items = make_benchmark("wise_verified").read_data(data).items
    shapes = make_benchmark("shapes").read_data(None).items[0]
    write_all(items, tmp_path / "images", lambda item, number: right_picture(shapes.record))
    return ["--images", str(tmp_path / "images"), "--data", str(data), "--output-dir", str(tmp_path / "out")]


def test_a_judge_is_served_asked_and_ended(where: list[str], tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    (tmp_path / "a-judge").mkdir()
    options = ("--serve-judge", str(tmp_path / "a-judge"), "--judge-args", f"--pids '{pids}'")
    assert main(["wise_verified", *where, *options]) == 0
    (path,) = (tmp_path / "out" / "wise_verified" / "results").glob("*.json")
    result = json.loads(path.read_text())
    assert (result["metric"], result["is_complete"]) == ("wise_verified[judge=a-judge]", True)
    assert (result["scorer"]["judge"], result["scorer"]["seen_judges"]) == ("a-judge", ["a-judge"])
    assert are_gone([int(pid) for pid in pids.read_text().split()])
    assert serving.KEY_VARIABLE not in os.environ

    pids.unlink()  # with nothing left to judge, none is started
    assert main(["wise_verified", *where, *options]) == 0
    assert not pids.exists()


def test_one_that_cannot_start_is_told_with_its_last_words(
    where: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["wise_verified", *where, "--serve-judge", "Qwen/none", "--judge-args", "--fail 'no such model'"]) == 2
    told = capsys.readouterr().err
    assert "the judge's server ended with code 1 before it answered; the last lines of" in told
    assert "ValueError: no such model" in told


def test_one_that_hangs_is_waited_for_so_long_and_ended(tmp_path: Path) -> None:
    judge = ServedJudge("m", "m", ["--hang"], tmp_path / "judge.log", print, start_timeout_s=3.0)
    with pytest.raises(ModelError, match=r"did not answer within 3 s(.|\n)*downloading"):
        judge.start()
    with pytest.raises(ModelError, match="did not answer within 3 s"):  # and not waited for again
        judge.start()


def test_wrong_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = ["--output-dir", str(tmp_path), "--images", str(tmp_path)]
    assert main(["shapes", *fixed, "--serve-judge", "m"]) == 2
    assert "--serve-judge: none of shapes asks a judge" in capsys.readouterr().err
    assert main(["shapes", *fixed, "--judge-args", "x"]) == 2
    assert "--judge-args are of --serve-judge" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["wise", *fixed, "--serve-judge", "m", "--judge-url", "http://localhost:1/v1"])


SERVES = f"""
import sys, time
from pathlib import Path
from rewards.benchmarks.command import judge_server as serving
serving.MODULE = {STAND_IN!r}
judge = serving.ServedJudge("m", "m", ["--pids", sys.argv[1]], Path(sys.argv[2]), lambda text: None)
judge.start()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_a_command_that_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    command = [sys.executable, "-c", SERVES, str(pids), str(tmp_path / "judge.log")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    process.wait(30)
    process.stdout.close()
    wait_until(lambda: are_gone([int(pid) for pid in pids.read_text().split()]), 30, "the server lives on")
