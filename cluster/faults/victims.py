"""Which processes a run consists of, told by what Ray and vLLM call them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import psutil

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


@dataclass(frozen=True, slots=True)
class Victim:
    """A process that may be killed."""

    kind: str
    process: psutil.Process


def find_victims(launcher: psutil.Process, redis: psutil.Process) -> list[Victim]:
    """Every process of the run that has a kind, those of the run's actors by their titles."""
    return [Victim(LAUNCHER, launcher), Victim(REDIS, redis), *find_workers(launcher.children(recursive=True))]


def find_workers(processes: Iterable[psutil.Process]) -> list[Victim]:
    """Those that are actors of a run, or their engines."""
    kinds = ((kind_of(_title(process)), process) for process in processes)
    return [Victim(kind, process) for kind, process in kinds if kind is not None]


def kind_of(title: str) -> str | None:
    """The kind of a process with this title; None for those of Ray itself and for helpers."""
    return next((kind for beginning, kind in ACTOR_KINDS.items() if title.startswith(beginning)), None)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or process.name()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return ""
