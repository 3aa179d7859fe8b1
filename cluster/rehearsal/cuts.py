"""What a rehearsal leaves out of a config, each cut with its reason.

everywhere              steps, evaluation prompts, the length of a warm start
without the config's    counts and sizes, so that one machine without GPUs can hold one process of each kind; whatever
GPUs                    needs another machine (a cluster's Ray, a Redis, a shared folder, a bucket)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cluster.planning.memory import GIB, learner_rank, rollout_worker
from cluster.planning.model_shape import ModelShape
from cluster.session.placement import plan_placement
from configs.errors import PlacementError
from configs.load import config_from_tree
from configs.local.masking import mask_text
from configs.schema import RunConfig

STEPS: Final = 2
"""Of the first life: the second step learns from what the weights of the first have drawn."""
RESUMED_STEPS: Final = 3
"""Of both lives together."""
SHORT: Final = "a rehearsal is short"
NO_GPU: Final = "no GPU here"
ONE_MACHINE: Final = "this machine alone"
LAYERS_ONLY: Final = ("model.language_model.layers.*", "model.language_model.norm.*")
ATTENTION_ONLY: Final = ("model.language_model.layers.*.self_attn.*",)
MIN_CACHE_GIB: Final = 0.25
BESIDE_BYTES: Final = 5 * GIB
"""For interpreters and libraries of some six processes, rewards with few layers, and the object store."""
_SLOW_S: Final = 3600.0
_SHORT_WARM_START: Final[Mapping[str, int]] = {"steps": 2, "warmup_steps": 0, "num_examples": 64, "batch_size": 4}
_SHORT_VQ: Final[Mapping[str, int]] = {"steps": 2, "autoencoder_steps": 1, "batch_size": 4, "num_pictures": 64}


@dataclass(frozen=True, slots=True)
class Cut:
    """One field of the config that a rehearsal changes."""

    field: str
    before: str
    after: str
    reason: str


class Cutter:
    """A config as a tree whose values can be cut, and the list of what was."""

    def __init__(self, config: RunConfig) -> None:
        self._tree: dict[str, Any] = config.model_dump(mode="json")
        self.cuts: list[Cut] = []

    def config(self, source: str) -> RunConfig:
        """Raises ConfigError where the cuts do not go together."""
        return config_from_tree(self._tree, source)

    def set(self, field: str, value: Any, reason: str, shown: str | None = None) -> None:
        """field: dotted, a reward by its name. shown: what to say instead of the value."""
        node, key = self._find(field)
        before = node[key]
        if before != value:
            node[key] = value
            self.cuts.append(Cut(field, _short(before), _short(value) if shown is None else shown, reason))

    def at_most(self, field: str, limit: float, reason: str) -> None:
        node, key = self._find(field)
        if node[key] is not None and node[key] > limit:
            self.set(field, limit, reason)

    def at_least(self, field: str, limit: float, reason: str) -> None:
        node, key = self._find(field)
        if node[key] < limit:
            self.set(field, limit, reason)

    def drop_reward(self, name: str, reason: str) -> None:
        self._tree["rewards"] = [reward for reward in self._tree["rewards"] if reward["name"] != name]
        self.cuts.append(Cut(f"rewards.{name}", "in the sum", "left out", reason))

    def _find(self, field: str) -> tuple[dict[str, Any], str]:
        if field.startswith("rewards."):  # whose names may hold dots
            names = [reward["name"] for reward in self._tree["rewards"]]
            name = max((n for n in names if field.startswith(f"rewards.{n}.")), key=len)
            return self._tree["rewards"][names.index(name)], field.removeprefix(f"rewards.{name}.")
        node: Any = self._tree
        *path, key = field.split(".")
        for step in path:
            node = node[step]
        return node, key


def cut_everywhere(cutter: Cutter, config: RunConfig) -> None:
    """What no rehearsal needs in full."""
    cutter.set("run.steps", STEPS, f"{SHORT}: {STEPS}, and after the resume one more")
    cutter.at_most("samples.every_steps", 1, "a page of pictures at each step")
    cutter.set("watching.trackers", [], "nobody else is told of a rehearsal")
    if config.data.benchmarks:
        cutter.set("data.benchmarks", {}, "their scorers' weights and judges are not rehearsed")
    if config.data.evaluation:
        cutter.at_most("data.num_evaluation_prompts", 2, SHORT)
    if config.warm_start is not None:
        for name, limit in _SHORT_WARM_START.items():
            cutter.at_most(f"warm_start.{name}", limit * config.learner.num_ranks if "batch" in name else limit, SHORT)
        if config.warm_start.vq is not None:
            for name, limit in _SHORT_VQ.items():
                cutter.at_most(f"warm_start.vq.{name}", limit, SHORT)


def cut_to_one_machine(cutter: Cutter, config: RunConfig, shape: ModelShape) -> None:
    """One process of each kind on CPU, and nothing beyond this machine. shape: of the model with its few layers."""
    for field, value in _counts(config):
        cutter.set(field, value, NO_GPU)
    threads = os.cpu_count() or 1
    for field in ("rollout.threads_per_worker", "learner.threads_per_rank"):
        cutter.set(field, threads, "few processes share all cores")
    for reward in config.rewards:
        cutter.set(f"rewards.{reward.name}.gpus_per_replica", 0.0, NO_GPU)
        cutter.set(f"rewards.{reward.name}.replicas", 1, NO_GPU)
        cutter.at_least(f"rewards.{reward.name}.timeout_s", _SLOW_S, "a CPU is slow")
    cutter.at_most("rollout.max_cot_tokens", 16, "a CPU is slow")
    cutter.at_most("rollout.max_num_seqs", 4, "a CPU is slow")
    cutter.set("rollout.enforce_eager", True, "compiling takes longer than the rehearsal")
    tokens = 4 * (config.rollout.max_prompt_tokens + 16 + shape.num_image_tokens + 64)
    cache = tokens * shape.text.kv_bytes_per_token(2 if config.model.dtype == "bfloat16" else 4, 2) / GIB
    cutter.set("rollout.kv_cache_gib", max(MIN_CACHE_GIB, round(cache, 2)), "of four sequences")
    for field in ("rollout.group_timeout_s", "run.start_timeout_s", "weight_sync.timeout_s"):
        cutter.at_least(field, _SLOW_S, "a CPU is slow")
    cutter.at_least("run.step_timeout_s", 2 * _SLOW_S, "a CPU is slow")
    cutter.at_least("cluster.heartbeat_timeout_s", 600.0, "a CPU is slow")
    for field, after in (("cluster.address", None), ("registry.redis_url", None), ("checkpoint.url", None)):
        cutter.set(field, after, ONE_MACHINE)
    cutter.set("cluster.autoscaling", False, ONE_MACHINE)
    cutter.set("cluster.num_cpus", None, ONE_MACHINE)
    cutter.set("weight_sync.backend", "object_store", NO_GPU)
    cutter.set("weight_sync.staged", False, "a second copy of the weights would be in this machine's memory")


def _counts(config: RunConfig) -> Iterator[tuple[str, Any]]:
    yield from (
        ("learner.num_ranks", 1),
        ("learner.gpus_per_rank", 0.0),
        ("learner.micro_batch_size", 1),
        ("learner.mini_batches", 1),
        ("rollout.num_workers", 1),
        ("rollout.gpus_per_worker", 0.0),
        ("rollout.tensor_parallel_size", 1),
        ("rollout.decode_batch_size", 2),
        ("algorithm.groups_per_step", 1),
        ("algorithm.group_size", 2),
        ("algorithm.images_per_cot", min(2, config.algorithm.images_per_cot)),
        ("queue.max_groups", None),
    )
    if config.warm_start is not None:
        yield "warm_start.batch_size", 4


@dataclass(frozen=True, slots=True)
class MemoryOnCpu:
    """Bytes that the processes of a rehearsal need together where there is no GPU."""

    learner: int
    checkpoint: int
    """Of the learner: copies of weights and of the optimizer's state on their way to the disk."""
    rollout: int
    beside: int = BESIDE_BYTES

    @classmethod
    def of(cls, config: RunConfig, shape: ModelShape) -> MemoryOnCpu:
        learner = learner_rank(config, shape)
        copies = learner.parts["optimizer"] + learner.parts["weights"]
        return cls(learner.total, copies, rollout_worker(config, shape, None).total)

    @property
    def total(self) -> int:
        return self.learner + self.checkpoint + self.rollout + self.beside

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in ("learner", "checkpoint", "rollout", "beside")}
        shown = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
        return f"{self.total / GIB:.1f} GiB ({shown})"


