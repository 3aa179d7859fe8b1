"""What a run asks of a cluster, as a plan on paper: no Ray here.

    RunConfig ─► plan_placement ─► PlacementPlan ─► describe (for people)
                                        └─► check_fits (against the cluster's nodes)

The plan is of the start: an elastic pool has its `min` then, and grows where it finds room.
A bundle is what one actor asks for; it lies on one node. Actors that ask for less than one GPU share
one, as far as their fractions add up to 1; all others have theirs alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from configs.errors import PlacementError
from configs.schema import RunConfig

COLOCATED = "learner + rollout"
"""Role of a bundle in which a learner rank and a rollout worker take turns."""
# Fractions of a GPU are multiples of this for Ray too.
_RESOLUTION = 1e-4


@dataclass(frozen=True, slots=True)
class Bundle:
    """One actor's place."""

    role: str
    """Config section that decides it: `learner`, `rollout`, `rewards.NAME`, or `service`; or COLOCATED."""
    name: str
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """That its node must have."""


@dataclass(frozen=True, slots=True)
class PlacementPlan:
    """All actors of a run and what they need together."""

    bundles: tuple[Bundle, ...]

    @property
    def num_cpus(self) -> int:
        """Logical CPUs of all bundles, rounded up."""
        return math.ceil(_total(bundle.cpus for bundle in self.bundles))

    @property
    def num_gpus(self) -> int:
        """Whole GPUs that hold all bundles, those that share one packed first-fit by falling size."""
        whole = sum(int(bundle.gpus) for bundle in self.bundles if bundle.gpus >= 1)
        return whole + len(self.shared_gpus)

    @property
    def shared_gpus(self) -> tuple[tuple[Bundle, ...], ...]:
        """For each GPU that is given out in fractions, the bundles on it."""
        fractions = sorted((b for b in self.bundles if 0 < b.gpus < 1), key=lambda b: b.gpus, reverse=True)
        shared: list[list[Bundle]] = []
        for bundle in fractions:
            free = (gpu for gpu in shared if _total(b.gpus for b in gpu) + bundle.gpus <= 1 + _RESOLUTION / 2)
            gpu = next(free, None)
            if gpu is None:
                shared.append([bundle])
            else:
                gpu.append(bundle)
        return tuple(tuple(gpu) for gpu in shared)

    def describe(self) -> str:
        """A table of roles with their counts, CPUs and GPUs, and who shares a GPU."""
        rows = [("", "actors", "CPUs", "GPUs")]
        for role, group in groupby(self.bundles, key=lambda bundle: bundle.role):
            bundles = list(group)
            rows.append((role, str(len(bundles)), _each(b.cpus for b in bundles), _each(b.gpus for b in bundles)))
        rows.append(("together", str(len(self.bundles)), str(self.num_cpus), str(self.num_gpus)))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        for gpu in self.shared_gpus:
            shares = " + ".join(f"{bundle.name} ({bundle.gpus:g})" for bundle in gpu)
            lines.append(f"one GPU for {shares}")
        return "\n".join(lines)


def plan_placement(config: RunConfig) -> PlacementPlan:
    """The bundles of a run, by its config alone.

    Raises PlacementError for an actor whose number of GPUs Ray cannot give: above 1 and not whole.
    """
    plan = PlacementPlan(tuple(_bundles(config)))
    for bundle in plan.bundles:
        if bundle.gpus > 1 and bundle.gpus != int(bundle.gpus):
            raise PlacementError(
                f"{bundle.role}: {bundle.gpus:g} GPUs for one actor; ask for a whole number, or for 1 or less"
            )
    return plan


