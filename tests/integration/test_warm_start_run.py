"""Whole warm starts through DeepSpeed: on one rank and two, of a tiny Janus and of a given checkpoint."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from PIL import Image
from torch import Tensor
from transformers import JanusForConditionalGeneration

from configs.errors import DataError
from configs.schema import RunConfig
from learner.warm_start import ensure_warm_start, warm_start
from learner.zero import close_distributed, init_distributed
from rollout.prompts import Conversation

TIMEOUT_S = 180.0
COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 160, 30)}


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve captioned pictures: a coloured half, left or right."""
    folder = tmp_path_factory.mktemp("examples")
    lines = []
    for index in range(12):
        color, left = list(COLORS)[index % 3], index % 2 == 0
        picture = Image.new("RGB", (16, 16), (255, 255, 255))
        picture.paste(COLORS[color], (0, 0, 8, 16) if left else (8, 0, 16, 16))
        picture.save(folder / f"{index}.png")
        plan = f"{color} wall {'left' if left else 'right'}"
        lines.append(json.dumps({"prompt": f"a {color} wall", "plan": plan, "image": f"{index}.png"}))
    (folder / "examples.jsonl").write_text("\n".join(lines))
    return folder / "examples.jsonl"


def make_config(examples: Path, cache_dir: Path, model: dict[str, Any], **warm: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"cache_dir": str(cache_dir)},
            "model": {"dtype": "float32", **model},
            "data": {"train": "shapes:train", "max_bad_lines": 0},
            "warm_start": {
                "examples": str(examples),
                "steps": 4,
                "batch_size": 4,
                "lr": 1e-3,
                "warmup_steps": 0,
                **warm,
            },
            "rewards": [{"name": "shapes"}],
            "learner": {"micro_batch_size": 2, "threads_per_rank": 1},  # the order of sums depends on the threads
        }
    )


def tiny_config(examples: Path, cache_dir: Path) -> RunConfig:
    tiny = {"hidden_size": 32, "num_layers": 1, "num_codes": 8, "image_size": 16, "patch_size": 4}
    vq = {"steps": 6, "autoencoder_steps": 3, "batch_size": 4}
    return make_config(examples, cache_dir, {"path": "tiny-janus", "tiny": tiny}, vq=vq)


@pytest.fixture(scope="module")
def warm_folder(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made in this process, by the cache."""
    stages: list[str] = []
    config = tiny_config(examples, tmp_path_factory.mktemp("cache"))
    folder = ensure_warm_start(config, lambda stage, step, total, metrics: stages.append(f"{stage} {step}/{total}"))
    assert stages == [f"vq {step}/6" for step in range(1, 7)] + [f"policy {step}/4" for step in range(1, 5)]
    assert ensure_warm_start(config, lambda *_: pytest.fail("a cached model must not be trained again")) == folder
    return folder


def weights_of(folder: Path) -> dict[str, Tensor]:
    return JanusForConditionalGeneration.from_pretrained(folder).state_dict()


def test_the_folder_loads_and_holds_the_words_of_the_examples(warm_folder: Path):
    conversation = Conversation.from_pretrained(str(warm_folder))
    plan = "blue wall right"
    assert conversation.decode_cot(conversation.encode_cot(plan)) == plan
    assert conversation.tokenizer.unk_token_id not in conversation.semantic_prompt("a green wall")
    assert [path.name for path in warm_folder.parent.iterdir()] == [warm_folder.name]


def _run_rank(rank: int, num_ranks: int, port: int, config: RunConfig, folder: Path) -> None:
    init_distributed(rank, num_ranks, "127.0.0.1", port, "cpu", timeout_s=TIMEOUT_S)
    try:
        warm_start(config, folder, rank, num_ranks)
    finally:
        close_distributed()


def run_ranks(num_ranks: int, config: RunConfig, folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.spawn(_run_rank, (num_ranks, port, config, folder), nprocs=num_ranks, join=False)
    deadline_s = time.monotonic() + TIMEOUT_S
    # join returns after each rank that ends, and says whether it was the last.
    while not context.join(timeout=max(0.0, deadline_s - time.monotonic())):
        if time.monotonic() >= deadline_s:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{num_ranks} ranks did not finish within {TIMEOUT_S:g} s")


def test_two_ranks_end_in_the_weights_of_one(warm_folder: Path, examples: Path, tmp_path: Path):
    run_ranks(2, tiny_config(examples, tmp_path), tmp_path / "two_ranks")
    one, two = weights_of(warm_folder), weights_of(tmp_path / "two_ranks")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        # Adam turns rounding of near-zero gradients into steps, so single weights may differ, most may not.
        assert (two[name] - tensor).abs().mean() < 1e-5, name


def test_a_given_checkpoint_keeps_its_vq_model_and_learns(warm_folder: Path, examples: Path, tmp_path: Path):
    history: list[dict[str, float]] = []
    config = make_config(examples, tmp_path, {"path": str(warm_folder)}, steps=30, lr=5e-3)
    warm_start(
        config,
        tmp_path / "out",
        report=lambda stage, step, total, metrics: history.append(dict(metrics)) if stage == "policy" else None,
    )
    before, after = weights_of(warm_folder), weights_of(tmp_path / "out")
    for name, tensor in before.items():
        frozen = name.startswith(("model.vqmodel.", "model.vision_model.", "model.aligner."))
        assert torch.equal(after[name], tensor) == frozen, name
    assert history[-1]["plan_nll"] < 0.5 * history[0]["plan_nll"]
    assert history[-1]["image_nll"] < history[0]["image_nll"]


def test_words_of_the_config_are_stored_beside_the_weights(warm_folder: Path, examples: Path, tmp_path: Path):
    config = make_config(examples, tmp_path, {"path": str(warm_folder)})
    rollout = config.rollout.model_copy(update={"instruction": "wall : {prompt}"})
    warm_start(config.model_copy(update={"rollout": rollout}), tmp_path / "out")
    assert Conversation.from_pretrained(str(tmp_path / "out")).format.instruction == "wall : {prompt}"


def test_an_example_too_long_for_the_model_is_named_before_training(warm_folder: Path, examples: Path, tmp_path: Path):
    lines = examples.read_text().splitlines()
    long = json.dumps({"prompt": "a wall", "plan": "wall " * 300, "image": str(examples.parent / "0.png")})
    file = examples.with_name("long.jsonl")
    file.write_text("\n".join([lines[0], long]))
    config = make_config(file, tmp_path, {"path": str(warm_folder)})
    with pytest.raises(DataError, match=r"long\.jsonl:2"):
        warm_start(config, tmp_path / "out", report=lambda *_: pytest.fail("nothing may be trained"))
    assert not (tmp_path / "out").exists()


def test_a_picture_that_cannot_be_read_is_left_out_and_more_than_allowed_end_it(examples: Path, tmp_path: Path):
    folder = tmp_path / "examples"
    shutil.copytree(examples.parent, folder)
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:50])
    config = tiny_config(folder / "examples.jsonl", tmp_path)
    with pytest.raises(DataError, match=r"examples\.jsonl:4: picture 3\.png cannot be read as a picture"):
        warm_start(config, tmp_path / "refused")
    lenient = config.model_copy(update={"data": config.data.model_copy(update={"max_bad_lines": 1})})
    warm_start(lenient, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
