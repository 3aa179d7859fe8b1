"""Supervised warm start: a base model and captioned pictures in, a policy that plans and draws out.

    base model ──► VQ model trained (warm_start.vq) ─► pictures as image tokens ─┐
    examples ────► semantic prompts, plans, image prompts as ids ────────────────┤
                                                                                 ▼
                            folder (Hugging Face) ◄─ language model trained (warm_start.steps)

The base model is the tiny Janus, built on the spot, or any Janus checkpoint: supervised fine-tuning (SFT) of Janus-Pro
on data of one's own, before reinforcement learning, is done in the same way. The language model, its head and the
generation embeddings, aligner and head are trained. The vision model is not, and neither is the VQ model once it has
encoded the pictures.

    python -m learner.warm_start --config configs/shapes_cpu.yaml [--set key=value] [--output-dir DIR]
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from transformers import JanusForConditionalGeneration

from configs.errors import ConfigError, DataError
from configs.local.ports import free_port
from configs.schema import RunConfig, VQTrainingConfig, WarmStartConfig
from learner.export import PretrainedWriter, save_pretrained
from learner.janus_policy import EVERYTHING, JanusPolicy, load_janus
from learner.warm_start.base import prepare_base
from learner.warm_start.cache import warm_start_folder
from learner.warm_start.data import ExampleSet, check_skipped, load_examples, load_vq_pictures
from learner.warm_start.output import prepare_output, staging_folder
from learner.warm_start.patches import CanonicalTokens
from learner.warm_start.supervised import Shard, TokenizedExamples, train_supervised
from learner.warm_start.vq_training import encode_pictures, train_vq_model
from learner.zero import DeepSpeedEngine, OptimizerSettings, close_distributed, init_distributed
from rollout.prompts import Conversation
from rollout.prompts.source import SkippedPrompt, summarize_skipped
from rollout.records import Int32Array, derive_seed

logger = logging.getLogger(__name__)

ADAM_BETAS = (0.9, 0.98)
PICTURES_A_CALL = 64
PICTURES_AT_ONCE = 2048
"""Held in memory, where a picture is 12 kB at 64 x 64 pixels."""

_Texts = tuple[tuple[Int32Array, ...], tuple[Int32Array, ...], tuple[Int32Array, ...]]
"""Semantic prompts, plans and image prompts."""

Report = Callable[[str, int, int, Mapping[str, float]], None]
"""Called as report(stage, step, total_steps, metrics); stages are `vq` and `policy`, in this order."""


def ensure_warm_start(config: RunConfig, report: Report) -> Path:
    """The folder of the warm-started model, trained now in this process unless the cache has it.

    Raises what `warm_start` raises.
    """
    folder = warm_start_folder(config)
    if not folder.exists():
        warm_start(config, folder, report=report)
    return folder


def warm_start(
    config: RunConfig, output_dir: Path, rank: int = 0, world_size: int = 1, report: Report = lambda *_: None
) -> None:
    """Train, and have rank 0 write the model to `output_dir`, whole or not at all.

    With several ranks each calls this after `init_distributed`; alone it forms its own process group
    when there is none. `report` is called on every rank.

    Raises ConfigError, DataError or ModelError before anything is trained when the input is wrong.
    """
    if config.warm_start is None:
        raise ConfigError("warm_start: the config has no such section; add one")
    if output_dir.exists():
        raise ConfigError(f"the warm start's output folder {output_dir} exists; remove it, or choose another")
    if rank == 0:
        prepare_output(output_dir)
    device = "cuda" if config.learner.gpus_per_rank > 0 else "cpu"
    alone = not dist.is_initialized()
    if alone:
        if world_size != 1:
            raise ValueError(f"world_size is {world_size}, but this process is in no process group yet")
        init_distributed(0, 1, "127.0.0.1", free_port(), device)
    try:
        shard = Shard(rank, world_size, torch.device(device), config.learner.micro_batch_size)
        with _fast(config.learner.threads_per_rank or len(os.sched_getaffinity(0)) // world_size):
            _WarmStart(config, config.warm_start, shard, report).run(output_dir)
    finally:
        if alone:
            close_distributed()


@contextmanager
def _fast(num_threads: int) -> Iterator[None]:
    """Within the context, PyTorch uses this number of threads and multiplies fast, in the whole process.

    A warm start may use all cores, since no other actor of the run works meanwhile.
    """
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(max(1, num_threads))
    # CPUs that multiply bfloat16 in hardware do so five times as fast; sums and weights stay float32.
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


class _WarmStart:
    """One warm start on one rank."""

    def __init__(self, config: RunConfig, section: WarmStartConfig, shard: Shard, report: Report) -> None:
        self.config = config
        self.section = section
        self.shard = shard
        self.report = report
        self.dtype: torch.dtype = getattr(torch, config.model.dtype)

    def run(self, output_dir: Path) -> None:
        rollout = self.config.rollout
        with tempfile.TemporaryDirectory() as scratch:
            folder = prepare_base(self.config, self.section, Path(scratch) / "tiny")
            conversation = Conversation.of_run(str(folder), rollout)
            examples = load_examples(self.section, conversation.checkpoint.config.vision_config.image_size)
            examples, texts = self._tokenize(conversation, examples)
            if self.section.vq is None:
                image_ids = self._encode_pictures(folder, examples)
            else:
                folder, image_ids = self._train_vq(folder, Path(scratch) / "vq_trained", examples, self.section.vq)
            janus = load_janus(str(folder), self.dtype)
            policy, engine = self._train_policy(folder, janus, TokenizedExamples(*texts, image_ids))
            self._save(output_dir, policy, engine, PretrainedWriter(janus, policy, folder, conversation.format))

    def _tokenize(self, conversation: Conversation, examples: ExampleSet) -> tuple[ExampleSet, _Texts]:
        """The examples that fit the model and the rollout's limits and whose pictures are some, and their texts as ids.

        Raises DataError when more examples are left out than data.max_bad_lines allows.
        """
        rollout = self.config.rollout
        checkpoint = conversation.checkpoint
        room = checkpoint.max_positions - checkpoint.num_image_tokens
        kept: list[int] = []
        skipped: list[SkippedPrompt] = []
        rows: list[tuple[Int32Array, Int32Array, Int32Array]] = []
        bad_pictures = self._bad_pictures(examples)
        for index, example in enumerate(examples.examples):
            if index in bad_pictures:
                skipped.append(SkippedPrompt(example.place, bad_pictures[index]))
                continue
            semantic = conversation.semantic_prompt(example.prompt)
            plan = conversation.encode_cot(example.plan)
            try:
                conversation.check_length(semantic, rollout.max_prompt_tokens, example.prompt)
                image = conversation.image_prompt(example.prompt, example.plan)
                conversation.check_length(image, room, example.prompt)
                if len(plan) > rollout.max_cot_tokens:
                    raise DataError(
                        f"the plan takes {len(plan)} tokens, rollout.max_cot_tokens allows {rollout.max_cot_tokens}"
                    )
            except DataError as error:
                skipped.append(SkippedPrompt(example.place, str(error)))
                continue
            kept.append(index)
            rows.append((semantic, plan, image))
        examples = examples.take(kept, skipped)
        check_skipped(examples, self.section.examples, self.config.data.max_bad_lines)
        if examples.skipped:
            logger.warning("%d examples are left out:\n%s", len(examples.skipped), summarize_skipped(examples.skipped))
        semantic_prompts, plans, image_prompts = zip(*rows, strict=True)
        return examples, (semantic_prompts, plans, image_prompts)

    def _bad_pictures(self, examples: ExampleSet) -> dict[int, str]:
        """Index -> what is wrong with its picture; each rank reads a share of the files."""
        shares: list[Any] = [None] * self.shard.num_ranks
        own = examples.bad_pictures(range(self.shard.rank, len(examples), self.shard.num_ranks))
        dist.all_gather_object(shares, own)
        return {index: fault for share in shares for index, fault in share.items()}

    def _encode_pictures(self, folder: Path, examples: ExampleSet) -> NDArray[np.int64]:
        """Image tokens int64 [N, N_image] of all examples; each rank encodes a share and all get the whole."""
        shard = self.shard
        vq_model = load_janus(str(folder), self.dtype).model.vqmodel.to(shard.device)
        own = range(shard.rank, len(examples), shard.num_ranks)
        image_ids = np.zeros((len(examples), vq_model.config.num_patches**2), np.int64)
        for start in range(0, len(own), PICTURES_A_CALL):
            indices = own[start : start + PICTURES_A_CALL]
            image_ids[indices] = encode_pictures(vq_model, examples.load_pictures(indices))
            self.report("pictures", min(start + PICTURES_A_CALL, len(own)), len(own), {})
        shares = torch.from_numpy(image_ids).to(shard.device)
        dist.all_reduce(shares)  # where a rank has encoded nothing it holds zeros
        return shares.cpu().numpy()

    def _train_vq(
        self, folder: Path, trained_folder: Path, examples: ExampleSet, config: VQTrainingConfig
    ) -> tuple[Path, NDArray[np.int64]]:
        """Rank 0 trains the VQ model of `folder`, writes the whole to `trained_folder`, and encodes all pictures.

        Returns the folder to start the policy from, and the image tokens int64 [N, N_image]. Other ranks
        keep their folder: they train the same language model, and never write a VQ model.
        """
        result: list[Any] = [None]
        if self.shard.rank == 0:
            model = load_janus(str(folder), torch.float32)
            vq_model = model.model.vqmodel.to(self.shard.device)
            seed = derive_seed(self.section.seed, "vq")
            vq_pictures = load_vq_pictures(self.section, examples)
            train_vq_model(vq_model, vq_pictures, config, seed, partial(self.report, "vq"))
            with torch.no_grad():  # the policy reads a code as what it draws, where it starts from noise
                model.model.generation_embeddings.weight.copy_(vq_model.quantize.embedding.weight)
            tokens_of = CanonicalTokens(
                partial(encode_pictures, vq_model), vq_model.config.num_patches, config.outlines
            )
            starts = range(0, len(examples), PICTURES_AT_ONCE)
            parts = (range(start, min(start + PICTURES_AT_ONCE, len(examples))) for start in starts)
            result = [np.concatenate([tokens_of(examples.load_pictures(part)) for part in parts])]
            shutil.copytree(folder, trained_folder, ignore=shutil.ignore_patterns("*.safetensors*", "*.bin*"))
            model.to("cpu", self.dtype).save_pretrained(trained_folder)
            folder = trained_folder
        dist.broadcast_object_list(result)
        return folder, result[0]

    def _train_policy(
        self, folder: Path, janus: JanusForConditionalGeneration, examples: TokenizedExamples
    ) -> tuple[JanusPolicy, DeepSpeedEngine]:
        """janus: the model of `folder`."""
        learner, section = self.config.learner, self.section
        settings = OptimizerSettings(
            lr=section.lr,
            total_steps=section.steps,
            betas=ADAM_BETAS,
            weight_decay=section.weight_decay,
            warmup_steps=section.warmup_steps,
            schedule="linear",
            max_grad_norm=section.max_grad_norm,
        )
        policy = JanusPolicy.load(
            str(folder),
            self.dtype,
            logprob_chunk_bytes=learner.logprob_chunk_mb * 2**20,
            trainable=EVERYTHING,
            janus=janus,
        )
        if self.shard.device.type == "cpu":
            # With heads this narrow, transformers' fused attention for CPUs is slower than plain matrix products.
            policy.model.model.language_model.set_attn_implementation("eager")
        if learner.gradient_checkpointing:
            policy.enable_gradient_checkpointing()
        engine = DeepSpeedEngine(
            policy, settings, zero_stage=learner.zero_stage, dtype=self.dtype, device=self.shard.device
        )
        train_supervised(engine, examples, section, self.shard, partial(self.report, "policy"))
        return policy, engine

    def _save(self, output_dir: Path, policy: JanusPolicy, engine: DeepSpeedEngine, writer: PretrainedWriter) -> None:
        """Write the model beside `output_dir`, and rename the folder when it is complete. Every rank calls it."""
        staging = staging_folder(output_dir)
        try:
            save_pretrained(engine, policy, writer if self.shard.rank == 0 else None, staging)
            engine.destroy()
            if self.shard.rank == 0:
                staging.rename(output_dir)
        except OSError:
            # Another process may have finished the same warm start first; its model is as good as this one.
            if not output_dir.is_dir():
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        dist.barrier()
