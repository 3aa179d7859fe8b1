"""How much of a model's bfloat16 weights an optimizer step changes: what sending only the changes could save.

    python -m scripts.changed_weights [--lr 1e-6] [--steps 40] [--values 1000000] [--seed 0]

AdamW with the learner's own settings moves float32 weights, of which the engines get the nearest bfloat16; counted is
what differs from one version to the next. Weights are normal, as a model is initialised (0.02, LLaMA's and Janus's) and
of smaller and larger spread. Gradients are a direction that stays, and noise that is new in each step.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch

from learner.zero import OptimizerSettings

WEIGHT_STDS = (0.006, 0.02, 0.05)
SIGNALS = (0.0, 0.3, 10.0)
"""Of a gradient, how large the direction that stays is beside the noise."""


class Changes(NamedTuple):
    """Shares of one step, 0 to 1."""

    values: float
    bytes: float


def changes(weight_std: float, signal: float, lr: float, num_steps: int, num_values: int, seed: int) -> list[Changes]:
    """Of each step, between the weights before and after it."""
    settings = OptimizerSettings(lr=lr, total_steps=num_steps)
    generator = torch.Generator().manual_seed(seed)
    # A policy begins on bfloat16's grid: it was loaded from bfloat16.
    weights = (weight_std * torch.randn(num_values, generator=generator)).bfloat16().float().requires_grad_(True)
    direction = signal * torch.randn(num_values, generator=generator)
    optimizer = torch.optim.AdamW([weights], lr=settings.lr, betas=settings.betas, weight_decay=0.0)
    sent, found = weights.detach().bfloat16(), []
    for _ in range(num_steps):
        weights.grad = direction + torch.randn(num_values, generator=generator)
        optimizer.step()
        now = weights.detach().bfloat16()
        differs = now.view(torch.uint8) != sent.view(torch.uint8)
        found.append(Changes((now != sent).double().mean().item(), differs.double().mean().item()))
        sent = now
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.changed_weights", description=__doc__.partition("\n")[0])
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    print(f"Share of values (of bytes) that a step at lr {options.lr:g} changes:")
    print("| std of the weights | signal / noise of a gradient | step 1 | last step |\n|---|---|---|---|")
    for weight_std in WEIGHT_STDS:
        for signal in SIGNALS:
            steps = changes(weight_std, signal, options.lr, options.steps, options.values, options.seed)
            cells = " | ".join(f"{each.values:.2%} ({each.bytes:.2%})" for each in (steps[0], steps[-1]))
            print(f"| {weight_std:g} | {signal:g} | {cells} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
