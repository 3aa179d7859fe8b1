"""The decoder draws what transformers' own Janus draws, from the VQ model's weights alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import JanusForConditionalGeneration
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from configs.errors import ModelError
from configs.schema import TinyJanusConfig
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.pictures import ImageDecoder

CONFIG = TinyJanusConfig(hidden_size=32, num_layers=1, num_codes=16, image_size=16, patch_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    model = save_random_tiny_janus(folder, CONFIG, ["a"])
    with torch.no_grad():  # fresh convolutions draw grey on grey: spread the pixels over their range, and beyond
        model.model.vqmodel.decoder.conv_out.weight.mul_(40)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, CONFIG.num_codes, (5, 16)).astype(np.int32)


def pictures_of_transformers(folder: Path, codes: np.ndarray, mean: float, std: float) -> np.ndarray:
    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        pixels = model.decode_image_tokens(torch.as_tensor(codes, dtype=torch.long))
    processor = JanusImageProcessorPil(image_mean=[mean] * 3, image_std=[std] * 3)
    channels_first = list(pixels.permute(0, 3, 1, 2).numpy())
    pictures = processor.postprocess(channels_first, input_data_format="channels_first")["pixel_values"]
    return np.stack(pictures).transpose(0, 2, 3, 1)


def test_pictures_equal_those_of_transformers_for_any_batch_size(folder: Path, codes: np.ndarray):
    expected = pictures_of_transformers(folder, codes, mean=0.5, std=0.5)
    assert expected.std() > 30, "the reference must not be flat"
    for batch_size in (2, 64):
        pictures = ImageDecoder(str(folder), batch_size=batch_size).decode(codes)
        assert pictures.dtype == np.uint8
        assert pictures.shape == (5, 16, 16, 3)
        difference = np.abs(pictures.astype(int) - expected)
        # One level, where float32 sums in another order cross a whole number.
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


def test_the_pixel_normalisation_of_the_checkpoint_is_undone(folder: Path, codes: np.ndarray, tmp_path: Path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    settings = {"image_mean": [0.4] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    pictures = ImageDecoder(str(tmp_path)).decode(codes)
    expected = pictures_of_transformers(folder, codes, mean=0.4, std=0.25)
    assert np.abs(pictures.astype(int) - expected).max() <= 1


def test_a_checkpoint_in_several_files_decodes_the_same(folder: Path, codes: np.ndarray, tmp_path: Path):
    model = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="400KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    shutil.copy(folder / "tokenizer.json", tmp_path)
    np.testing.assert_array_equal(ImageDecoder(str(tmp_path)).decode(codes), ImageDecoder(str(folder)).decode(codes))


class SmallDevice:
    """Has room for so many pictures at once, as PyTorch says it of a GPU; counts those of each pass."""

    def __init__(self, decoder: ImageDecoder, room: int) -> None:
        self.passes: list[int] = []
        decode = decoder._decode_batch

        def decode_if_there_is_room(codes: np.ndarray) -> np.ndarray:
            self.passes.append(len(codes))
            if len(codes) > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return decode(codes)

        decoder._decode_batch = decode_if_there_is_room


def test_a_batch_that_does_not_fit_is_halved_and_the_size_that_fits_is_kept(folder: Path, codes: np.ndarray):
    decoder = ImageDecoder(str(folder), batch_size=4)
    expected = decoder.decode(codes)
    device = SmallDevice(decoder, room=2)
    np.testing.assert_array_equal(decoder.decode(codes), expected)
    assert device.passes == [4, 2, 2, 1]
    device.passes.clear()
    decoder.decode(codes)
    assert device.passes == [2, 2, 1], "the size that fits is remembered"


def test_one_picture_that_does_not_fit_and_other_errors_are_raised(folder: Path, codes: np.ndarray):
    decoder = ImageDecoder(str(folder), batch_size=4)
    SmallDevice(decoder, room=0)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.decode(codes)
    broken = ImageDecoder(str(folder), batch_size=4)

    def fail(codes: np.ndarray) -> np.ndarray:
        raise RuntimeError("an illegal instruction")

    broken._decode_batch = fail
    with pytest.raises(RuntimeError, match="illegal"):
        broken.decode(codes)


@pytest.mark.parametrize("bad", [[[16] * 16], [[-1] * 16], [[0] * 15], [0] * 16], ids=["high", "low", "short", "flat"])
def test_bad_codes_are_refused(folder: Path, bad: list[list[int]]):
    with pytest.raises(ValueError, match="image tokens"):
        ImageDecoder(str(folder)).decode(np.array(bad, dtype=np.int32))


def test_no_pictures_are_no_pictures(folder: Path):
    assert ImageDecoder(str(folder)).decode(np.zeros((0, 16), dtype=np.int32)).shape == (0, 16, 16, 3)


def test_a_checkpoint_without_weights_is_named(folder: Path, tmp_path: Path):
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(ModelError, match=r"no readable model\.safetensors"):
        ImageDecoder(str(tmp_path))


def test_a_vq_model_with_a_missing_tensor_is_refused(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    del weights["model.vqmodel.post_quant_conv.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="does not fit its config"):
        ImageDecoder(str(tmp_path))
