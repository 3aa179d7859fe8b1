"""Every config that we ship parses, plans, and names rewards that exist; the embedded default dry-runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.session import plan_placement
from cluster.session.dry_run import check_model_exists, describe_run
from configs.errors import ConfigError, ModelError, PlacementError
from configs.load import load_config
from configs.schema import ModelConfig, RewardConfig
from rewards.coverage import check_reward, reason_against
from rewards.registry import reward_path
from rollout.records import Prompt

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SHAPES_CPU = CONFIGS / "shapes_cpu.yaml"
NUM_GPUS = {
    "shapes_cpu": 0,
    "tiny_janus_shapes": 0,
    "tiny_janus_noisy": 0,
    "janus_pro_1b_1gpu": 1,
    "janus_pro_7b_8gpu": 8,
    "t2i_r1": 8,
    "janus_pro_7b_cluster": 32,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_config_parses_plans_and_names_known_rewards(path: Path):
    config = load_config(path)
    assert config.run.name == path.stem
    assert plan_placement(config).num_gpus == NUM_GPUS[path.stem]
    for reward in config.rewards:
        assert reward_path(reward.name).startswith("rewards.")
        assert check_reward(reward) is None


def test_the_8_gpu_config_is_the_recipe_of_the_paper():
    config = load_config(CONFIGS / "janus_pro_7b_8gpu.yaml")
    algorithm, learner = config.algorithm, config.learner
    assert (algorithm.groups_per_step, algorithm.group_size, algorithm.kl_coef) == (16, 8, 0.01)
    assert (learner.lr, config.run.steps) == (1e-6, 1600)
    assert (config.rollout.guidance_scale, config.rollout.temperature) == (5.0, 1.0)
    assert {reward.name: reward.weight for reward in config.rewards} == dict.fromkeys(
        ("hps", "git_vqa", "grounding_dino", "orm"), 1.0
    )


def test_the_embedded_default_needs_neither_gpu_nor_download():
    config = load_config(SHAPES_CPU)
    assert config.model.path == "tiny-janus"
    assert config.data.evaluation == {"heldout": "shapes:heldout", "unseen_pairs": "shapes:unseen_pairs"}
    assert config.data.num_evaluation_prompts >= 192
    assert [reward.name for reward in config.rewards] == ["shapes"]


def test_a_dry_run_shows_config_prompts_rewards_and_placement():
    text = describe_run(load_config(SHAPES_CPU, ["learner.lr=2e-6"])).text
    for expected in (
        "lr: 2.0e-06",
        "train (shapes:train):",
        "evaluation unseen_pairs (shapes:unseen_pairs), scoring 192:",
        "0 skipped",
    ):
        assert expected in text
    assert "shapes: rewards.shapes.reward:ShapesReward, weight 1" in text
    assert "rewards.shapes" in text.partition("── placement ──")[2]


def test_a_dry_run_counts_prompts_by_task_type_and_shows_what_is_skipped(tmp_path: Path):
    data = tmp_path / "p.jsonl"
    data.write_text('{"prompt": "a", "task_type": "color"}\n{"prompt": "b"}\n{}\n')
    text = describe_run(load_config(SHAPES_CPU, [f"data.train={data}"])).text
    assert f"train ({data}): 2 prompts, 1 skipped\n  color: 1\n  (no task_type): 1\n  line 3: prompt: missing" in text


def test_a_dry_run_refuses_an_unknown_reward_by_name():
    with pytest.raises(ConfigError, match="'shape' is not a reward; use one of"):
        describe_run(load_config(SHAPES_CPU, ["rewards.shapes.name=shape"]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('rewards.shapes.options={"colour": 1}', "'shapes' does not take options .*colour"),
        ("rewards=[{name: vlm_judge}]", "'vlm_judge' does not take options .*missing .*'url'"),
        ('rewards=[{name: "no_such_module:Taste"}]', "cannot import no_such_module:Taste"),
    ],
)
def test_a_dry_run_refuses_options_that_a_reward_does_not_take_and_loads_no_model(override: str, message: str):
    with pytest.raises(ConfigError, match=message):
        describe_run(load_config(SHAPES_CPU, [override]))


def test_a_reward_with_packages_of_its_own_need_not_be_importable_here():
    reward = {"name": "no_such_module:Taste", "runtime_env": {"pip": ["taste"]}}
    text = describe_run(load_config(SHAPES_CPU, [f"rewards=[{json.dumps(reward)}]"])).text
    assert "its options cannot be checked here: No module named 'no_such_module'" in text


def test_a_dry_run_says_to_how_many_prompts_each_reward_applies(tmp_path: Path):
    data = tmp_path / "p.jsonl"
    texts = ('a sign that says "A"', 'a sign that says "B"', "a sign that says C")
    data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    overrides = [
        f"data.train={data}",
        "rewards=[{name: ocr, phase: image}, {name: shapes, weight: 0}, {name: clip_score, evaluation_only: true}]",
        "algorithm.optimize=image",
    ]
    text = describe_run(load_config(SHAPES_CPU, overrides)).text
    assert "ocr applies to 2 of 3 prompts\n  shapes applies to 0 of 3 prompts\n" in text
    assert "no reward applies to 1 of 3 prompts, which are left out" in text
    assert "OcrReward, weight 1, trains the tokens of the picture only" in text
    assert "ShapesReward, weight 0, watched only" in text
    assert "ClipScoreReward, weight 1, for evaluations only" in text


def test_a_prompt_is_kept_where_any_reward_that_trains_applies_or_may_apply():
    quoted, plain = Prompt("a:1", 'a sign "OPEN"'), Prompt("a:2", "a cat")
    ocr, watched = RewardConfig(name="ocr"), RewardConfig(name="clip_score", weight=0.0)
    assert reason_against([ocr, watched])(quoted) is None
    assert reason_against([ocr, watched])(plain) == "none of the rewards ocr applies to it"
    assert reason_against([ocr, RewardConfig(name="clip_score")])(plain) is None


def test_a_plan_needs_no_data_and_names_what_is_missing(tmp_path: Path):
    planned = describe_run(load_config(SHAPES_CPU, [f"data.train={tmp_path / 'no.txt'}"]))
    assert "── placement ──" in planned.text
    (fault,) = planned.faults
    assert fault.startswith("train: ")
    assert "no.txt: cannot read" in fault


@pytest.mark.parametrize("name", ["janus_pro_1b_1gpu", "janus_pro_7b_8gpu", "janus_pro_7b_cluster", "t2i_r1"])
def test_every_shipped_gpu_config_fits_the_card_that_it_is_for(name: str):
    planned = describe_run(load_config(CONFIGS / f"{name}.yaml"), gpu="h100")
    assert "a step at best:" in planned.text
    assert "DOES NOT FIT" not in planned.text


def test_a_plan_that_does_not_fit_the_named_card_is_refused_with_what_to_change():
    config = load_config(CONFIGS / "janus_pro_7b_8gpu.yaml", ["rollout.decode_batch_size=64"])
    assert "DOES NOT FIT" in describe_run(config).text
    with pytest.raises(PlacementError, match=r"lower rollout\.decode_batch_size to \d+"):
        describe_run(config, gpu="h100")


@pytest.mark.parametrize("path", ["/no/such/folder", "./model", "~/no_such_model", "a/b/c", "configs/no_such_model"])
def test_a_path_that_is_no_folder_is_refused_by_name(path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(CONFIGS.parent)
    with pytest.raises(ModelError, match=f"model.path '{path}' is no folder; mend the path, or name a hub id"):
        check_model_exists(ModelConfig(path=path))


def test_a_folder_without_a_model_in_it_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        check_model_exists(ModelConfig(path=str(tmp_path)))


def test_a_model_folder_and_a_hub_id_are_let_through(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    check_model_exists(ModelConfig(path=str(tmp_path)))
    check_model_exists(ModelConfig(path="deepseek-community/Janus-Pro-1B"))
