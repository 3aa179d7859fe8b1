"""How large the object store of a local Ray is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.planning import object_store
from cluster.planning.model_shape import ModelShape
from cluster.planning.object_store import GIB, object_store_size, shortage, shortage_on_nodes, weight_bytes
from configs.schema import RunConfig

LARGE = {"text_config": {"hidden_size": 4096, "num_hidden_layers": 30, "vocab_size": 102400}, "model_type": "janus"}


def config_of(path: str, **sections: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "model": {"path": path, "dtype": "bfloat16"},
            "data": {"train": "shapes:train"},
            "rewards": [{"name": "shapes"}],
            "learner": {"zero_stage": 2},
            **sections,
        }
    )


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(LARGE))
    return str(tmp_path)


def with_room(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    monkeypatch.setattr(object_store.shutil, "disk_usage", lambda path: SimpleNamespace(free=int(gib * GIB)))


def test_two_versions_of_the_weights_and_a_margin_fit_where_there_is_room(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_room(monkeypatch, 200)
    weights = ModelShape.of(LARGE).trainable * 2
    assert 12 * GIB < weights < 14 * GIB, "a 7B model in bfloat16"
    config = config_of(model)
    assert weight_bytes(config) == weights
    assert object_store_size(config) == 2 * weights + GIB
    assert shortage(config) is None


def test_of_adapters_a_version_holds_nothing_else(model: str) -> None:
    """Of a layer 4 x (4096 + 4096), and three matrices between 4096 and the inner width."""
    inner = ModelShape.of(LARGE).text.intermediate_size
    config = config_of(model, learner={"zero_stage": 2, "lora": {"rank": 32}})
    assert weight_bytes(config) == 2 * 30 * 32 * (4 * 8192 + 3 * (4096 + inner))


def test_less_room_is_taken_and_told(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_room(monkeypatch, 10)
    assert object_store_size(config_of(model)) == 9 * GIB
    complaint = shortage(config_of(model))
    assert complaint is not None
    assert "9.0 GiB" in complaint
    assert "--shm-size" in complaint
    with_room(monkeypatch, 0.06)
    assert object_store_size(config_of(model)) == GIB, "on disk then, as Ray does it"


def test_a_node_of_a_cluster_whose_object_store_is_too_small_is_told(model: str) -> None:
    complaint = shortage_on_nodes(config_of(model), [200 * GIB, 9.5 * GIB])
    assert complaint is not None
    assert "9.5 GiB is the smallest" in complaint
    assert shortage_on_nodes(config_of(model), [200 * GIB, 30 * GIB]) is None
    assert shortage_on_nodes(config_of("owner/model"), [GIB]) is None


def test_the_config_decides_where_it_says_a_size(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_room(monkeypatch, 10)
    config = config_of(model, cluster={"object_store_gib": 2.5})
    assert object_store_size(config) == int(2.5 * GIB)
    assert shortage(config) is None


def test_a_model_that_is_not_here_yet_gets_rays_share(monkeypatch: pytest.MonkeyPatch) -> None:
    with_room(monkeypatch, 100)
    assert object_store_size(config_of("owner/model")) == int(int(100 * GIB * 0.9) * 0.3)
    tiny = config_of("tiny-janus", warm_start={"examples": "shapes", "num_examples": 8})
    assert object_store_size(tiny) == GIB