def cut_to_memory(
    cutter: Cutter, shape_of: Callable[[int], ModelShape], layers: int, available_bytes: int, source: str
) -> tuple[int, MemoryOnCpu]:
    """Train the layers alone, or their attention alone, where the optimizer's state of the whole does not fit the
    machine's memory, and take fewer layers where that is not enough; returns how many, and the memory that it needs.

    shape_of: of the model with so many layers. Raises PlacementError where one layer does not fit.
    """
    config = cutter.config(source)
    whole = MemoryOnCpu.of(config, shape_of(layers))
    if whole.total <= available_bytes:
        return layers, whole
    reason = f"{whole.total / GIB:.0f} GiB of memory would be needed, {available_bytes / GIB:.0f} may be taken"
    if config.learner.lora is None:
        cutter.set("learner.trainable", list(LAYERS_ONLY), reason, "the layers alone")
        if MemoryOnCpu.of(cutter.config(source), shape_of(layers)).total > available_bytes:
            cutter.cuts.pop()
            cutter.set("learner.trainable", list(ATTENTION_ONLY), reason, "the layers' attention alone")
        config = cutter.config(source)
    for fitting in range(layers, 0, -1):
        needed = MemoryOnCpu.of(config, shape_of(fitting))
        if needed.total <= available_bytes:
            break
    else:
        raise PlacementError(
            f"a rehearsal of this model needs {needed} with one layer; {available_bytes / GIB:.1f} GiB may be taken "
            "here: rehearse where there is more, or end what else runs"
        )
    if fitting < layers:
        cutter.cuts.append(Cut("--layers", str(layers), str(fitting), reason))
    return fitting, needed


def needs_gpus(config: RunConfig) -> bool:
    return plan_placement(config).num_gpus > 0


def _short(value: Any) -> str:
    if value is None:
        return "null"
    text = mask_text(f"{value:g}" if isinstance(value, float) else str(value))
    return text if len(text) <= 40 else f"{text[:37]}..."
