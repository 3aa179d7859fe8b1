from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from configs.errors import ConfigError
from configs.load import dump_config, load_config
from configs.schema import RunConfig

MINIMAL = """\
model:
  path: models/janus
  dtype: float32
data:
  train: prompts.jsonl
rewards:
  - name: shapes
  - name: my.module:Own
    weight: 2
"""

IN_TURNS = ("rollout.colocate=true", "algorithm.max_staleness=0", "learner.zero_stage=1")


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def refusal_of(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_a_minimal_file_takes_all_other_values_from_the_defaults(config_file: Path):
    config = load_config(config_file)
    assert config.model.path == "models/janus"
    assert config.algorithm.group_size == 8
    assert [reward.weight for reward in config.rewards] == [1.0, 2.0]


def test_taking_turns_on_a_cpu_is_said_to_free_nothing_and_on_gpus_nothing_is_said(config_file: Path):
    (advice,) = load_config(config_file, IN_TURNS).advice
    assert advice.startswith("rollout.colocate on a CPU: engines and learner take turns, and free nothing by it")
    on_gpus = load_config(config_file, [*IN_TURNS, "rollout.gpus_per_worker=0.5", "learner.gpus_per_rank=0.5"])
    assert on_gpus.advice == ()
    assert on_gpus.weight_backend == "object_store"
    assert load_config(config_file, ["weight_sync.backend=auto", *IN_TURNS]).weight_backend == "object_store"
    by_ipc = on_gpus.model_copy(update={"weight_sync": on_gpus.weight_sync.model_copy(update={"backend": "auto"})})
    assert by_ipc.weight_backend == "ipc"


@pytest.mark.parametrize("text", ["2e-6", "2E-6", "2.0e-6", "0.000002", "+2e-6"])
def test_a_number_with_an_exponent_is_a_number_in_overrides_and_files(config_file: Path, text: str):
    assert load_config(config_file, [f"learner.lr={text}"]).learner.lr == 2e-6
    config_file.write_text(MINIMAL + f"learner: {{lr: {text}}}\n")
    assert load_config(config_file).learner.lr == 2e-6


def test_a_text_that_looks_like_a_number_with_an_exponent_stays_text_in_quotes(config_file: Path):
    assert load_config(config_file, ["run.name='1e5'"]).run.name == "1e5"


def test_overrides_reach_rewards_by_name_and_by_place(config_file: Path):
    overrides = ["rewards.shapes.weight=0.5", "rewards.1.options={model: a/b}", "rewards.1.options.size=7"]
    config = load_config(config_file, overrides)
    assert config.rewards[0].weight == 0.5
    assert config.rewards[1].options == {"model": "a/b", "size": 7}


def test_overrides_reach_sections_that_the_file_leaves_out(config_file: Path):
    overrides = ["registry.redis_url=null", "data.evaluation.heldout=more.txt", "rollout.enforce_eager=true"]
    config = load_config(config_file, overrides)
    assert config.rollout.enforce_eager is True
    assert config.data.evaluation == {"heldout": "more.txt"}


def test_the_last_of_two_overrides_wins(config_file: Path):
    assert load_config(config_file, ["run.steps=3", "run.steps=4"]).run.steps == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.steps", "expected path.to.field=value"),
        ("=3", "expected path.to.field=value"),
        ("rewards.hps.weight=1", "no element 'hps'; use one of shapes, my.module:Own, or 0 to 1"),
        ("rewards.2.weight=1", "no element '2'"),
        ("model.path.deeper=1", "model.path is 'models/janus', which has no fields"),
        ("model.path.deeper.still=1", "model.path is 'models/janus', which has no fields"),
        ("run.steps=[1", "broken YAML"),
    ],
)
def test_an_override_that_cannot_be_applied_is_refused_by_name(config_file: Path, override: str, message: str):
    refusal = refusal_of(config_file, override)
    assert message in refusal
    assert override in refusal


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], None),
        (["learner.lora={}"], r"learner.lr 1e-06 is too low.* 1e-05 at most.* between 1e-05 and 0.0001"),
        (["learner.lora={}", "learner.lr=1e-5"], None),
        (["learner.lora={rank: 32, alpha: 8}", "learner.lr=1e-5"], "between 4e-05 and 0.0004"),
        (["learner.lora={rank: 32, alpha: 320}"], None),
    ],
)
def test_a_learning_rate_that_adapters_cannot_learn_with_is_told(
    config_file: Path, overrides: list[str], expected: str | None
):
    """At alpha / rank of 1/4 it has to be four times as high."""
    advice = load_config(config_file, ["run.steps=10", "learner.mini_batches=1", *overrides]).advice
    assert len(advice) == (expected is not None)
    assert expected is None or re.search(expected, advice[0])


