"""Groups are the same whoever finishes first, fail as a whole, and hold what the engine sampled."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import ConfigError, ModelError, RolloutError, WeightSyncError
from configs.schema import DataConfig, ModelConfig, RewardConfig, RolloutConfig, RunConfig, TinyJanusConfig
from learner.warm_start.tiny_janus import save_random_tiny_janus
from rollout.engine import SequenceRequest
from rollout.group_sampler import GroupSampler, SamplingSettings
from rollout.pictures import BatchedDecoder, ImageDecoder
from rollout.prompts import Conversation
from rollout.prompts.conversation import ConversationFormat, PromptTooLong
from rollout.records import GroupRequest, GroupRollout, Prompt, UInt8Array, derive_seed
from rollout.weights.buckets import pack_bucket
from rollout.worker import RolloutWorker
from tests.fakes import FakeEngine

CONFIG = TinyJanusConfig(hidden_size=32, num_layers=1, num_codes=8, image_size=8, patch_size=4, max_positions=64)
WORDS = ["red", "blue", "circle", "square", "star", "top", "left"]
SETTINGS = SamplingSettings(
    max_prompt_tokens=12, max_cot_tokens=10, num_image_tokens=4, guidance_scale=3.0, temperature=0.9
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_random_tiny_janus(folder, CONFIG, WORDS)
    ConversationFormat(system_prompt="", instruction="{prompt}").save(folder)
    return folder


@pytest.fixture(scope="module")
def conversation(folder: Path) -> Conversation:
    return Conversation.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def image_decoder(folder: Path) -> ImageDecoder:
    return ImageDecoder(str(folder), batch_size=3)


@pytest.fixture
def engine(conversation: Conversation) -> FakeEngine:
    word_ids = conversation.tokenizer.convert_tokens_to_ids(WORDS)
    return FakeEngine(num_codes=CONFIG.num_codes, word_ids=word_ids, eos_id=conversation.eos_id)


@pytest.fixture
def sampler(engine: FakeEngine, conversation: Conversation, image_decoder: ImageDecoder) -> GroupSampler:
    return GroupSampler(engine, conversation, BatchedDecoder(image_decoder.decode, 3), SETTINGS, "rollout-0")


def request_of(group_size: int = 4, images_per_cot: int = 1, seed: int = 11, text: str = "red star") -> GroupRequest:
    return GroupRequest(
        sequence=5,
        attempt=0,
        prompt=Prompt(prompt_id="test:5", text=text),
        group_size=group_size,
        images_per_cot=images_per_cot,
        seed=seed,
    )


def tokens_of(rollout: GroupRollout) -> list[tuple[list[int], list[int]]]:
    return [(trajectory.cot_ids.tolist(), trajectory.image_ids.tolist()) for trajectory in rollout.trajectories]


def last_number(request: SequenceRequest) -> int:
    return int(request.request_id.rpartition("-")[2])


@pytest.mark.parametrize(
    "turns",
    [
        lambda request: 1 + 9 * last_number(request),
        lambda request: 40 - 9 * last_number(request),
        lambda request: 1 + request.seed % 17,
    ],
    ids=["first first", "last first", "at random"],
)
async def test_the_order_of_finishing_does_not_change_a_group(
    sampler: GroupSampler, engine: FakeEngine, turns: Callable[[SequenceRequest], int]
):
    expected, expected_pictures = await sampler.sample(request_of())
    engine.turns = turns
    rollout, pictures = await sampler.sample(request_of())
    assert tokens_of(rollout) == tokens_of(expected)
    np.testing.assert_array_equal(pictures, expected_pictures)


async def test_groups_that_run_together_are_those_that_run_alone(sampler: GroupSampler):
    alone = [tokens_of((await sampler.sample(request_of(seed=seed)))[0]) for seed in range(4)]
    together = await asyncio.gather(*(sampler.sample(request_of(seed=seed)) for seed in range(4)))
    assert [tokens_of(rollout) for rollout, _ in together] == alone


@pytest.fixture
def deterministic(engine: FakeEngine, conversation: Conversation, image_decoder: ImageDecoder) -> GroupSampler:
    decoder = BatchedDecoder(image_decoder.decode, 3)
    return GroupSampler(engine, conversation, decoder, SETTINGS, "rollout-0", deterministic=True)


async def test_deterministic_groups_take_turns_with_a_batch_of_cots_and_one_of_pictures(
    sampler: GroupSampler, deterministic: GroupSampler, engine: FakeEngine
):
    expected = [tokens_of((await sampler.sample(request_of(seed=seed, images_per_cot=2)))[0]) for seed in range(3)]
    engine.events.clear()
    engine.turns = lambda request: 1 + request.seed % 17
    groups = await asyncio.gather(*(deterministic.sample(request_of(seed=seed, images_per_cot=2)) for seed in range(3)))
    assert [tokens_of(rollout) for rollout, _ in groups] == expected
    phases = [[request.phase for request in batch] for batch in engine.batches]
    assert phases == [["cot"] * 2, ["image"] * 4] * 3
    running = 0
    for event, _ in engine.events:
        running += 1 if event == "start" else -1
        assert running <= 4, "sequences of two groups ran beside each other"


async def test_a_deterministic_group_fails_as_a_whole_and_lets_the_next_one_go_on(
    deterministic: GroupSampler, engine: FakeEngine
):
    engine.fails = lambda request: request.phase == "image" and last_number(request) == 2
    with pytest.raises(RolloutError, match="no luck with image"):
        await deterministic.sample(request_of())
    engine.fails = lambda request: False
    rollout, pictures = await deterministic.sample(request_of())
    assert len(rollout.trajectories) == len(pictures) == 4


async def test_a_group_rolled_again_is_the_same_and_another_seed_is_not(sampler: GroupSampler):
    first, _ = await sampler.sample(request_of())
    again, _ = await sampler.sample(replace(request_of(), attempt=1))
    other, _ = await sampler.sample(request_of(seed=12))
    assert tokens_of(again) == tokens_of(first)
    assert tokens_of(other) != tokens_of(first)
    assert len(set(map(str, tokens_of(first)))) == 4, "trajectories of one group must differ"


async def test_a_trajectory_holds_what_was_asked_and_what_was_sampled(
    sampler: GroupSampler, engine: FakeEngine, conversation: Conversation, image_decoder: ImageDecoder
):
    rollout, pictures = await sampler.sample(request_of(group_size=2))
    assert rollout.worker_id == "rollout-0"
    assert rollout.started_s <= rollout.finished_s
    for index, trajectory in enumerate(rollout.trajectories):
        np.testing.assert_array_equal(trajectory.semantic_prompt_ids, conversation.semantic_prompt("red star"))
        assert trajectory.cot_text == conversation.decode_cot(trajectory.cot_ids)
        np.testing.assert_array_equal(
            trajectory.image_prompt_ids, conversation.image_prompt("red star", trajectory.cot_text)
        )
        assert len(trajectory.cot_logprobs) == len(trajectory.cot_ids)
        assert len(trajectory.image_logprobs) == len(trajectory.image_ids) == 4
        assert trajectory.seed == derive_seed(11, "image", index)
        np.testing.assert_array_equal(pictures[index], image_decoder.decode(trajectory.image_ids[None])[0])
    image_requests = [request for event, request in engine.events if event == "end" and request.phase == "image"]
    assert {(r.guidance_scale, r.temperature, r.max_new_tokens) for r in image_requests} == {(3.0, 0.9, 4)}


async def test_several_pictures_share_one_cot(sampler: GroupSampler, engine: FakeEngine):
    rollout, pictures = await sampler.sample(request_of(group_size=6, images_per_cot=3))
    cots = [trajectory.cot_ids.tolist() for trajectory in rollout.trajectories]
    assert cots[0] == cots[1] == cots[2] != cots[3] == cots[4] == cots[5]
    assert len({tuple(trajectory.image_ids) for trajectory in rollout.trajectories}) == 6
    assert sum(event == "start" and request.phase == "cot" for event, request in engine.events) == 2
    assert pictures.shape == (6, 8, 8, 3)


async def test_the_pictures_of_a_short_cot_begin_before_the_longest_cot_ends(sampler: GroupSampler, engine: FakeEngine):
    engine.turns = lambda request: 50 if request.request_id.endswith("cot-1") else 1
    await sampler.sample(request_of(group_size=2))
    events = [(event, request.request_id.partition("-group-5-")[2]) for event, request in engine.events]
    assert events.index(("start", "image-0")) < events.index(("end", "cot-1"))


async def test_a_failing_sequence_fails_its_group_by_name_and_ends_the_others(
    sampler: GroupSampler, engine: FakeEngine
):
    engine.turns = lambda request: 5 if request.request_id.endswith("cot-2") else 1000
    engine.fails = lambda request: request.request_id.endswith("cot-2")
    with pytest.raises(RolloutError, match=r"group 5, attempt 0, prompt test:5: no luck with cot"):
        await sampler.sample(request_of())
    assert sum(event == "cancelled" for event, _ in engine.events) == 3


async def test_a_failing_group_leaves_others_alone(sampler: GroupSampler, engine: FakeEngine):
    engine.fails = lambda request: request.seed == derive_seed(1, "image", 2)
    good, bad = await asyncio.gather(
        sampler.sample(request_of(seed=0)), sampler.sample(request_of(seed=1)), return_exceptions=True
    )
    assert isinstance(bad, RolloutError)
    assert not isinstance(good, BaseException)
    assert len(good[0].trajectories) == 4


async def test_a_trajectory_knows_its_oldest_and_newest_weights(sampler: GroupSampler, engine: FakeEngine):
    engine.turns = lambda request: 10 if request.phase == "cot" else 1
    sampling = asyncio.create_task(sampler.sample(request_of(group_size=2)))
    while not engine.events:
        await asyncio.sleep(0)
    await engine.update_weights(3, [])
    rollout, _ = await sampling
    versions = {(t.oldest_weight_version, t.newest_weight_version) for t in rollout.trajectories}
    assert versions == {(0, 3)}


async def test_a_probe_is_short_and_knows_its_versions(sampler: GroupSampler, engine: FakeEngine):
    await engine.update_weights(5, [])
    probe = await sampler.probe(request_of(group_size=4), 3)
    assert (probe.worker_id, len(probe.trajectories)) == ("rollout-0", 4)
    for trajectory in probe.trajectories:
        assert 1 <= len(trajectory.cot_ids) <= 3
        assert trajectory.image_versions.tolist() == [5, 5, 5]
        assert len(trajectory.image_logprobs) == len(trajectory.image_ids) == 3
    assert len({tuple(trajectory.image_ids) for trajectory in probe.trajectories}) == 4


async def test_without_a_cot_the_prompt_alone_is_drawn(
    engine: FakeEngine, conversation: Conversation, image_decoder: ImageDecoder
):
    settings = replace(SETTINGS, max_cot_tokens=0)
    sampler = GroupSampler(engine, conversation, BatchedDecoder(image_decoder.decode, 3), settings, "w")
    rollout, _ = await sampler.sample(request_of(group_size=1))
    trajectory = rollout.trajectories[0]
    assert trajectory.cot_text == ""
    assert len(trajectory.cot_ids) == len(trajectory.cot_logprobs) == 0
    np.testing.assert_array_equal(trajectory.image_prompt_ids, conversation.image_prompt("red star", ""))
    assert {request.phase for _, request in engine.events} == {"image"}


async def test_a_prompt_that_is_too_long_is_refused_before_anything_is_sampled(
    sampler: GroupSampler, engine: FakeEngine
):
    with pytest.raises(PromptTooLong, match="at most 12 are allowed"):
        await sampler.sample(request_of(text="red star " * 6))
    assert engine.events == []


async def test_a_group_that_does_not_divide_is_refused(sampler: GroupSampler):
    with pytest.raises(ValueError, match="group_size 4 is no multiple of images_per_cot 3"):
        await sampler.sample(request_of(images_per_cot=3))


class SlowDecoder:
    """Brightness is the code; each call waits until it is let go."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []
        self.let_go = threading.Event()

    def decode(self, image_ids: np.ndarray) -> UInt8Array:
        self.batch_sizes.append(len(image_ids))
        assert self.let_go.wait(timeout=20)
        if 99 in image_ids:
            raise ValueError("code 99")
        return image_ids.astype(np.uint8)[:, :, None, None]


