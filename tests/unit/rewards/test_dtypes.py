"""`dtype: auto` of the rewards: which precision each one has where."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.planning.reward_models import BFLOAT16_ON_A_GPU, PARAMETERS, WITHOUT_A_MODEL, reward_bytes
from configs.errors import ConfigError
from configs.schema import RewardConfig
from rewards.loading import resolve_dtype
from rewards.loading.pretrained import DTYPES, parse_dtype
from rewards.registry import REGISTERED

MODULES = {
    "rewards.alignment.orm": "bfloat16",
    "rewards.alignment.vqa_score": "bfloat16",
    "rewards.alignment.git_vqa": "tf32",
    "rewards.alignment.clip_scores": "tf32",
    "rewards.objects.geneval_reward": "tf32",
    "rewards.objects.grounding_dino": "tf32",
    "rewards.preference.aesthetic": "tf32",
    "rewards.preference.aesthetic_v2_5": "tf32",
    "rewards.preference.hps": "tf32",
    "rewards.preference.hpsv3": "bfloat16",
    "rewards.preference.image_reward": "tf32",
    "rewards.safety.nsfw": "tf32",
}


@pytest.mark.parametrize("module", MODULES)
def test_each_reward_names_its_precision_on_a_gpu(module: str) -> None:
    named = importlib.import_module(module).GPU_DTYPE
    assert named == MODULES[module]
    assert named in DTYPES


def test_auto_is_float32_on_a_cpu_and_the_rewards_own_on_a_gpu() -> None:
    assert resolve_dtype("auto", "cpu", "bfloat16") == "float32"
    assert resolve_dtype("auto", "cuda", "bfloat16") == "bfloat16"
    assert resolve_dtype("float16", "cuda", "bfloat16") == "float16"
    assert resolve_dtype("bfloat16", "cpu", "tf32") == "bfloat16"


@pytest.fixture
def without_tf32() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.usefixtures("without_tf32")
def test_tf32_is_switched_on_only_where_it_is_chosen() -> None:
    for dtype, device in (("auto", "cpu"), ("tf32", "cpu"), ("float32", "cuda")):
        assert parse_dtype(resolve_dtype(dtype, device, "tf32")) is torch.float32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert parse_dtype(resolve_dtype("auto", "cuda", "tf32")) is torch.float32
    assert torch.backends.cuda.matmul.allow_tf32


def test_what_the_config_says_of_the_orms_memory_is_its_precision() -> None:
    text = (Path(__file__).parents[3] / "configs" / "janus_pro_7b_8gpu.yaml").read_text()
    found = re.search(r"name: orm.*?(\d+) B parameters in (\w+): (\d+) GB", text, re.DOTALL)
    assert found is not None
    billions, dtype, gigabytes = int(found[1]), found[2], int(found[3])
    assert dtype == MODULES["rewards.alignment.orm"]
    assert billions * DTYPES[dtype].itemsize <= gigabytes <= billions * DTYPES[dtype].itemsize + 2


def test_the_plan_counts_each_reward_in_its_own_precision() -> None:
    named = {REGISTERED[name].partition(":")[0] for name in BFLOAT16_ON_A_GPU}
    assert named == {module for module, dtype in MODULES.items() if dtype == "bfloat16"}
    orm, exact = RewardConfig(name="orm"), RewardConfig(name="orm", options={"dtype": "float32"})
    assert reward_bytes(orm) == 8.03e9 * 2 + 2**30
    assert reward_bytes(exact) == 8.03e9 * 4 + 2**30
    assert reward_bytes(RewardConfig(name="style", kind="orm")) == reward_bytes(orm)
    assert reward_bytes(RewardConfig(name="orm", kind="vlm_judge")) == 0
    assert reward_bytes(RewardConfig(name="orm", kind="my_rewards:Taste")) is None


def test_every_shipped_reward_has_its_size_in_the_plan() -> None:
    assert {*PARAMETERS, *WITHOUT_A_MODEL} == set(REGISTERED)


def test_another_dtype_is_refused_with_a_list() -> None:
    with pytest.raises(ConfigError, match=r"dtype: 'int8' is not one of auto, float32, tf32, bfloat16, float16"):
        resolve_dtype("int8", "cpu", "tf32")