def test_a_missing_file_is_refused_by_name(tmp_path: Path):
    assert f"{tmp_path / 'no.yaml'}: cannot read the config file: No such file" in refusal_of(tmp_path / "no.yaml")


def test_a_file_that_is_not_text_is_refused_by_name(config_file: Path):
    config_file.write_bytes(b"run: {name: caf\xe9}\n")
    assert f"{config_file}: not UTF-8 text, at byte 15" in refusal_of(config_file)


def test_broken_yaml_is_refused_with_line_and_column(config_file: Path):
    config_file.write_text("model:\n  path: [a, b\ndata: {}\n")
    assert f"{config_file}:3:5: broken YAML" in refusal_of(config_file)


def test_a_key_that_stands_twice_is_refused_with_its_line(config_file: Path):
    config_file.write_text(MINIMAL + "data:\n  train: other.jsonl\n")
    assert f"{config_file}:10:1: broken YAML: the key 'data' stands here twice" in refusal_of(config_file)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_a_file_without_sections_is_refused(config_file: Path, text: str):
    config_file.write_text(text)
    assert "expected sections such as 'model:'" in refusal_of(config_file)


def test_every_wrong_field_is_listed_with_its_value(config_file: Path):
    refusal = refusal_of(config_file, "learner.lr=-1", "run.steps=many", "rewards.shapes.replicas=0", "model.path=null")
    assert "learner.lr = -1: Input should be greater than 0" in refusal
    assert "run.steps = 'many': Input should be a valid integer" in refusal
    assert "rewards.shapes.replicas = 0: Input should be greater than or equal to 1" in refusal
    assert "model.path = null: Input should be a valid string" in refusal
    assert refusal.startswith(f"{config_file}: the config is wrong\n")


def test_an_unknown_key_is_refused_with_the_nearest_known_one(config_file: Path):
    refusal = refusal_of(config_file, "learner.learning_rate=1", "algoritm.group_size=4", "rewards.shapes.wieght=2")
    assert "learner.learning_rate = 1: unknown key" in refusal
    assert "algoritm = {'group_size': 4}: unknown key; did you mean 'algorithm'?" in refusal
    assert "rewards.shapes.wieght = 2: unknown key; did you mean 'weight'?" in refusal


def test_evaluating_now_and_then_without_anything_to_evaluate_is_refused(config_file: Path):
    refusal = refusal_of(config_file, "data.evaluate_every_steps=10")
    assert "evaluate_every_steps is 10, but evaluation names no prompts; name a source there" in refusal


def test_an_unknown_key_like_no_other_is_refused_with_all_known_ones(config_file: Path):
    assert "queue.zzz = 1: unknown key; known are max_groups" in refusal_of(config_file, "queue.zzz=1")


