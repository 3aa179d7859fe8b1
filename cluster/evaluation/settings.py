"""What a run's config says of an evaluation, and what the command line says instead."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.session.placement import Bundle, PlacementPlan
from configs.errors import ConfigError
from configs.schema import BenchmarkConfig, RunConfig
from rollout.drawing_options import DrawingOptions

DRAWING = (
    *("revision", "no_cot", "guidance_scale", "temperature", "seed", "max_cot_tokens", "engine", "device", "dtype"),
)
"""Options of drawing on a command line, which have no value there when they are not given."""


def drawing_of(arguments: argparse.Namespace, config: RunConfig) -> DrawingOptions:
    """How pictures are drawn: as the config's rollout workers do, but for what is given.

    Raises ConfigError where the config does not say what draws, or something is given that it alone decides.
    """
    if arguments.device is not None:
        raise ConfigError("--device: with --config, workers are on a GPU where rollout.gpus_per_worker is above 0")
    if config.warm_start is not None and arguments.model is None:
        raise ConfigError(
            "--model is missing: the config makes its policy by a warm start; name the checkpoint to evaluate, such as "
            "runs/NAME/checkpoints/step_000080/model"
        )
    rollout, model = config.rollout, config.model
    of_config: dict[str, Any] = {
        "revision": model.revision if arguments.model is None else None,
        "no_cot": False,
        "guidance_scale": rollout.guidance_scale,
        "temperature": rollout.temperature,
        "seed": config.run.seed,
        "max_cot_tokens": rollout.max_cot_tokens,
        "engine": rollout.engine,
        "device": "cuda" if rollout.gpus_per_worker else "cpu",
        "dtype": model.dtype,
    }
    given = {name: value for name in DRAWING if (value := getattr(arguments, name)) is not None}
    path = arguments.model or model.path
    return DrawingOptions(path, num_images=1, images_per_cot=1, **{**of_config, **given})


def config_of_workers(config: RunConfig, drawing: DrawingOptions) -> RunConfig:
    """What rollout workers that draw so are started with: no rewards, no adapters, and no second copy of weights for
    updates that never come."""
    rollout = {
        "engine": drawing.engine,
        "guidance_scale": drawing.guidance_scale,
        "temperature": drawing.temperature,
        "max_cot_tokens": 1 if drawing.no_cot else drawing.max_cot_tokens,
    }
    model = {"path": drawing.model, "revision": drawing.revision, "dtype": drawing.dtype}
    return config.model_copy(
        update={
            "rewards": (),
            "warm_start": None,
            "model": config.model.model_copy(update=model),
            "rollout": config.rollout.model_copy(update=rollout),
            "learner": config.learner.model_copy(update={"lora": None}),
            "weight_sync": config.weight_sync.model_copy(update={"staged": False}),
        }
    )


def plan_of_workers(config: RunConfig) -> PlacementPlan:
    """The places of the rollout workers."""
    rollout = config.rollout
    size = (rollout.cpus_per_worker, rollout.gpus_per_worker, rollout.node_labels)
    return PlacementPlan(
        tuple(Bundle("rollout", f"rollout-{number}", *size) for number in range(rollout.num_workers.min))
    )


def plan_of_scorers(sections: Mapping[str, BenchmarkConfig], names: Sequence[str]) -> PlacementPlan:
    """The places of the largest pool of scorers: they take turns, and rollout workers have ended before them."""
    plans = [
        PlacementPlan(
            tuple(
                Bundle(f"data.benchmarks.{name}", f"{name}-{number}", section.cpus, section.gpus)
                for number in range(section.replicas)
            )
        )
        for name in names
        for section in (sections.get(name, BenchmarkConfig()),)
    ]
    return max(plans, key=lambda plan: (plan.num_gpus, plan.num_cpus), default=PlacementPlan(()))
