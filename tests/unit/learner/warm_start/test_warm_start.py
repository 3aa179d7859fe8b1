"""Warm start without DeepSpeed: examples, the cache's key, the supervised loop."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from configs.errors import ConfigError, DataError
from configs.schema import RunConfig, TinyJanusConfig, VQTrainingConfig, WarmStartConfig
from learner.janus_policy import EVERYTHING, JanusPolicy
from learner.objective.phase_tokens import LogprobRequest
from learner.warm_start import ensure_warm_start, warm_start, warm_start_folder
from learner.warm_start.__main__ import main
from learner.warm_start.data import check_skipped, load_examples, load_vq_pictures
from learner.warm_start.supervised import Shard, TokenizedExamples, iterate_batches, train_supervised
from learner.warm_start.tiny_janus import build_tiny_janus
from rewards.shapes.detector import detect_objects
from rollout.janus_checkpoint import SpecialIds
from rollout.shapes.objects import COLORS, UNSEEN_PAIRS, parse_plan
from rollout.shapes.objects import SHAPES as SHAPE_NAMES

SHAPES = WarmStartConfig(examples="shapes", num_examples=40, steps=1, batch_size=2)


def write_examples(folder: Path, lines: list[str]) -> WarmStartConfig:
    Image.new("RGB", (40, 20), (255, 0, 0)).save(folder / "red.png")
    (folder / "examples.jsonl").write_text("\n".join(lines))
    return WarmStartConfig(examples=str(folder / "examples.jsonl"), steps=1, batch_size=2)


GOOD = json.dumps({"prompt": "a red wall", "plan": "red everywhere", "image": "red.png"})


def run_config(tmp_path: Path, warm: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "run": {"cache_dir": str(tmp_path / "cache")},
        "model": {"path": "tiny-janus", "dtype": "float32", "tiny": {"num_layers": 1}},
        "data": {"train": "shapes:train"},
        "warm_start": {"examples": "shapes", "num_examples": 40, **(warm or {})},
        "rewards": [{"name": "shapes"}],
    }
    for section, fields in changes.items():
        tree[section] = {**tree.get(section, {}), **fields}
    return RunConfig.model_validate(tree)


def test_shapes_examples_are_seeded_and_hold_no_unseen_pair():
    examples = load_examples(SHAPES.model_copy(update={"plan_noise": 0.5, "num_examples": 200}), 64)
    assert len(examples) == 200
    for example in examples.examples:
        plan = parse_plan(example.plan)
        assert plan is not None
        assert not {(item.color, item.shape) for item in plan} & UNSEEN_PAIRS
    first = load_examples(SHAPES, 64)
    again, other = load_examples(SHAPES, 64), load_examples(SHAPES.model_copy(update={"seed": 1}), 64)
    assert [e.prompt for e in first.examples] == [e.prompt for e in again.examples]
    np.testing.assert_array_equal(first.load_pictures(range(40)), again.load_pictures(range(40)))
    assert [e.prompt for e in first.examples] != [e.prompt for e in other.examples]


def test_shapes_are_refused_in_a_size_they_are_not_drawn_in():
    with pytest.raises(ConfigError, match=r"draws 32; set model\.tiny\.image_size to 64"):
        load_examples(SHAPES, 32)


def test_the_vq_model_of_the_shapes_world_sees_all_pairs_and_counts():
    section = SHAPES.model_copy(update={"vq": VQTrainingConfig(steps=2, autoencoder_steps=0, num_pictures=600)})
    pictures = load_vq_pictures(section, load_examples(SHAPES, 64))
    found = [drawing.objects for drawing in detect_objects(pictures)]
    pairs = {(item.color, item.shape) for items in found for item in items}
    assert pairs == set(itertools.product(COLORS, SHAPE_NAMES))
    assert {len(items) for items in found} == {1, 2, 3, 4}
    assert any(len({str(item).rsplit(maxsplit=2)[0] for item in items}) < len(items) == 4 for items in found)


def test_the_vq_model_of_a_file_sees_as_many_of_its_pictures_as_configured(tmp_path: Path):
    section = write_examples(tmp_path, [GOOD] * 5)
    examples = load_examples(section, 16)
    for num, expected in ((None, 5), (3, 3), (9, 5)):
        vq = VQTrainingConfig(steps=2, autoencoder_steps=0, num_pictures=num)
        assert len(load_vq_pictures(section.model_copy(update={"vq": vq}), examples)) == expected


def test_a_file_gives_its_examples_with_pictures_cropped_to_a_square(tmp_path: Path):
    left_half = np.zeros((20, 40, 3), np.uint8)
    left_half[:, :6] = 255  # what a crop around the middle drops
    config = write_examples(tmp_path, [GOOD, GOOD.replace("red.png", "half.png")])
    Image.fromarray(left_half).save(tmp_path / "half.png")
    examples = load_examples(config, 8)
    assert [(e.prompt, e.plan) for e in examples.examples] == [("a red wall", "red everywhere")] * 2
    pictures = examples.load_pictures([0, 1])
    assert pictures.shape == (2, 8, 8, 3)
    assert (pictures[0] == (255, 0, 0)).all()
    assert (pictures[1] == 0).all()


def test_bad_example_lines_are_named_with_their_fault(tmp_path: Path):
    lines = [
        GOOD,
        "{broken",
        json.dumps({"prompt": "p", "image": "red.png"}),
        json.dumps({"prompt": " ", "plan": "q", "image": "red.png"}),
        json.dumps({"prompt": "p", "plan": "q", "image": "gone.png"}),
        json.dumps(["p", "q"]),
    ]
    config = write_examples(tmp_path, lines)
    examples = load_examples(config, 8)
    assert len(examples) == 1
    check_skipped(examples, config.examples, max_bad_lines=5)
    with pytest.raises(DataError) as caught:
        check_skipped(examples, config.examples, max_bad_lines=4)
    message = str(caught.value)
    for fault in (
        "line 2: broken JSON",
        "line 3: plan is missing",
        "line 4: prompt: missing or empty",
        f"line 5: image: there is no file 'gone.png' in {tmp_path}",
        "line 6: expected an object",
        "data.max_bad_lines allows 4",
    ):
        assert fault in message


def test_a_file_without_a_good_line_is_refused(tmp_path: Path):
    config = write_examples(tmp_path, ["{}"])
    with pytest.raises(DataError, match="there is no example in this file\n  line 1: prompt is missing"):
        load_examples(config, 8)


def test_a_file_that_is_no_picture_is_named_with_its_line(tmp_path: Path):
    config = write_examples(tmp_path, [GOOD.replace("red.png", "examples.jsonl")])
    with pytest.raises(DataError, match=r"examples\.jsonl:1: picture examples.jsonl cannot be read as a picture"):
        load_examples(config, 8).load_pictures([0])


def test_the_cache_key_follows_what_decides_the_weights(tmp_path: Path):
    folder = warm_start_folder(run_config(tmp_path))
    assert folder == warm_start_folder(run_config(tmp_path))
    assert folder.parent.parent == tmp_path / "cache"
    decisive = [
        run_config(tmp_path, {"lr": 1e-3}),
        run_config(tmp_path, {"vq": {"steps": 200}}),
        run_config(tmp_path, model={"tiny": {"num_layers": 2}}),
        run_config(tmp_path, rollout={"instruction": "plan : {prompt}"}),
    ]
    folders = {folder, *map(warm_start_folder, decisive)}
    assert len(folders) == 1 + len(decisive)
    indifferent = run_config(tmp_path, learner={"micro_batch_size": 4, "lr": 1e-3}, run={"name": "other", "seed": 7})
    assert warm_start_folder(indifferent).name == folder.name


def test_the_cache_key_follows_examples_pictures_and_base_model(tmp_path: Path):
    section = write_examples(tmp_path, [GOOD])
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")

    def folder() -> Path:
        return warm_start_folder(
            run_config(
                tmp_path,
                {"examples": section.examples, "num_examples": None},
                model={"path": str(base), "tiny": None},
            )
        )

    seen = [folder()]
    (tmp_path / "examples.jsonl").write_text(GOOD.replace("red wall", "red wall again"))
    seen.append(folder())
    os.utime(tmp_path / "red.png", (1, 1))
    seen.append(folder())
    (base / "model.safetensors").write_bytes(b"other weights")
    seen.append(folder())
    assert len(set(seen)) == 4
    assert folder() == seen[-1]


def test_a_cached_model_is_not_trained_again(tmp_path: Path):
    config = run_config(tmp_path)
    folder = warm_start_folder(config)
    folder.mkdir(parents=True)

    def refuse(*_: object) -> None:
        raise AssertionError("a cached warm start must not report any step")

    assert ensure_warm_start(config, refuse) == folder


def test_an_existing_output_folder_is_never_written_into(tmp_path: Path):
    with pytest.raises(ConfigError, match="exists; remove it, or choose another"):
        warm_start(run_config(tmp_path), tmp_path)


def test_the_command_line_names_a_missing_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_batches_run_through_every_example_before_any_comes_again():
    batches = iterate_batches(10, 4, seed=0)
    stream = np.concatenate([next(batches) for _ in range(10)])
    for epoch in stream.reshape(4, 10):
        assert sorted(epoch) == list(range(10))
    assert list(stream[:10]) != list(stream[10:20])


class PlainEngine:
    """A TrainingEngine of one process in plain PyTorch."""

    def __init__(self, policy: JanusPolicy, lr: float) -> None:
        self.policy = policy
        self.optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=lr)
        self.unconditional_rows = 0

    def __call__(self, request: LogprobRequest) -> tuple[Tensor, Tensor]:
        if request.unconditional_rows is not None:
            self.unconditional_rows += int(request.unconditional_rows.sum())
        logprobs, entropy = self.policy(request)
        return logprobs, entropy

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> list[Tensor]:
        return [p.grad.clone() for p in self.policy.parameters() if p.grad is not None]


def make_examples(num: int) -> TokenizedExamples:
    rng = np.random.default_rng(0)

    def texts(low: int, high: int) -> tuple[np.ndarray, ...]:
        return tuple(rng.integers(9, 20, size=rng.integers(low, high), dtype=np.int32) for _ in range(num))

    prompts = tuple(np.concatenate([[1], text, [4]]).astype(np.int32) for text in texts(2, 6))
    return TokenizedExamples(texts(2, 6), texts(1, 5), prompts, rng.integers(8, size=(num, 4)))


def make_engine(lr: float = 1e-2) -> PlainEngine:
    config = TinyJanusConfig(hidden_size=32, num_layers=1, num_codes=8, image_size=8, patch_size=4)
    model, tokenizer = build_tiny_janus(config, [f"word{index}" for index in range(10)])
    boi_id = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    special_ids = SpecialIds(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, boi_id)
    return PlainEngine(JanusPolicy(model, special_ids=special_ids, logprob_chunk_bytes=2**20, trainable=EVERYTHING), lr)


def test_a_few_steps_lower_both_losses():
    history: list[dict[str, float]] = []
    config = WarmStartConfig(examples="x.jsonl", steps=40, batch_size=4)
    shard = Shard(0, 1, torch.device("cpu"), micro_batch_size=4)
    train_supervised(make_engine(), make_examples(4), config, shard, lambda s, n, metrics: history.append(metrics))
    assert history[-1]["plan_nll"] < 0.5 * history[0]["plan_nll"]
    assert history[-1]["image_nll"] < 0.7 * history[0]["image_nll"]


def test_the_share_of_unconditional_pictures_is_as_configured():
    engine = make_engine()
    config = WarmStartConfig(examples="x.jsonl", steps=50, batch_size=8, unconditional_dropout=0.25)
    train_supervised(engine, make_examples(8), config, Shard(0, 1, torch.device("cpu"), 8), lambda *_: None)
    assert 0.18 < engine.unconditional_rows / 400 < 0.32


@pytest.mark.parametrize(("num_ranks", "micro_batch_size"), [(1, 3), (2, 4), (4, 1)])
def test_gradients_do_not_depend_on_ranks_and_micro_batches(num_ranks: int, micro_batch_size: int):
    config = WarmStartConfig(examples="x.jsonl", steps=1, batch_size=8)
    examples = make_examples(12)

    class Collecting(PlainEngine):
        def step(self) -> None:
            """Keep the gradients for the test to compare."""

    def gradients(rank: int, num_ranks: int, micro_batch_size: int) -> list[Tensor]:
        engine = Collecting(make_engine().policy, lr=1e-3)
        shard = Shard(rank, num_ranks, torch.device("cpu"), micro_batch_size)
        train_supervised(engine, examples, config, shard, lambda *_: None)
        return engine.gradients()

    expected = gradients(0, 1, 8)
    shares = [gradients(rank, num_ranks, micro_batch_size) for rank in range(num_ranks)]
    for index, gradient in enumerate(expected):
        torch.testing.assert_close(sum(share[index] for share in shares), gradient, atol=1e-6, rtol=1e-4)