def test_a_missing_field_is_refused_by_name(config_file: Path):
    config_file.write_text("model: {path: a}\nrewards: [{name: shapes}]\n")
    assert "  data: missing; add it" in refusal_of(config_file)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithm.group_size=1"], "algorithm: group_size 1: an advantage needs at least two"),
        (
            ["algorithm.group_size=6", "algorithm.images_per_cot=4"],
            "group_size 6 is not a multiple of images_per_cot 4",
        ),
        (["algorithm.mismatch_correction=tis"], "but old_logprobs is rollout; set old_logprobs to recompute"),
        (["algorithm.old_logprobs=guided", "algorithm.policy=guided"], "set old_logprobs to rollout"),
        (["learner.mini_batches=3"], "groups_per_step 16 do not divide into learner.mini_batches 3"),
        (["learner.mini_batches=16", "learner.micro_batch_size=16"], "a mini-batch has 8 trajectories"),
        (["learner.lora={rank: 4}", "learner.trainable=['lm_head.*']"], "leave one of the two out"),
        (["learner.lora={rank: 4}", "learner.reference=offloaded"], "leave one of them out"),
        (["learner.reference=sharded"], "set it to offloaded"),
        (["queue.max_groups=4"], "queue.max_groups 4 is smaller than one batch (algorithm.groups_per_step 16)"),
        (["learner.micro_batch_size=7"], "= 128 trajectories do not divide by learner.num_ranks 1 x"),
        (["model.dtype=bfloat16"], "learner.zero_stage 0 with model.dtype bfloat16"),
        (
            ["rollout.cot_top_k=50", "algorithm.policy=guided"],
            "rollout.cot_top_k 50 with algorithm.policy guided and old_logprobs rollout: engines then record",
        ),
        (["run.deterministic=true"], "run.deterministic with algorithm.max_staleness 1: the moment at which"),
        (["model.path=tiny-janus", "model.tiny.num_codes=4"], "model.tiny builds a model with random weights; add a"),
        (["model.tiny.num_codes=4"], "model: tiny is set, but path is 'models/janus'"),
        (["weight_sync.backend=nccl"], "weight_sync.backend nccl needs learner and vLLM rollout workers on whole GPUs"),
        (["rollout.colocate=true"], "rollout.colocate with algorithm.max_staleness 1: engines sleep while"),
        ([*IN_TURNS, "rollout.num_workers=2"], "rollout.num_workers 2 and learner.num_ranks 1: each rank shares"),
        ([*IN_TURNS, "rollout.num_workers={min: 1, max: 2}"], "rollout.num_workers 1 to 2 and learner.num_ranks 1"),
        ([*IN_TURNS, "rollout.gpus_per_worker=2", "rollout.tensor_parallel_size=2"], "set tensor_parallel_size to 1"),
        ([*IN_TURNS, "learner.gpus_per_rank=0.5"], "rollout.gpus_per_worker 0 and learner.gpus_per_rank 0.5: both are"),
        ([*IN_TURNS, "learner.gpus_per_rank=0.5", "rollout.gpus_per_worker=0.6"], "set each to 0.5, or less"),
        ([*IN_TURNS, "learner.zero_stage=3"], "rollout.colocate with learner.zero_stage 3: DeepSpeed moves"),
        ([*IN_TURNS, "learner.zero_stage=0"], "set zero_stage to 2, or to 1"),
        ([*IN_TURNS, "rollout.node_labels={zone: a}"], "and learner.node_labels {}: engine and rank are on one node"),
        ([*IN_TURNS, "rollout.vllm={enable_sleep_mode: true}"], "enable_sleep_mode is decided by rollout.colocate"),
        (["rollout.gpus_per_worker=2"], "gpus_per_worker 2.0 differs from tensor_parallel_size 1"),
        (["rollout.tensor_parallel_size=2"], "tensor_parallel_size 2 needs as many GPUs"),
        (["rollout.instruction=Describe it."], "must hold the placeholder {prompt}"),
        (["rewards=[]"], "no reward is set"),
        (["rewards=[{name: shapes}, {name: shapes}]"], "shapes is listed twice"),
        (["warm_start={examples: shapes}"], "set num_examples"),
        (["warm_start={examples: a.jsonl, plan_noise: 0.1}"], "plan_noise and drawing_noise are for examples: shapes"),
        (["warm_start={examples: a.jsonl, vq: {steps: 5}}"], "autoencoder_steps 150 leaves no step for the codebook"),
    ],
)
def test_an_impossible_combination_is_refused_before_anything_starts(
    config_file: Path, overrides: list[str], message: str
):
    assert message in refusal_of(config_file, *overrides)


def test_the_config_cannot_be_changed_once_it_is_made(config_file: Path):
    config = load_config(config_file)
    with pytest.raises(ValidationError, match="frozen"):
        config.run.steps = 3


def test_the_dumped_config_loads_as_the_same_config(config_file: Path):
    config = load_config(config_file, ["learner.lr=2e-6", "learner.betas=[0.9, 0.95]"])
    config_file.write_text(dump_config(config))
    assert load_config(config_file) == config


def test_the_dumped_config_names_every_default(config_file: Path):
    tree: dict[str, Any] = yaml.safe_load(dump_config(load_config(config_file)))
    assert set(tree) == set(RunConfig.model_fields)
    assert tree["rollout"]["guidance_scale"] == 5.0


