"""What a rehearsal changes in a config, and that it says so."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from cluster.planning.memory import GIB, learner_rank
from cluster.rehearsal.cuts import (
    ATTENTION_ONLY,
    LAYERS_ONLY,
    Cutter,
    cut_everywhere,
    cut_to_memory,
    cut_to_one_machine,
    needs_gpus,
)
from cluster.rehearsal.materials import cut_data, cut_rewards, shape_with_layers
from configs.errors import ConfigError, ModelError, PlacementError
from configs.load import load_config
from configs.schema import RunConfig
from rewards.rehearsal import has_random_weights, needs_weights

CONFIGS = Path(__file__).resolve().parents[4] / "configs"
GPU_CONFIGS = sorted(path.name for path in (*CONFIGS.glob("janus_pro_*.yaml"), CONFIGS / "t2i_r1.yaml"))


def cut(config: RunConfig) -> tuple[Cutter, RunConfig]:
    cutter = Cutter(config)
    cut_everywhere(cutter, config)
    cut_data(cutter, config)
    cut_to_one_machine(cutter, config, shape_with_layers(config, 2))
    return cutter, cutter.config("test")


@pytest.mark.parametrize("name", GPU_CONFIGS)
def test_a_config_for_gpus_fits_one_machine_without_any(name: str) -> None:
    config = load_config(CONFIGS / name)
    assert needs_gpus(config)
    _, small = cut(config)
    assert not needs_gpus(small)
    assert (small.cluster.address, small.registry.redis_url, small.checkpoint.url) == (None, None, None)
    assert small.algorithm.trajectories_per_step == 2
    assert small.model == config.model, "the model keeps its dtype; what is in it is another affair"
    assert [reward.name for reward in small.rewards] == [reward.name for reward in config.rewards]
    assert small.learner.zero_stage == config.learner.zero_stage


@pytest.mark.parametrize("name", GPU_CONFIGS)
def test_every_field_that_differs_is_told(name: str) -> None:
    config = load_config(CONFIGS / name)
    cutter, small = cut(config)

    def leaves(tree: object, path: str = "") -> dict[str, object]:
        if isinstance(tree, dict):
            return {k: v for key, child in tree.items() for k, v in leaves(child, f"{path}.{key}").items()}
        if isinstance(tree, list) and tree and isinstance(tree[0], dict):
            return {k: v for child in tree for k, v in leaves(child, f"{path}.{child['name']}").items()}
        return {path.removeprefix("."): tree}

    before, after = leaves(config.model_dump(mode="json")), leaves(small.model_dump(mode="json"))
    changed = {field for field in before.keys() | after.keys() if before.get(field) != after.get(field)}
    told = {entry.field for entry in cutter.cuts}
    assert changed == told
    assert all(entry.reason for entry in cutter.cuts)


def test_less_is_trained_where_the_optimizer_state_of_all_does_not_fit() -> None:
    config = load_config(CONFIGS / "janus_pro_7b_8gpu.yaml")
    shape_of = partial(shape_with_layers, config)
    cutter, _ = cut(config)
    optimizer = []
    for gib, trainable in ((60, config.learner.trainable), (30, LAYERS_ONLY), (20, ATTENTION_ONLY)):
        layers, needed = cut_to_memory(cutter, shape_of, 2, gib * GIB, "test")
        assert layers == 2
        assert 0.6 * gib * GIB < needed.total <= gib * GIB
        now = cutter.config("test")
        assert now.learner.trainable == trainable
        optimizer.append(learner_rank(now, shape_of(2)).parts["optimizer"])
    assert optimizer[0] > 2.5 * optimizer[1] > 2.5 * 2.5 * optimizer[2]
    assert cutter.cuts[-1].field == "learner.trainable"
    assert re.fullmatch(r"\d+ GiB of memory would be needed, 20 may be taken", cutter.cuts[-1].reason)


def test_layers_are_left_out_where_that_is_not_enough_and_said_so() -> None:
    config = load_config(CONFIGS / "janus_pro_7b_8gpu.yaml")
    cutter, _ = cut(config)
    assert cut_to_memory(cutter, partial(shape_with_layers, config), 3, 16 * GIB, "test")[0] == 1
    assert (cutter.cuts[-1].field, cutter.cuts[-1].before, cutter.cuts[-1].after) == ("--layers", "3", "1")


def test_a_model_of_which_not_one_layer_fits_is_refused_with_what_it_needs() -> None:
    config = load_config(CONFIGS / "janus_pro_7b_8gpu.yaml")
    cutter, _ = cut(config)
    needed = (
        r"needs 14\.\d GiB \(learner \d.*, checkpoint \d.*, rollout \d.*, beside 5\.0\) with one layer; 4\.0 GiB may"
    )
    with pytest.raises(PlacementError, match=needed):
        cut_to_memory(cutter, partial(shape_with_layers, config), 2, 4 * GIB, "test")


def test_layers_are_cut_and_widths_are_not() -> None:
    config = load_config(CONFIGS / "janus_pro_7b_8gpu.yaml")
    shape = shape_with_layers(config, 2)
    assert (shape.text.num_layers, shape.text.hidden_size, shape.text.vocab_size) == (2, 4096, 102400)
    assert (shape.image_size, shape.num_image_tokens, shape.vq.num_codes) == (384, 576, 16384)


def test_a_model_whose_sizes_are_not_known_is_refused() -> None:
    config = load_config(CONFIGS / "janus_pro_7b_8gpu.yaml", ["model.path=owner/model"])
    with pytest.raises(ModelError, match=r"downloads nothing.*deepseek-community/Janus-Pro-1B"):
        shape_with_layers(config, 2)


@pytest.mark.parametrize("name", GPU_CONFIGS)
def test_every_reward_of_a_shipped_config_has_random_weights(name: str) -> None:
    rewards = load_config(CONFIGS / name).rewards
    assert all(needs_weights(reward) and has_random_weights(reward) for reward in rewards)


def test_a_reward_without_random_weights_is_left_out_and_said_so() -> None:
    config = load_config(
        CONFIGS / "janus_pro_1b_1gpu.yaml", ["rewards=[{name: hps}, {name: vqa_score}, {name: shapes}]"]
    )
    cutter = Cutter(config)
    cut_rewards(cutter, config)
    assert [reward.name for reward in cutter.config("test").rewards] == ["hps", "shapes"]
    assert [entry.field for entry in cutter.cuts] == ["rewards.vqa_score"]


def test_rewards_that_all_lack_random_weights_are_refused() -> None:
    config = load_config(CONFIGS / "janus_pro_1b_1gpu.yaml", ["rewards=[{name: vqa_score}]"])
    with pytest.raises(ConfigError, match=r"no random weights for the rewards vqa_score.*--set rewards="):
        cut_rewards(Cutter(config), config)


def test_a_rehearsal_tells_no_tracker() -> None:
    config = load_config(CONFIGS / "janus_pro_1b_1gpu.yaml", ["watching.trackers=[wandb]"])
    assert cut(config)[1].watching.trackers == ()