async def test_pictures_that_come_while_the_decoder_is_busy_are_decoded_together():
    slow = SlowDecoder()
    decoder = BatchedDecoder(slow.decode, batch_size=4)
    first = asyncio.create_task(decoder.decode(np.array([7])))
    async with asyncio.timeout(20):
        while not slow.batch_sizes:
            await asyncio.sleep(0.001)
    rest = [asyncio.create_task(decoder.decode(np.array([code]))) for code in range(6)]
    await asyncio.sleep(0)
    rest[2].cancel()
    slow.let_go.set()
    pictures = await asyncio.gather(first, *rest, return_exceptions=True)
    assert slow.batch_sizes == [1, 4, 2]
    assert isinstance(pictures.pop(3), asyncio.CancelledError)
    assert [int(picture.squeeze()) for picture in pictures] == [7, 0, 1, 3, 4, 5]


async def test_a_failing_batch_fails_only_its_own_pictures():
    slow = SlowDecoder()
    slow.let_go.set()
    decoder = BatchedDecoder(slow.decode, batch_size=2)
    results = await asyncio.gather(
        *(decoder.decode(np.array([code])) for code in (1, 99, 2, 3)), return_exceptions=True
    )
    assert [isinstance(result, ValueError) for result in results] == [True, True, False, False]