def check_fits(plan: PlacementPlan, available: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> None:
    """Refuse a plan that the cluster can never hold.

    available: the cluster's resources together; nodes: each node's own; both with Ray's keys "CPU" and "GPU".
    Refused is too little in all, and fewer places of a bundle's size than there are bundles at least as large;
    how the rest falls into place is Ray's affair.

    Raises PlacementError naming what is missing, who asks for it, and the remedy.
    """
    for resource, needed in (("CPU", float(plan.num_cpus)), ("GPU", float(plan.num_gpus))):
        held = available.get(resource, 0.0)
        if needed > held:
            missing = f"the run needs {needed:g} {resource}s, the cluster has {held:g}"
            raise PlacementError(f"{missing}; {_remedy(resource)}\n{plan.describe()}")
        _check_places(plan, resource, [node.get(resource, 0.0) for node in nodes])


def check_labels(plan: PlacementPlan, nodes: Sequence[Mapping[str, str]]) -> None:
    """Raises PlacementError when an actor asks for labels that none of the nodes (their labels) has."""
    for bundle in plan.bundles:
        if bundle.labels and not any(bundle.labels.items() <= node.items() for node in nodes):
            raise PlacementError(
                f"{bundle.role}.node_labels: no node of the cluster has {dict(bundle.labels)}; start one with "
                "`ray start --labels`, or change the field"
            )


def _bundles(config: RunConfig) -> Iterator[Bundle]:
    yield from _bundles_in_turns(config) if config.rollout.colocate else _bundles_apart(config)
    for reward in config.rewards:
        for replica in range(reward.replicas.min):
            yield Bundle(
                f"rewards.{reward.name}",
                f"{reward.name}-{replica}",
                reward.cpus_per_replica,
                reward.gpus_per_replica,
                reward.node_labels,
            )
    yield Bundle("service", "trajectory-queue", 0.0, 0.0)  # it waits, and passes references on


def _bundles_apart(config: RunConfig) -> Iterator[Bundle]:
    learner, rollout = config.learner, config.rollout
    for rank in range(learner.num_ranks):
        yield Bundle("learner", f"learner-{rank}", learner.cpus_per_rank, learner.gpus_per_rank, learner.node_labels)
    for worker in range(rollout.num_workers.min):
        yield Bundle(
            "rollout", f"rollout-{worker}", rollout.cpus_per_worker, rollout.gpus_per_worker, rollout.node_labels
        )


def _bundles_in_turns(config: RunConfig) -> Iterator[Bundle]:
    learner, rollout = config.learner, config.rollout
    cpus, gpus = learner.cpus_per_rank + rollout.cpus_per_worker, learner.gpus_per_rank + rollout.gpus_per_worker
    for rank in range(learner.num_ranks):
        yield Bundle(COLOCATED, f"learner-{rank} + rollout-{rank}", cpus, _total(iter((gpus,))), learner.node_labels)


def _check_places(plan: PlacementPlan, resource: str, nodes: Sequence[float]) -> None:
    sizes = {bundle: bundle.cpus if resource == "CPU" else bundle.gpus for bundle in plan.bundles}
    for bundle, size in sizes.items():
        if size == 0:
            continue
        wanted = sum(1 for other in sizes.values() if other >= size)
        places = sum(_num_places(node, size, resource) for node in nodes)
        if places < wanted:
            raise PlacementError(
                f"{bundle.role}: {wanted} actors need {size:g} or more {resource}s each on one node, the cluster's "
                f"nodes have room for {places}; {_remedy(resource)}, or ask for less in {bundle.role}"
            )


def _num_places(held: float, size: float, resource: str) -> int:
    """How many bundles of `size` a node holds; a fraction of a GPU lies on one GPU."""
    if resource == "GPU" and size < 1:
        return int(held) * math.floor(1 / size + _RESOLUTION)
    return math.floor(held / size + _RESOLUTION)


def _remedy(resource: str) -> str:
    if resource == "GPU":
        return "add nodes with GPUs, or lower learner.num_ranks, rollout.num_workers or rewards' gpus_per_replica"
    return "add nodes, lower the workers' numbers or cpus_per_…, or set cluster.num_cpus on a local Ray"


def _total(amounts: Iterator[float]) -> float:
    """A sum without the noise of binary fractions: ten times 0.1 is 1."""
    return round(math.fsum(amounts), 4)


def _each(amounts: Iterator[float]) -> str:
    values = list(amounts)
    return f"{_total(iter(values)):g}" + (f" ({len(values)} x {values[0]:g})" if len(values) > 1 else "")
