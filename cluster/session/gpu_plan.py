"""What each GPU of a run must hold and how long a step takes at best: the part of `--dry-run` for GPUs.

RunConfig + config.json of the model + a card ─► describe_gpu_plan (for people)
                                              └► check_memory: refuses what cannot fit, with the field to change
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.planning.cards import CARDS, GIB, Card
from cluster.planning.memory import (
    CONTEXT_BYTES,
    Need,
    NeedInTurns,
    in_turns,
    learner_rank,
    pictures_at_once,
    rollout_worker,
)
from cluster.planning.model_shape import ModelShape
from cluster.planning.reward_models import reward_bytes, reward_dtype
from cluster.planning.roofline import StepTimes, step_times
from cluster.session.placement import COLOCATED, Bundle, plan_placement
from configs.errors import ConfigError, PlacementError
from configs.schema import RunConfig

DEFAULT_CARD = "h100"


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """One GPU, or several that are loaded alike, and what lies on it."""

    bundles: tuple[Bundle, ...]
    needs: tuple[Need | None, ...]
    """Of each bundle; None where it is not known."""
    count: int = 1

    @property
    def total(self) -> int:
        return sum(need.total for need in self.needs if need is not None)


def describe_gpu_plan(config: RunConfig, shape: ModelShape, card: Card) -> str:
    """Lines for people; empty for a run without GPUs."""
    loads = gpu_loads(config, shape, card)
    if not loads:
        return ""
    lines = [f"on {card.name}, {card.memory_bytes / GIB:.0f} GiB each:"]
    for load in loads:
        lines += _load_lines(load, card)
    if config.rollout.colocate:
        lines.append(_host_line(config, shape))
    lines += _time_lines(config, step_times(config, shape, card))
    if (advice := stage_advice(config, shape, card)) is not None:
        lines.append(advice)
    cache = rollout_worker(config, shape, card.memory_bytes).parts["KV cache"]
    lines.append(f"a rollout worker's KV cache holds {pictures_at_once(config, shape, cache)} pictures at once")
    return "\n".join(lines)


def check_memory(config: RunConfig, shape: ModelShape, card: Card) -> None:
    """Raises PlacementError when a GPU would have to hold more than it has, naming the field to change first."""
    for load in gpu_loads(config, shape, card):
        if load.total > card.memory_bytes:
            names = " + ".join(bundle.name for bundle in load.bundles)
            raise PlacementError(
                f"a {card.name} would have to hold {load.total / GIB:.1f} GiB of {card.memory_bytes / GIB:.0f} "
                f"({names}): {_remedy(config, shape, load, load.total - card.memory_bytes)}"
            )


def stage_advice(config: RunConfig, shape: ModelShape, card: Card) -> str | None:
    """Stage 3 gathers all weights in every forward and backward pass: where stage 2 fits, it is the faster one. None
    where there is nothing to say."""
    if config.learner.zero_stage < 3:
        return None
    second = config.model_copy(update={"learner": config.learner.model_copy(update={"zero_stage": 2})})
    if any(load.total > card.memory_bytes for load in gpu_loads(second, shape, card)):
        return None
    return (
        f"learner.zero_stage: 2 fits as well, in {learner_rank(second, shape).total / GIB:.1f} GiB a rank, and gathers "
        "no weights in each pass; set it"
    )


def card_of(name: str) -> Card:
    """Raises ConfigError for a card that is not known."""
    if name not in CARDS:
        raise ConfigError(f"--gpu '{name}' is not known; use one of {', '.join(CARDS)}")
    return CARDS[name]


def gpu_loads(config: RunConfig, shape: ModelShape, card: Card) -> list[GpuLoad]:
    """Every GPU of the run, those that are loaded alike counted together."""
    plan = plan_placement(config)
    alone = [bundle for bundle in plan.bundles if bundle.gpus >= 1]
    loads: list[GpuLoad] = []
    for role in dict.fromkeys(bundle.role for bundle in alone):
        of_role = [bundle for bundle in alone if bundle.role == role]
        devices = sum(int(bundle.gpus) for bundle in of_role)
        loads.append(GpuLoad((of_role[0],), (_need(config, shape, card, of_role[0]),), devices))
    shared = [GpuLoad(on, tuple(_need(config, shape, card, bundle) for bundle in on)) for on in plan.shared_gpus]
    return loads + shared


def _need(config: RunConfig, shape: ModelShape, card: Card, bundle: Bundle) -> Need | None:
    if bundle.role == COLOCATED:
        return in_turns(config, shape, card.memory_bytes)
    if bundle.role == "learner":
        return learner_rank(config, shape)
    if bundle.role == "rollout":
        return rollout_worker(config, shape, card.memory_bytes)
    reward = next(reward for reward in config.rewards if bundle.role == f"rewards.{reward.name}")
    size = reward_bytes(reward)
    return None if size is None else Need({f"model in {reward_dtype(reward)}": size, "context": CONTEXT_BYTES})


def _load_lines(load: GpuLoad, card: Card) -> Iterator[str]:
    count = f"{load.count} x " if load.count > 1 else ""
    names = " + ".join(bundle.role if load.count > 1 else bundle.name for bundle in load.bundles)
    verdict = "" if load.total <= card.memory_bytes else ": DOES NOT FIT"
    yield f"  {count}{names}: {load.total / GIB:.1f} GiB of {card.memory_bytes / GIB:.0f}{verdict}"
    for bundle, need in zip(load.bundles, load.needs, strict=True):
        if need is None:
            yield f"    {bundle.name}: not counted, its model is not known here"
        elif isinstance(need, NeedInTurns):
            for turn, during in need.turns.items():
                yield f"    {bundle.name}, {turn}: {during.total / GIB:.1f}: {_parts(during)}"
        else:
            yield f"    {bundle.name}: {_parts(need)}"


def _parts(need: Need) -> str:
    return ", ".join(f"{name} {size / GIB:.1f}" for name, size in need.parts.items() if size > 0.05 * GIB)


def _host_line(config: RunConfig, shape: ModelShape) -> str:
    rank, worker = learner_rank(config, shape).parts, rollout_worker(config, shape, None).parts
    return (
        f"taking turns: host memory for each GPU holds {rank['optimizer'] / GIB:.1f} GiB of optimizer state while "
        f"engines draw, {worker['weights'] / GIB:.1f} GiB of the engine's weights while the learner learns, and as "
        "much for new weights"
    )


def _time_lines(config: RunConfig, times: StepTimes) -> Sequence[str]:
    gpus = plan_placement(config).num_gpus
    hours = times.step_s * config.run.steps / 3600
    how = "overlapping" if times.overlaps else "one after the other"
    return [
        f"a step at best: {times.step_s:.1f} s, bound by {times.bound_by} "
        f"(rollout {times.rollout_s:.1f} s at {times.pictures_per_s:.1f} pictures/s, learner {times.learner_s:.1f} s, "
        f"{how}; rewards and weight sync not counted)",
        f"{config.run.steps} steps: {hours:.1f} hours, {hours * gpus:.0f} GPU-hours at best",
    ]


def _remedy(config: RunConfig, shape: ModelShape, load: GpuLoad, excess: int) -> str:
    """The field whose change frees the most with the least harm, and the value that fits where one is known."""
    roles = {bundle.role for bundle in load.bundles}
    for need in load.needs:
        if isinstance(need, NeedInTurns):
            if need.turns["learning"].total == need.total:
                return "put rewards elsewhere, lower learner.micro_batch_size, or train with learner.lora"
            return f"lower rollout.gpu_memory_utilization ({config.rollout.gpu_memory_utilization:g})"
    if "rollout" in roles:
        decoder = rollout_worker(config, shape, None).parts["VQ decoder"]
        per_picture = (decoder - shape.vq.parameters * 4) // config.rollout.decode_batch_size
        fitting = config.rollout.decode_batch_size - -(-excess // per_picture)
        if fitting >= 1:
            return f"lower rollout.decode_batch_size to {fitting}, or rollout.gpu_memory_utilization"
        return f"lower rollout.gpu_memory_utilization ({config.rollout.gpu_memory_utilization:g})"
    if roles == {"learner"}:
        if config.learner.zero_stage < 3 and config.learner.num_ranks > 1:
            return f"raise learner.zero_stage ({config.learner.zero_stage}), or learner.num_ranks"
        return "raise learner.num_ranks, or train with learner.lora"
    return "give the rewards fewer replicas a GPU, by a larger gpus_per_replica"
