"""Studies: every arm is a config that loads, missing runs are made and finished ones kept, and the report adds up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from cluster.studies.definitions import STUDIES
from cluster.studies.report import draw, markdown
from cluster.studies.runs import Arm, Outcome, Plan, Study, run_study
from cluster.study import main
from configs.errors import RunError
from configs.load import load_config

ROOT = Path(__file__).resolve().parents[3]
SHAPES = ROOT / "configs" / "shapes_cpu.yaml"
STUDY = Study("Which?", (Arm("low", ("learner.lr=1e-5",)), Arm("high", ("learner.lr=1e-3",))), ("kl",), ("kl",))


def summary(before: float, after: float, status: str = "finished") -> Mapping[str, object]:
    return {
        "status": status,
        **{f"{name}_reward_before": before for name in ("heldout", "unseen_pairs")},
        **{f"{name}_reward_after": after for name in ("heldout", "unseen_pairs")},
    }


def outcome(arm: str, seed: int, gain: float) -> Outcome:
    rows = [{"step": step, "reward/mean": 0.4 + gain * step / 20, "kl": 0.01 * step} for step in range(1, 21)]
    return Outcome(arm, seed, summary(0.4, 0.4 + gain), rows, duration_s=60.0)


def write_run(directory: Path, name: str, status: str) -> None:
    (directory / name).mkdir(parents=True)
    (directory / name / "summary.json").write_text(json.dumps(summary(0.4, 0.5, status)))
    (directory / name / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.45, "kl": 0.1}\n')


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_of_every_study_is_a_config_that_loads_and_differs_from_the_others(name: str) -> None:
    study = STUDIES[name]
    configs = [load_config(SHAPES, [*study.overrides, *arm.overrides]) for arm in study.arms]
    assert len(configs) >= 2
    assert all(one != other for index, one in enumerate(configs) for other in configs[:index])


def test_finished_runs_are_kept_and_an_unfinished_one_is_set_aside(tmp_path: Path) -> None:
    write_run(tmp_path, "low-seed0", "finished")
    write_run(tmp_path, "high-seed0", "stopped")
    plan = Plan(tmp_path / "no_config.yaml", tmp_path, seeds=(0,), num_steps=1, overrides=())
    outcomes = run_study(STUDY, plan)
    first = next(outcomes)
    assert (first.arm, first.duration_s) == ("low", 0.0)
    assert first.change("heldout") == pytest.approx(0.1)
    with pytest.raises(RunError, match=r"run high-seed0 ended with exit code 2.*\n.*no_config"):
        next(outcomes)
    assert not (tmp_path / "high-seed0").exists()
    assert len(list(tmp_path.glob("high-seed0.unfinished-*"))) == 1


def test_the_table_holds_mean_and_spread_over_seeds() -> None:
    outcomes = [outcome("low", 0, 0.1), outcome("high", 0, 0.2), outcome("low", 1, 0.3), outcome("high", 1, 0.2)]
    page = markdown("lr", STUDY, outcomes, "python -m cluster.study lr")
    rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    interval = "+0.200 (-1.071 to +1.471)"  # t of a table: 12.706 for two seeds
    assert rows["low"] == f"| low | {interval} | {interval} | 0.595 ± 0.14 | 0.195 ± 0 |"
    assert rows["high"].startswith("| high | +0.200 (+0.200 to +0.200) |")
    assert "Seeds 0, 1; 20 steps a run." in page


def test_three_seeds_give_an_interval_and_one_seed_none() -> None:
    three = markdown("lr", STUDY, [outcome("low", seed, change) for seed, change in enumerate((0.1, 0.2, 0.3))], "")
    assert "| low | +0.200 (-0.048 to +0.448) |" in three  # 4.303 times 0.1 / sqrt(3)
    assert "| low | +0.100 | +0.100 |" in markdown("lr", STUDY, [outcome("low", 0, 0.1)], "")


def test_a_metric_that_an_arm_never_has_is_a_dash_in_the_table() -> None:
    outcomes = [outcome("low", 0, 0.1), outcome("low", 1, 0.3)]
    study = Study("Which?", STUDY.arms, (), columns=("kl/image", "kl"))
    (row,) = [line for line in markdown("lr", study, outcomes, "").splitlines() if line.startswith("| low")]
    assert row.endswith("| — | 0.195 ± 0 |")


def test_the_curves_are_drawn_also_where_a_metric_is_missing(tmp_path: Path) -> None:
    outcomes = [outcome("low", 0, 0.1), outcome("high", 0, 0.2)]
    study = Study("Which?", STUDY.arms, curves=("kl", "no/such_metric"))
    draw(tmp_path / "curves.png", study, outcomes)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 3 * picture.size[1] / 2


def test_a_wrong_override_is_refused_before_any_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["policy", "--config", str(SHAPES), "--set", "learner.no_such=1", "--output-dir", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "learner.no_such" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_some_arms_of_a_study_can_be_run_alone(tmp_path: Path) -> None:
    for name in ("exact-1", "naive-1"):
        write_run(tmp_path, f"{name}-seed0", "finished")
    chosen = ["--arms", "naive-1", "exact-1", "--seeds", "1", "--output-dir", str(tmp_path)]
    assert main(["staleness", "--config", str(SHAPES), *chosen]) == 0
    rows = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| exact-1", "| naive-1"]


def test_an_arm_that_a_study_does_not_have_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phases", "--arms", "both", "plans", "--output-dir", str(tmp_path / "out")]) == 2
    assert "--arms plans: the study has no such arm; its arms are semantic, image, both" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
