"""Rollout: the vLLM engine against transformers' own batched loop.

    pictures             VllmEngine.generate × B         against  generate(generation_mode="image") on B prompts
    plans and pictures   GroupSampler.sample × B / G     against  generate text on B, wait for the longest,
                         (what a rollout worker runs)             generate images on B, decode

Both sides compute in float32 with the same number of threads, or with `--gpu` in bfloat16 on one GPU, and sample
at the same temperature and guidance. vLLM also returns log-probabilities; transformers' loop does not compute them.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cluster.benchmarks.models import HUNDRED_MB, LARGER, PRO_1B, make_model, shapes_config
from cluster.benchmarks.report import Scope, Table, ratio, spread
from configs.schema import RolloutConfig, RunConfig, TinyJanusConfig
from learner.janus_policy import load_janus
from rollout.engine import Engine, EngineSettings, SequenceRequest, device_of
from rollout.group_sampler import GroupSampler
from rollout.pictures import ImageDecoder
from rollout.prompts import Conversation
from rollout.records import GroupRequest, Int32Array, Prompt
from rollout.shapes import load_split
from rollout.worker import load_conversation, make_sampler, start_engine

GROUP_SIZE = 8


class TransformersLoop:
    """transformers' own Janus on whole batches, each of which starts and ends together."""

    def __init__(self, folder: str, settings: RolloutConfig, dtype: str) -> None:
        self.settings = settings
        self.device = device_of(settings)
        self.model = load_janus(folder, getattr(torch, dtype)).to(self.device).eval()
        self.conversation = Conversation.from_pretrained(folder)
        self.decoder = ImageDecoder(folder, self.device, settings.decode_batch_size)
        self.num_image_tokens = self.conversation.checkpoint.num_image_tokens

    def draw(self, prompts: Sequence[Int32Array]) -> Int32Array:
        """int32 [B, N_image]: guided image tokens after the prompts."""
        ids, mask = self._left_pad(prompts)
        drawn = self.model.generate(
            ids,
            attention_mask=mask,
            generation_mode="image",
            guidance_scale=self.settings.guidance_scale,
            max_new_tokens=self.num_image_tokens,
            **self._sampling,
        )
        return np.asarray(drawn.cpu(), dtype=np.int32)

    def write(self, prompts: Sequence[Int32Array]) -> list[Int32Array]:
        """The plans, without the padding behind their EOS."""
        ids, mask = self._left_pad(prompts)
        texts = self.model.generate(
            ids,
            attention_mask=mask,
            generation_mode="text",
            max_new_tokens=self.settings.max_cot_tokens,
            **self._sampling,
        )
        texts = texts.cpu()
        return [np.asarray(row[row != self.conversation.pad_id], dtype=np.int32) for row in texts[:, ids.shape[1] :]]

    def roll(self, prompts: Sequence[Prompt]) -> list[int]:
        """Plan, draw and decode one picture a prompt; returns the plans' lengths in tokens."""
        plans = self.write([self.conversation.semantic_prompt(prompt.text) for prompt in prompts])
        image_prompts = [
            self.conversation.image_prompt(prompt.text, self.conversation.decode_cot(plan))
            for prompt, plan in zip(prompts, plans, strict=True)
        ]
        self.decoder.decode(self.draw(image_prompts))
        return [len(plan) for plan in plans]

    @property
    def _sampling(self) -> dict[str, object]:
        # Without top_k=0 transformers samples from the 50 likeliest tokens only.
        return {"do_sample": True, "temperature": self.settings.temperature, "top_k": 0}

    def _left_pad(self, prompts: Sequence[Int32Array]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self.conversation.pad_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
            mask[row, width - len(prompt) :] = 1
        return ids.to(self.device), mask.to(self.device)


@dataclass(slots=True)
class Rates:
    """Per second, a round each."""

    vllm: list[float]
    transformers: list[float]

    def add(self, amount: float, vllm_s: float, transformers_s: float) -> None:
        self.vllm.append(amount / vllm_s)
        self.transformers.append(amount / transformers_s)

    def row(self, what: str) -> tuple[str, ...]:
        return what, spread(self.vllm), spread(self.transformers), ratio(self.vllm, self.transformers)


def measure(scope: Scope) -> list[Table]:
    """Both tables, for three sizes of model, two where it is to be quick, on a GPU for Janus-Pro-1B's."""
    on_cpu = {"tiny": TinyJanusConfig(), "larger": LARGER} | ({} if scope.quick else {"largest": HUNDRED_MB})
    shapes = {"pro-1b": PRO_1B} if scope.on_gpu else on_cpu
    num_image_tokens = max((shape.image_size // shape.patch_size) ** 2 for shape in shapes.values())
    how = "bfloat16 on one GPU" if scope.on_gpu else f"float32, {scope.num_threads} thread(s) each"
    pictures: list[tuple[str, ...]] = []
    groups: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory(prefix="bicot-bench-") as directory:
        for name, shape in shapes.items():
            folder, size = make_model(Path(directory), name, shape)
            config = shapes_config(folder, _overrides(scope))
            picture_rows, group_row = asyncio.run(_measure_model(folder, size, config, scope))
            pictures += picture_rows
            groups.append(group_row)
    columns = ("vLLM engine", "transformers' loop", "vLLM / transformers")
    return [
        Table(
            "Drawing pictures: image tokens a second",
            '`VllmEngine` against `JanusForConditionalGeneration.generate(generation_mode="image")`, which computes '
            "a whole batch at once with a key-value cache and no log-probabilities. Same prompts, guided, "
            f"{num_image_tokens} tokens a picture, {how}.",
            ("model, batch", *columns),
            tuple(pictures),
        ),
        Table(
            "Plans and pictures: pictures a second",
            f"What a rollout worker runs on {_num_groups(scope)} groups of {GROUP_SIZE} (pictures join the "
            "batch as their plans end), against transformers' loop: all plans, then all pictures. Both decode the "
            f"pictures. Random weights, so plans end anywhere up to 48 tokens. {how}.",
            ("model, plan tokens (least, mean, most)", *columns),
            tuple(groups),
        ),
    ]


def _overrides(scope: Scope) -> list[str]:
    if scope.on_gpu:
        return [
            "model.dtype=bfloat16",
            "learner.zero_stage=1",  # nothing learns here, but a config with bfloat16 is refused without
            "rollout.gpus_per_worker=1",
            "rollout.threads_per_worker=null",
            "rollout.gpu_memory_utilization=0.6",
            "rollout.kv_cache_gib=null",  # the shapes config's is of a CPU; here it is what the share leaves
            "rollout.enforce_eager=false",
            "rollout.guidance_scale=5",
        ]
    return [f"rollout.threads_per_worker={scope.num_threads}", "rollout.kv_cache_gib=1"]


def _num_groups(scope: Scope) -> int:
    return scope.pick(quick=4, full=16)


async def _measure_model(
    folder: str, size: str, config: RunConfig, scope: Scope
) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    settings = EngineSettings(folder, config.rollout, config.model.dtype)
    engine = await start_engine(settings)
    try:
        sampler = await make_sampler(engine, load_conversation(settings), settings, "bench")
        loop = TransformersLoop(folder, config.rollout, config.model.dtype)
        num_rounds = scope.pick(quick=2, full=4)
        picture_rows = [
            await _measure_pictures(engine, loop, f"{size}, batch {batch}", batch, num_rounds)
            for batch in ((32,) if scope.quick else (32, 128))
        ]
        return picture_rows, await _measure_groups(sampler, loop, size, _num_groups(scope), num_rounds)
    finally:
        await engine.close()


async def _measure_pictures(
    engine: Engine, loop: TransformersLoop, what: str, batch: int, num_rounds: int
) -> tuple[str, ...]:
    rates = Rates([], [])
    prompts = load_split("train", batch * (num_rounds + 1))
    image_prompts = [loop.conversation.image_prompt(prompt.text, "") for prompt in prompts]
    for number in range(num_rounds + 1):
        chosen = image_prompts[number * batch : (number + 1) * batch]
        requests = [
            SequenceRequest(
                request_id=f"{what}-{number}-{index}",
                phase="image",
                prompt_ids=prompt,
                max_new_tokens=loop.num_image_tokens,
                temperature=loop.settings.temperature,
                guidance_scale=loop.settings.guidance_scale,
                seed=index,
            )
            for index, prompt in enumerate(chosen)
        ]
        started_s = time.perf_counter()
        await asyncio.gather(*map(engine.generate, requests))
        turned_s = time.perf_counter()
        loop.draw(chosen)
        ended_s = time.perf_counter()
        if number:  # the first round warms both up
            rates.add(batch * loop.num_image_tokens, turned_s - started_s, ended_s - turned_s)
    return rates.row(what)


async def _measure_groups(
    sampler: GroupSampler, loop: TransformersLoop, size: str, num_groups: int, num_rounds: int
) -> tuple[str, ...]:
    rates = Rates([], [])
    prompts = load_split("train", num_groups * (num_rounds + 1))
    lengths: list[int] = []
    for number in range(num_rounds + 1):
        chosen = prompts[number * num_groups : (number + 1) * num_groups]
        requests = [
            GroupRequest(index, 0, prompt, GROUP_SIZE, images_per_cot=1, seed=index + number * num_groups)
            for index, prompt in enumerate(chosen)
        ]
        started_s = time.perf_counter()
        rolled = await asyncio.gather(*map(sampler.sample, requests))
        turned_s = time.perf_counter()
        loop.roll([prompt for prompt in chosen for _ in range(GROUP_SIZE)])
        ended_s = time.perf_counter()
        if number:
            rates.add(num_groups * GROUP_SIZE, turned_s - started_s, ended_s - turned_s)
            lengths += [len(trajectory.cot_ids) for group, _ in rolled for trajectory in group.trajectories]
    return rates.row(f"{size}, {min(lengths)}, {np.mean(lengths):.0f}, {max(lengths)}")