def run_config(folder: Path, **rollout: int) -> RunConfig:
    return RunConfig(
        model=ModelConfig(path=str(folder), dtype="float32"),
        data=DataConfig(train="shapes:train"),
        rewards=(RewardConfig(name="shapes"),),
        rollout=RolloutConfig(engine="transformers", **{"max_prompt_tokens": 12, "max_cot_tokens": 10} | rollout),
    )


async def test_a_worker_rolls_groups_and_takes_weights(folder: Path, conversation: Conversation):
    worker = await RolloutWorker.start(str(folder), run_config(folder), "rollout-7")
    before, pictures = await worker.roll_group(request_of(group_size=2))
    again, _ = await worker.roll_group(request_of(group_size=2))
    name = "model.generation_head.vision_head.weight"
    noise = torch.randn(CONFIG.num_codes, CONFIG.hidden_size, generator=torch.Generator().manual_seed(0))
    await worker.update_weights(4, [pack_bucket([(name, noise)])])
    after, _ = await worker.roll_group(request_of(group_size=2))
    await worker.close()
    await worker.close()

    assert pictures.shape == (2, 8, 8, 3)
    assert before.worker_id == "rollout-7"
    assert tokens_of(before) == tokens_of(again)
    assert worker.weight_version == 4
    assert {t.oldest_weight_version for t in after.trajectories} == {4}
    assert [cot for cot, _ in tokens_of(after)] == [cot for cot, _ in tokens_of(before)]
    assert [image for _, image in tokens_of(after)] != [image for _, image in tokens_of(before)]