def test_no_secret_is_dumped(config_file: Path):
    overrides = [
        "registry.redis_url='rediss://bicot:hush@redis:6379/0'",
        "rewards.shapes.options={api_key: hush, nested: [{hub_token: hush}], size: 3}",
    ]
    text = dump_config(load_config(config_file, overrides))
    assert "hush" not in text
    assert "rediss://bicot:***@redis:6379/0" in text
    assert yaml.safe_load(text)["rewards"][0]["options"] == {
        "api_key": "***",
        "nested": [{"hub_token": "***"}],
        "size": 3,
    }


def test_a_reward_is_normalized_as_it_says_itself_and_else_as_all_are(config_file: Path):
    assert load_config(config_file).normalized_rewards == frozenset()
    own = load_config(config_file, ["rewards.1.normalization=group"])
    assert own.normalized_rewards == {"my.module:Own"}
    everything = ["algorithm.reward_normalization=group"]
    assert load_config(config_file, everything).normalized_rewards == {"shapes", "my.module:Own"}
    but_one = load_config(config_file, [*everything, "rewards.shapes.normalization=none"])
    assert but_one.normalized_rewards == {"my.module:Own"}
    refusal = refusal_of(config_file, "rewards.shapes.normalization=batch")
    assert "normalization" in refusal
    assert "'none' or 'group'" in refusal


def test_a_pool_has_a_fixed_size_or_a_range_and_is_written_as_it_was_given(config_file: Path):
    config = load_config(
        config_file, ["rollout.num_workers={min: 2, max: 8}", "rewards.shapes.replicas=3", "run.name=sizes"]
    )
    assert (config.rollout.num_workers.min, config.rollout.num_workers.max) == (2, 8)
    assert (config.rewards[0].replicas.min, config.rewards[0].replicas.is_elastic) == (3, False)
    dumped = yaml.safe_load(dump_config(config))
    assert dumped["rollout"]["num_workers"] == {"min": 2, "max": 8}
    assert dumped["rewards"][0]["replicas"] == 3
    assert RunConfig.model_validate(dumped) == config


def test_sizes_heartbeats_and_environments_that_cannot_be_are_refused_with_a_remedy(config_file: Path):
    refusal = refusal_of(
        config_file,
        "rollout.num_workers={min: 3, max: 2}",
        "cluster.scaling.every_s=40",
        "rewards.shapes.runtime_env={pips: [numpy]}",
    )
    assert "rollout.num_workers: max 2 is below min 3; swap them, or write one number" in refusal
    late = refusal_of(config_file, "cluster.heartbeat_s=90")
    assert "cluster: heartbeat_timeout_s 60 is shorter than heartbeat_s 90" in late
    assert "cluster.scaling: every_s 40, grow_after_s 30 and shrink_after_s 300" in refusal
    assert "'pips' is no part of a runtime_env; use pip, uv, conda" in refusal
    assert "quote numbers" in refusal_of(config_file, "rewards.shapes.runtime_env={env_vars: {N: 1}}")


JUDGES = """rewards=[{name: alignment, kind: vlm_judge, options: {url: "http://a/v1", model: m}},
{name: style, kind: vlm_judge, options: {url: "http://a/v1", model: m}, weight: 0.5}]"""


def test_two_rewards_may_be_of_one_kind(config_file: Path):
    config = load_config(config_file, [JUDGES.replace("\n", " "), "rewards.style.weight=0.25"])
    assert [(r.name, r.implementation, r.weight) for r in config.rewards] == [
        ("alignment", "vlm_judge", 1.0),
        ("style", "vlm_judge", 0.25),
    ]
    assert load_config(config_file).rewards[0].implementation == "shapes"


