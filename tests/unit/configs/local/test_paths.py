"""Paths of a config: variables in them, and where relative ones lead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.load import DEFAULT_CONFIG, load_config
from configs.local.paths import with_paths
from configs.schema import RunConfig


def config_of(**sections: Any) -> RunConfig:
    tree = {
        "model": {"path": "owner/model"},
        "learner": {"zero_stage": 1},
        "data": {"train": "shapes:train"},
        "rewards": [{"name": "shapes"}],
        **sections,
    }
    return RunConfig.model_validate(tree)


def test_relative_paths_are_written_down_absolute_and_hub_ids_stay(tmp_path: Path) -> None:
    (tmp_path / "my_head.pth").write_text("")
    (tmp_path / "model").mkdir()
    config = with_paths(
        config_of(
            data={"train": "three.txt", "evaluation": {"a": "b.jsonl", "s": "shapes:heldout:4"}},
            model={"path": "model"},
            warm_start={"examples": "pairs.jsonl", "batch_size": 1},
            rewards=[{"name": "aesthetic", "options": {"head": "my_head.pth", "model": "openai/clip", "size": 3}}],
            run={"cache_dir": "cache", "dir": "runs"},
        ),
        tmp_path,
    )
    assert config.data.train == str(tmp_path / "three.txt")
    assert config.data.evaluation == {"a": str(tmp_path / "b.jsonl"), "s": "shapes:heldout:4"}
    assert config.model.path == str(tmp_path / "model")
    assert config.warm_start is not None
    assert config.warm_start.examples == str(tmp_path / "pairs.jsonl")
    assert config.rewards[0].options == {"head": str(tmp_path / "my_head.pth"), "model": "openai/clip", "size": 3}
    assert (config.run.cache_dir, config.run.dir) == (str(tmp_path / "cache"), "runs")
    assert with_paths(config_of(), tmp_path).model.path == "owner/model"
    assert with_paths(config_of(model={"path": "model"}), None).model.path == "model"


def test_a_home_stays_each_nodes_own(tmp_path: Path) -> None:
    assert with_paths(config_of(data={"train": "~/p.txt"}), tmp_path).data.train == "~/p.txt"


def test_the_default_config_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(DEFAULT_CONFIG).run.name == "shapes_cpu"