async def test_a_worker_that_was_closed_says_so(folder: Path):
    worker = await RolloutWorker.start(str(folder), run_config(folder), "rollout-0")
    await worker.close()
    with pytest.raises(RolloutError, match="not running: it was closed"):
        await worker.roll_group(request_of())


async def test_a_worker_whose_engine_has_no_collective_refuses_weights_by_broadcast(folder: Path):
    worker = await RolloutWorker.start(str(folder), run_config(folder), "rollout-0")
    with pytest.raises(WeightSyncError, match=r"need rollout\.engine vllm with weight_sync\.staged"):
        _ = worker.collective
    await worker.close()


async def test_a_worker_whose_decoder_cannot_be_made_leaves_no_engine_behind(folder: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    before = {thread for thread in threading.enumerate() if "transformers-engine" in thread.name}
    with pytest.raises(ModelError, match="must have 3 values each"):
        await RolloutWorker.start(str(broken), run_config(broken), "rollout-0")
    new = {thread for thread in threading.enumerate() if "transformers-engine" in thread.name} - before
    for thread in new:  # ends by itself once its engine is closed
        thread.join(timeout=20)
        assert not thread.is_alive()


async def test_a_context_that_is_too_short_names_the_fields(folder: Path):
    with pytest.raises(ConfigError, match=r"rollout\.max_cot_tokens 60 .* 64 positions"):
        await RolloutWorker.start(str(folder), run_config(folder, max_cot_tokens=60), "rollout-0")
