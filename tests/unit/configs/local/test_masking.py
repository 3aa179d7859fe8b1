"""What is a secret, and that none of it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from configs.errors import ConfigError
from configs.load import dump_config, load_config
from configs.local.environment import with_secrets
from configs.local.masking import MASK, is_secret_key, mask, mask_message, mask_override, mask_text
from configs.schema import RunConfig

SHIPPED = sorted(Path(__file__).resolve().parents[4].glob("configs/*.yaml"))


def config_of(**sections: object) -> RunConfig:
    tree = {
        "model": {"path": "some/model", "dtype": "float32"},
        "data": {"train": "shapes:train"},
        "rewards": [{"name": "shapes"}],
        **sections,
    }
    return RunConfig.model_validate(tree)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:hush@localhost:6379", "redis://:***@localhost:6379"),
        ("redis://me:hu@sh@localhost", "redis://me:***@localhost"),
        ("redis://me:hu/sh@localhost/0", "redis://me:***@localhost/0"),
        ("unix:///run/redis.sock?db=1&password=hush&x=2", "unix:///run/redis.sock?db=1&password=***&x=2"),
        ("s3://AKIA1:hush@bucket/x", "s3://AKIA1:***@bucket/x"),
        ("https://hush@github.com/a/b", "https://***@github.com/a/b"),
        ("--extra-index-url https://user:hush@pypi.corp/simple", "--extra-index-url https://user:***@pypi.corp/simple"),
        ("https://a.blob/x?sv=1&sig=hush%3D&se=2", "https://a.blob/x?sv=1&sig=***&se=2"),
        ("https://s3/x?X-Amz-Signature=hush&X-Amz-Date=1", "https://s3/x?X-Amz-Signature=***&X-Amz-Date=1"),
        ("Authorization: Bearer hush-hush", "Authorization: Bearer ***"),
        ("X-Api-Key: hush", "X-Api-Key: ***"),
        ("PASSWORD=hush", "PASSWORD=***"),
        ("it said hf_hushhushhushhushhush", "it said ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nhush\n-----END RSA PRIVATE KEY-----", "***"),
        ("redis://:${PASSWORD}@host", "redis://:${PASSWORD}@host"),
        ("${HF_TOKEN}", "${HF_TOKEN}"),
        ("git@github.com:a/b, http://judge:8000/v1, a 2:1 picture @home", None),
        ("shapes:train:32", None),
        ("Draw the key: a red one", None),
    ],
)
def test_a_text_is_masked_only_where_its_secret_stands(text: str, masked: str | None) -> None:
    assert mask_text(text) == (text if masked is None else masked)
    assert mask_text(mask_text(text)) == mask_text(text)


@pytest.mark.parametrize(
    "key",
    [
        *("api_key", "OPENAI_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_PAT", "DB_PASSWD", "SSH_PRIVATE_KEY", "MY_TOKEN_2"),
        *("Authorization", "X-Api-Key", "hubToken", "mysecret", "proxy_auth", "set-cookie", "passphrase", "dbPassword"),
    ],
)
def test_a_key_is_a_secret_by_any_of_its_words(key: str) -> None:
    assert is_secret_key(key)
    assert mask({"outer": {key: "hush"}, "list": [{key: ["hush", {"x": 7}]}]}) == {
        "outer": {key: MASK},
        "list": [{key: [MASK, {"x": MASK}]}],
    }


@pytest.mark.parametrize(
    "key",
    [
        *("api_key_env", "key_file", "max_tokens", "max_cot_tokens", "tokenizer", "keep_every", "monkey", "pattern"),
        *("path", "author", "question", "keyboard"),
    ],
)
def test_a_key_that_only_sounds_like_a_secret_is_shown(key: str) -> None:
    assert mask({key: "shown"}) == {key: "shown"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_nothing_of_a_shipped_config_is_taken_for_a_secret(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    assert mask(tree) == tree


def test_no_variable_of_a_rewards_environment_is_dumped() -> None:
    environment = {"env_vars": {"HF_HOME": "hush-1", "PLAIN": "hush-2", "FROM": "${OUTSIDE}"}, "pip": ["x==1"]}
    text = dump_config(config_of(rewards=[{"name": "shapes", "runtime_env": environment}]))
    assert "hush" not in text
    assert yaml.safe_load(text)["rewards"][0]["runtime_env"] == {
        "env_vars": {"HF_HOME": MASK, "PLAIN": MASK, "FROM": "${OUTSIDE}"},
        "pip": ["x==1"],
    }


@pytest.mark.parametrize(
    ("override", "masked"),
    [
        ("learner.lr=2e-6", "learner.lr=2e-6"),
        ("registry.redis_url=redis://:hush@host", "registry.redis_url=redis://:***@host"),
        ("rewards.a.options.api_key=hush", "rewards.a.options.api_key=***"),
        ("rewards.a.options.api_key=${KEY}", "rewards.a.options.api_key=${KEY}"),
        ("rewards.a.runtime_env.env_vars.X=hush", "rewards.a.runtime_env.env_vars.X=***"),
        ("rewards.a.runtime_env={env_vars: {X: hush}}", "rewards.a.runtime_env=***"),
    ],
)
def test_an_override_is_shown_without_its_secret(override: str, masked: str) -> None:
    assert mask_override(override) == masked
    assert mask_message(f"--set {override}: broken", [override]) == f"--set {masked}: broken"


def test_a_reference_is_replaced_for_the_run_and_kept_in_the_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", "hush-1")
    monkeypatch.setenv("JUDGE_KEY", "hush-2")
    config = config_of(
        registry={"redis_url": "redis://:${REDIS_PASSWORD}@host:6379/0"},
        rewards=[{"name": "shapes", "options": {"headers": {"Authorization": "${JUDGE_KEY}"}}}],
    )
    resolved = with_secrets(config)
    assert resolved.registry.redis_url == "redis://:hush-1@host:6379/0"
    assert resolved.rewards[0].options == {"headers": {"Authorization": "hush-2"}}
    assert "hush" not in dump_config(resolved)
    assert "${REDIS_PASSWORD}" in dump_config(config)


def test_a_reference_to_nothing_is_named_with_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(ConfigError, match=r"rewards\.shapes\.options\.key: the environment variable NOT_THERE is not"):
        with_secrets(config_of(rewards=[{"name": "shapes", "options": {"key": "${NOT_THERE}"}}]))


def test_a_wrong_field_is_named_without_the_secret_in_it(tmp_path: Path) -> None:
    tree = {"model": {"path": "m"}, "data": {"train": "x"}, "rewards": [{"name": "shapes"}]}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    for override in (
        "rewards.shapes.runtime_env={env_vars: {HF_TOKEN: hush}, typo: 1}",
        "rewards.shapes.runtime_env={env_vars: {PORT: 77443311}}",
        "registry.password=hush",
        "registry.redis_url=[redis://:hush@host]",
    ):
        with pytest.raises(ConfigError) as raised:
            load_config(path, [override])
        assert "hush" not in str(raised.value), override
        assert "77443311" not in str(raised.value)
