"""Which processes a run consists of, told by what Ray and vLLM call them, and which one dies next."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import psutil

from cluster.faults.sabotage import SABOTAGE_KINDS

ACTOR_KINDS: Final[Mapping[str, str]] = {
    "ray::RolloutActor": "rollout",
    "VLLM::EngineCore": "engine",
    "ray::RewardActor": "reward",
    "ray::TrajectoryQueueActor": "queue",
    "ray::LearnerActor": "learner",
}
"""Beginning of a process's title -> kind of victim."""
LAUNCHER, REDIS = "launcher", "redis"
KINDS: Final = (*ACTOR_KINDS.values(), LAUNCHER, REDIS)
"""That die. What misbehaves and lives: `cluster.faults.sabotage`."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A process that may be killed, or told to misbehave: its kind says which."""

    kind: str
    process: psutil.Process


def find_victims(launcher: psutil.Process, redis: psutil.Process) -> list[Victim]:
    """Every process of the run that has a kind, those of the run's actors by their titles."""
    victims = [Victim(LAUNCHER, launcher), Victim(REDIS, redis)]
    for process in launcher.children(recursive=True):
        kind = kind_of(_title(process))
        if kind is not None:
            victims.append(Victim(kind, process))
        if kind == "reward":
            victims += [Victim(order, process) for order in SABOTAGE_KINDS]
    return victims


def kind_of(title: str) -> str | None:
    """The kind of a process with this title; None for those of Ray itself and for helpers."""
    return next((kind for beginning, kind in ACTOR_KINDS.items() if title.startswith(beginning)), None)


def choose_victim(victims: Iterable[Victim], kinds: Iterable[str], rng: random.Random) -> Victim | None:
    """A kind at random, so that many processes of one kind do not shield the others; then one of that kind.

    None when nothing of these kinds is alive.
    """
    by_kind: dict[str, list[Victim]] = {}
    for victim in victims:
        by_kind.setdefault(victim.kind, []).append(victim)
    present = sorted(set(kinds) & set(by_kind))
    if not present:
        return None
    chosen = by_kind[rng.choice(present)]
    return rng.choice(sorted(chosen, key=lambda victim: victim.process.pid))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return ""
