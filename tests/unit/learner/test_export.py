"""What is written for a trained model fits the model that it was trained from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from configs.errors import LearnerError
from configs.schema import TinyJanusConfig
from learner.export import _write_folder
from learner.warm_start.tiny_janus import save_random_tiny_janus


def test_a_weight_that_the_starting_model_lacks_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    shape = TinyJanusConfig(hidden_size=32, num_layers=1, num_codes=8, image_size=8, max_positions=64)
    save_random_tiny_janus(tmp_path / "tiny", shape, ["red", "star"])
    strange = {"lm_head.lora_a": torch.zeros(2, 2)}
    with pytest.raises(LearnerError, match=r"/tiny has no weights lm_head\.lora_a, which were trained"):
        _write_folder(strange, str(tmp_path / "tiny"), tmp_path / "out", torch.float32, None)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
