"""Weight updates that do not fit are refused before anything is loaded, by the tensor's name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.errors import ModelError, WeightSyncError
from rollout.records import WeightBucket
from rollout.weights import WeightManifest
from rollout.weights.manifest import ENGINE_PARTS, part_of

MANIFEST = WeightManifest(
    {"lm_head.weight": (4, 2), "model.language_model.norm.weight": (3,), "model.language_model.bias": (1, 3)}
)


def language_model() -> WeightBucket:
    return WeightBucket(
        names=("model.language_model.norm.weight", "model.language_model.bias"),
        dtypes=("float32", "bfloat16"),
        shapes=((3,), (1, 3)),
        arrays=(np.zeros(3 * 4, np.uint8), np.zeros(3 * 2, np.uint8)),
    )


def lm_head() -> WeightBucket:
    return WeightBucket(("lm_head.weight",), ("float32",), ((4, 2),), (np.zeros(32, np.uint8),))


def refused(match: str, *buckets: WeightBucket) -> None:
    with pytest.raises(WeightSyncError, match=match):
        MANIFEST.check_buckets(buckets)


def test_whole_parts_pass_together_and_alone() -> None:
    MANIFEST.check_buckets([language_model(), lm_head()])
    MANIFEST.check_buckets([lm_head()])


def test_an_unknown_tensor_is_named() -> None:
    refused("'lm_head.bias' is no parameter", replace(lm_head(), names=("lm_head.bias",)))


def test_a_wrong_shape_is_told_beside_the_right_one() -> None:
    refused(r"'lm_head.weight' has shape \(2, 4\), the engine's has \(4, 2\)", replace(lm_head(), shapes=((2, 4),)))


def test_a_dtype_that_cannot_be_loaded_is_named() -> None:
    refused("'lm_head.weight' has dtype int8", replace(lm_head(), dtypes=("int8",)))


def test_a_tensor_may_come_once() -> None:
    refused("'lm_head.weight' comes twice", lm_head(), lm_head())


def test_a_part_that_is_not_whole_names_what_is_missing() -> None:
    half = WeightBucket(("model.language_model.bias",), ("float32",), ((1, 3),), (np.zeros(12, np.uint8),))
    refused("'model.language_model.norm.weight' is missing", half)


def test_bytes_that_do_not_match_the_shapes_are_counted() -> None:
    refused("has 31 bytes, its shape needs 32", replace(lm_head(), arrays=(np.zeros(31, np.uint8),)))


def test_an_update_without_tensors_is_refused() -> None:
    refused("no tensor")


def test_parts_are_told_by_their_prefix() -> None:
    assert part_of("model.generation_head.vision_head.weight") == "model.generation_head."
    assert part_of("model.vqmodel.quantize.embedding.weight") is None


def test_a_manifest_holds_what_the_engine_runs_of_a_checkpoint(tmp_path: Path) -> None:
    tensors = {f"{part}weight": np.zeros((2, 3), np.float32) for part in ENGINE_PARTS}
    save_file(tensors | {"model.vqmodel.weight": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    assert WeightManifest.from_folder(tmp_path).shapes == dict.fromkeys(tensors, (2, 3))


def test_a_checkpoint_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        WeightManifest.from_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        WeightManifest.from_folder(tmp_path)
