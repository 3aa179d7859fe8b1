"""An evaluation draws as the config's workers do, but for what the command line gives, and needs no learner."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from cluster.evaluate import build_parser, main
from cluster.evaluation.settings import DRAWING, config_of_workers, drawing_of, plan_of_scorers, plan_of_workers
from configs.errors import ConfigError
from configs.load import load_config
from configs.schema import BenchmarkConfig, RunConfig
from rewards.benchmark import main as rewards_benchmark
from rewards.benchmarks.command import choose, parse

JANUS = "configs/janus_pro_7b_cluster.yaml"


def parsed(*options: str) -> argparse.Namespace:
    argv = ["shapes", "--config", JANUS, *options]
    return parse(build_parser(), argv, argparse.Namespace(**dict.fromkeys(DRAWING)))


def test_what_is_not_given_is_the_configs() -> None:
    config = load_config(JANUS, ["rollout.temperature=0.7", "run.seed=9"])
    drawing = drawing_of(parsed(), config)
    rollout = config.rollout
    assert (drawing.model, drawing.temperature, drawing.seed, drawing.no_cot) == (config.model.path, 0.7, 9, False)
    assert (drawing.guidance_scale, drawing.max_cot_tokens) == (rollout.guidance_scale, rollout.max_cot_tokens)
    assert (drawing.device, drawing.dtype) == ("cuda", "bfloat16")


def test_what_is_given_goes_before_the_config_even_where_it_is_the_commands_default() -> None:
    config = load_config(JANUS, ["rollout.temperature=0.7", "run.seed=9"])
    drawing = drawing_of(parsed("--temperature", "1.0", "--seed", "0", "--no-cot", "--model", "ckpt"), config)
    assert (drawing.model, drawing.temperature, drawing.seed, drawing.no_cot) == ("ckpt", 1.0, 0, True)
    workers = config_of_workers(config, drawing)
    assert (workers.model.path, workers.rollout.temperature, workers.rollout.max_cot_tokens) == ("ckpt", 1.0, 1)
    assert (workers.rewards, workers.learner.lora, workers.weight_sync.staged) == ((), None, False)


def test_a_config_that_makes_its_policy_needs_a_model() -> None:
    config = load_config("configs/tiny_janus_shapes.yaml")
    with pytest.raises(ConfigError, match="--model is missing: the config makes its policy by a warm start"):
        drawing_of(parsed(), config)
    assert drawing_of(parsed("--model", "ckpt"), config).model == "ckpt"
    with pytest.raises(ConfigError, match=r"rollout\.gpus_per_worker"):
        drawing_of(parsed("--device", "cpu"), config)


def test_the_cluster_needs_room_for_the_workers_and_then_for_the_largest_scorer_and_for_no_learner() -> None:
    config = load_config(JANUS)
    workers = plan_of_workers(config)
    assert {bundle.role for bundle in workers.bundles} == {"rollout"}
    assert len(workers.bundles) == config.rollout.num_workers.min
    sections = {"geneval": BenchmarkConfig(replicas=3, gpus=1), "dpg": BenchmarkConfig(replicas=2, cpus=4)}
    scorers = plan_of_scorers(sections, ["dpg", "geneval", "shapes"])
    assert ([bundle.role for bundle in scorers.bundles], scorers.num_gpus) == (["data.benchmarks.geneval"] * 3, 3)
    assert plan_of_scorers({}, ["shapes"]).num_cpus == 1


def config_with(**sections: dict[str, Any]) -> RunConfig:
    config = load_config(JANUS)
    benchmarks = {name: BenchmarkConfig(**section) for name, section in sections.items()}
    return config.model_copy(update={"data": config.data.model_copy(update={"benchmarks": benchmarks})})


def test_a_scorers_settings_come_from_the_config_but_for_what_is_given() -> None:
    config = config_with(geneval={"scorer": {"detector": "a.pth", "clip": "clip"}, "gpus": 1})
    arguments = parsed("--scorer", "detector=b.pth")
    arguments.name = "geneval"
    arguments.data = None
    with pytest.raises(Exception, match="geneval needs --data"):
        choose(arguments, config.data.benchmarks)
    chosen, lacking = choose(parsed(), config_with(shapes={"gpus": 1}).data.benchmarks)
    assert (lacking, [choice.scorer.device for choice in chosen]) == ({}, ["cuda"])
    assert [choice.scorer.device for choice in choose(parsed())[0]] == ["cpu"]


def test_the_commands_refuse_what_belongs_to_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    for command, argv, message in (
        (main, ["shapes", "--model", "ckpt"], "--config is missing"),
        (rewards_benchmark, ["shapes", "--model", "ckpt", "--set", "run.seed=1"], "--set changes a field of --config"),
        (rewards_benchmark, ["shapes", "--self-check", "--config", JANUS], "leave --config out"),
    ):
        with pytest.raises(SystemExit) as ended:
            command(argv)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
    assert rewards_benchmark(["shapes", "--config", "configs/tiny_janus_shapes.yaml"]) == 2
    assert "--model is missing" in capsys.readouterr().err
