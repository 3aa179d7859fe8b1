"""What is refused before the first process starts, by --dry-run as by the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.session.dry_run import check_before_start
from configs.errors import ConfigError, PlacementError
from configs.schema import RunConfig


def config_of(**sections: Any) -> RunConfig:
    tree = {
        "model": {"path": "tiny-janus", "dtype": "float32"},
        "data": {"train": "shapes:train"},
        "warm_start": {"examples": "shapes", "num_examples": 10},
        "rewards": [{"name": "shapes"}],
        **sections,
    }
    return RunConfig.model_validate(tree)


@pytest.fixture(autouse=True)
def _no_ray_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)


def test_a_url_whose_file_system_is_not_there_names_the_remedy(tmp_path: Path) -> None:
    check_before_start(config_of(checkpoint={"url": f"file://{tmp_path}"}, run={"cache_dir": str(tmp_path)}))
    with pytest.raises(ConfigError, match=r"checkpoint\.url 'nowhere://user:\*\*\*@x'"):
        check_before_start(config_of(checkpoint={"url": "nowhere://user:hush@x"}))


def test_an_address_that_is_none_of_rays_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(PlacementError, match="RAY_ADDRESS"):
        check_before_start(config_of(run={"cache_dir": str(tmp_path)}))