def test_what_trains_which_tokens_follows_from_weight_phase_and_use(config_file: Path):
    rewards = (
        "rewards=[{name: shapes}, {name: orm, phase: cot}, {name: hps, phase: image, normalization: group}, "
        "{name: ocr, weight: 0, normalization: group}, {name: clip_score, evaluation_only: true}]"
    )
    config = load_config(config_file, [rewards])
    assert config.rewards_by_phase == {"cot": {"shapes", "orm"}, "image": {"shapes", "hps"}}
    assert config.normalized_rewards == {"hps"}
    assert config.has_rewards_of_one_phase
    assert not load_config(config_file).has_rewards_of_one_phase


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rewards=[{name: shapes, weight: 0}]", "every reward has weight 0 or is for evaluations only"),
        ("rewards=[{name: shapes, evaluation_only: true}]", "every reward has weight 0 or is for evaluations only"),
        ("rewards=[{name: shapes, phase: image}]", "no reward trains the phase 'cot', which algorithm.optimize both"),
        ("rewards=[{name: my judge, kind: vlm_judge}]", "name = 'my judge': expected the name of a reward, or"),
        ("rewards=[{name: shapes}, {name: shapes}]", "or give each a name of its own and what it is as kind"),
    ],
)
def test_rewards_that_train_nothing_or_have_no_plain_name_are_refused(config_file: Path, override: str, message: str):
    assert message in refusal_of(config_file, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rewards.shapes.weight=.nan", "rewards.shapes.weight = nan: Input should be a finite number"),
        ("rewards.shapes.weight=.inf", "rewards.shapes.weight = inf: Input should be a finite number"),
        ("rewards.shapes.weight='nan'", "rewards.shapes.weight = 'nan': Input should be a finite number"),
        ("rewards.shapes.options.target=.nan", "target is not a finite number; write one, or leave it out"),
        ("rewards.shapes.gpus_per_replica=.inf", "gpus_per_replica = inf: Input should be a finite number"),
        ("algorithm.kl_coef=.inf", "algorithm.kl_coef = inf: Input should be a finite number"),
        ("run.step_timeout_s=.inf", "run.step_timeout_s = inf: Input should be a finite number"),
        ("run.step_timeout_s=1e12", "run.step_timeout_s = 1000000000000.0: more than 31622400 makes no sense here"),
        ("run.steps=true", "run.steps = True: a truth value is no number; write the number"),
        ("run.steps=yes", "run.steps = 'yes': Input should be a valid integer"),
        ("run.steps=10:30", "run.steps = '10:30': Input should be a valid integer"),
        ("learner.lr=on", "learner.lr = 'on': Input should be a valid number"),
        ("learner.lr=0", "learner.lr = 0: Input should be greater than 0"),
        ("learner.lr=1e30", "learner.lr = 1e+30: Input should be less than or equal to 1"),
        ("learner.betas=[0.9, 1.5]", "learner.betas.1 = 1.5: Input should be less than 1"),
        ("learner.betas=[-0.1, 0.9]", "learner.betas.0 = -0.1: Input should be greater than or equal to 0"),
        ("learner.betas=[true, 0.9]", "a truth value is no number"),
        ("algorithm.max_staleness=1000000000000", "Input should be less than or equal to 1000"),
        ("algorithm.max_staleness=1000000000000000000000", "does not fit 64 bits; write a smaller one"),
        (
            "rollout.num_workers=4000000000",
            "rollout.num_workers.min = 4000000000: Input should be less than or equal to",
        ),
        ("rollout.temperature=0", "Input should be greater than or equal to 0.01"),
        ("model.tiny.hidden_size=1000000000000", "Input should be less than or equal to 32768"),
        ("rewards=[{name: shapes, weight: 0}, {name: hps, weight: 0.0}]", "every reward has weight 0"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused_with_field_and_value(config_file: Path, override: str, message: str):
    assert message in refusal_of(config_file, override)


def test_a_negative_weight_is_a_penalty_and_taken(config_file: Path):
    assert load_config(config_file, ["rewards.shapes.weight=-0.5"]).rewards[0].weight == -0.5


@pytest.mark.parametrize(
    "text",
    ["!!timestamp x", "!!int ''", "!!bool maybe", "!!float x", "&x [*x]", '"\\U00110000"', '"\\ud800"', "9" * 5000],
)
def test_what_yaml_itself_stumbles_over_is_broken_yaml_with_its_line(config_file: Path, text: str):
    config_file.write_text(MINIMAL + f"run: {{name: {text}}}\n")
    assert f"{config_file}:10:" in refusal_of(config_file) or "holds itself" in refusal_of(config_file)


def test_nothing_of_an_override_is_left_out_as_a_comment(config_file: Path):
    loaded = load_config(config_file, ["rollout.system_prompt=Draw #1 things", "data.train=prompts #2.txt"])
    assert loaded.rollout.system_prompt == "Draw #1 things"
    assert loaded.data.train == "prompts #2.txt"
    assert load_config(config_file, ["rollout.system_prompt=#1"]).rollout.system_prompt == "#1"
    refusal = refusal_of(config_file, "learner.betas=[0.9, 0.95] # as in the paper")
    assert "'# as in the paper' would be left out as a comment; put quotes around the text" in refusal


def test_an_override_reaches_a_reward_whose_module_has_dots_in_its_name(config_file: Path):
    assert load_config(config_file, ["rewards.my.module:Own.weight=0.25"]).rewards[1].weight == 0.25


@pytest.mark.parametrize("revision", ["7e12345", "1e-6", "0123", "on", "2024-01-01", "null", "a\x85b"])
def test_a_text_that_looks_like_something_else_is_the_same_text_when_a_run_goes_on(config_file: Path, revision: str):
    config = load_config(config_file)
    config = config.model_copy(update={"model": config.model.model_copy(update={"revision": revision})})
    config_file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(config_file) == config


@pytest.mark.parametrize("name", ["a/b", "", ".", "..", "a b", "x" * 61, "a\n"])
def test_an_evaluation_set_is_named_by_what_can_be_part_of_a_file_name(config_file: Path, name: str):
    tree = yaml.safe_load(MINIMAL)
    tree["data"]["evaluation"] = {name: "shapes:heldout:4"}
    config_file.write_text(yaml.safe_dump(tree))
    refusal = refusal_of(config_file)
    assert "becomes part of file names: use letters, digits" in refusal
    assert "data.evaluation" in refusal


@pytest.mark.parametrize("name", ["", "shapes/x", "..x:y", "shapes:", "a b"])
def test_a_reward_is_a_name_or_module_and_attribute(config_file: Path, name: str):
    assert "rewards." in refusal_of(config_file, f"rewards.0.name='{name}'")


def test_variables_in_paths_are_put_in_and_refused_where_they_are_not_set(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOT_SET", raising=False)
    config = load_config(config_file, ["run.dir=$SCRATCH/runs", "data.train=${SCRATCH}/p.txt", "model.path=a$"])
    assert (config.run.dir, config.data.train, config.model.path) == ("/scratch/me/runs", "/scratch/me/p.txt", "a$")
    refusal = refusal_of(config_file, "run.dir=$NOT_SET/runs")
    assert "run.dir = '$NOT_SET/runs': the environment variable NOT_SET is not set" in refusal


@pytest.mark.parametrize("backend", ["nccl", "ipc", "auto"])
def test_changes_alone_are_not_broadcast(config_file: Path, backend: str):
    assert load_config(config_file, ["weight_sync.delta=true"]).weight_sync.delta
    refusal = refusal_of(config_file, "weight_sync.delta=true", f"weight_sync.backend={backend}")
    assert f"delta: true needs backend: object_store, not {backend}" in refusal


@pytest.mark.parametrize(
    ("overrides", "best", "possible"),
    [
        ([], "object_store", {"ipc"}),
        (["rollout.gpus_per_worker=1", "learner.gpus_per_rank=1"], "nccl", {"nccl", "ipc"}),
        (["rollout.gpus_per_worker=0.5", "learner.gpus_per_rank=0.5"], "ipc", {"ipc"}),
        (["rollout.gpus_per_worker=1", "learner.gpus_per_rank=0.5"], "ipc", {"ipc"}),
        (["rollout.gpus_per_worker=1"], "object_store", set()),
        (["rollout.gpus_per_worker=1", "learner.gpus_per_rank=1", "weight_sync.staged=false"], "object_store", set()),
        (
            ["rollout.gpus_per_worker=1", "learner.gpus_per_rank=1", "rollout.engine=transformers"],
            "object_store",
            set(),
        ),
    ],
)
def test_weights_go_by_nccl_between_whole_gpus_and_by_ipc_where_gpus_are_shared(
    config_file: Path, overrides: list[str], best: str, possible: set[str]
):
    assert load_config(config_file, ["weight_sync.backend=auto", *overrides]).weight_backend == best
    assert load_config(config_file, overrides).weight_backend == "object_store", "nothing is broadcast unasked"
    for backend, why in (("nccl", "whole GPUs of their own"), ("ipc", "both on GPUs or both on CPUs")):
        if backend in possible:
            assert load_config(config_file, [f"weight_sync.backend={backend}", *overrides]).weight_backend == backend
        else:
            assert why in refusal_of(config_file, f"weight_sync.backend={backend}", *overrides)
