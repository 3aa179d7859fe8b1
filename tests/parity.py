"""The parity gate's answer to a batch, as a learner gives it that has nothing else to do."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from configs.schema import RunConfig
from learner.batch import PlanSettings, plan_step
from learner.janus_policy import JanusPolicy
from learner.parity_check import ParityCheck, logprob_request
from rollout.records import TrajectoryBatch


@dataclass
class Learner:
    """What the check asks of a `DeepSpeedEngine`."""

    module: JanusPolicy
    num_steps: int
    zero_stage: int = 0


def judge(config: RunConfig, policy: JanusPolicy, batch: TrajectoryBatch, version: int) -> dict[str, float]:
    """The gate's metrics of the first batch that a learner with this policy sees, at this weight version; raises what
    the gate raises. Needs a process group."""
    check = ParityCheck(config, Learner(policy, version), None, torch.device("cpu"))
    plan = plan_step(batch, PlanSettings.of(config, 1), 0)
    sums = check.begin(plan)
    assert sums is not None
    with torch.no_grad():
        for micro_batch in plan.mini_batches[0].micro_batches:
            for phase in micro_batch.phases:
                check.compare(phase, policy(logprob_request(config, phase))[0], sums)
    check.judge(sums)
    return check.metrics(sums)
