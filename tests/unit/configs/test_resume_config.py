"""What may change when a run goes on, and what must be given again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError
from configs.load import dump_config
from configs.local.environment import REDIS_URL_VARIABLE, with_secrets
from configs.resume import load_resumed_config
from configs.schema import RunConfig

SECRET_URL = "redis://:hidden@127.0.0.1:6379/0"


def write(tmp_path: Path, **sections: Any) -> Path:
    tree = {
        "model": {"path": "some/model", "dtype": "float32"},
        "data": {"train": "shapes:train"},
        "rewards": [{"name": "shapes"}],
        **sections,
    }
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(RunConfig.model_validate(tree)))
    return path


@pytest.mark.parametrize(
    "override",
    [
        "run.steps=200",
        "learner.num_ranks=2",
        "learner.zero_stage=1",
        "rollout.num_workers=3",
        "rollout.num_workers={min: 1, max: 4}",
        "rollout.threads_per_worker=2",
        "rewards.shapes.replicas=2",
        "rewards.shapes.replicas={min: 1, max: 2}",
        "checkpoint.keep_last=5",
        "cluster.address=auto",
        "registry.redis_port=7000",
    ],
)
def test_where_how_fast_and_how_long_may_change(tmp_path: Path, override: str):
    path = write(tmp_path)
    assert load_resumed_config(path, [override]) != load_resumed_config(path)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("run.seed=1", "run.seed"),
        ("algorithm.group_size=4", "algorithm.group_size"),
        ("model.path=other/model", "model.path"),
        ("rollout.temperature=0.5", "rollout.temperature"),
        ("rollout.engine=transformers", "rollout.engine"),
        ("rewards.shapes.weight=2", "rewards.shapes.weight"),
        ("learner.lr=1e-3", "learner.lr"),
        ("data.train=shapes:heldout", "data.train"),
    ],
)
def test_what_is_computed_may_not(tmp_path: Path, override: str, field: str):
    with pytest.raises(ConfigError, match="a run that goes on must keep it at") as raised:
        load_resumed_config(write(tmp_path), [override])
    assert f"{field}: a run" in str(raised.value)


def test_the_same_value_given_again_is_no_change(tmp_path: Path):
    assert load_resumed_config(write(tmp_path), ["run.seed=0"]).run.seed == 0


def test_a_masked_secret_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(
        tmp_path, registry={"redis_url": SECRET_URL}, rewards=[{"name": "shapes", "options": {"api_key": "hidden"}}]
    )
    assert "hidden" not in path.read_text()
    key = "rewards.shapes.options.api_key"
    with pytest.raises(ConfigError, match="is a secret and was not written down") as raised:
        load_resumed_config(path, [f"registry.redis_url={SECRET_URL}"])
    assert "hidden" not in str(raised.value)
    assert f"--set '{key}=${{NAME}}'" in str(raised.value)
    with pytest.raises(ConfigError, match=r"registry\.redis_url is a secret") as raised:
        load_resumed_config(path, [f"{key}=hidden"])
    assert REDIS_URL_VARIABLE in str(raised.value)
    monkeypatch.setenv(REDIS_URL_VARIABLE, SECRET_URL)
    assert load_resumed_config(path, [f"{key}=hidden"]).registry.redis_url == SECRET_URL


def test_a_variable_of_a_rewards_environment_is_found_in_ours_when_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    variables = {"HF_TOKEN": "hidden-1", "OTHER": "${FROM_OUTSIDE}"}
    path = write(tmp_path, rewards=[{"name": "shapes", "runtime_env": {"env_vars": variables}}])
    assert "hidden" not in path.read_text()
    with pytest.raises(ConfigError, match="give it again: in the environment variable HF_TOKEN"):
        load_resumed_config(path)
    monkeypatch.setenv("HF_TOKEN", "hidden-1")
    monkeypatch.setenv("FROM_OUTSIDE", "hidden-2")
    resumed = with_secrets(load_resumed_config(path))
    assert resumed.rewards[0].runtime_env["env_vars"] == {"HF_TOKEN": "hidden-1", "OTHER": "hidden-2"}
    path.write_text(dump_config(load_resumed_config(path)))
    assert "hidden" not in path.read_text(), "nor is it written down then"
