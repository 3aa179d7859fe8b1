"""Drawing of what is missing, by the engine of rollout.generate: all prompts are one queue.

The pictures of a prompt depend on the weights, the settings and the prompt's place in the benchmark, and on nothing
else: a run that is resumed, or limited, draws the same ones.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards.benchmarks.encoding import write_picture
from rewards.benchmarks.folders import RunFolder, append_line
from rewards.benchmarks.protocol import Item
from rewards.benchmarks.provenance import weights_of
from rollout.drawing_options import DrawingOptions
from rollout.records import GroupRollout, Prompt, UInt8Array
from rollout.vllm.settings import quiet_environment


def draw_missing(
    folder: RunFolder,
    items: Sequence[Item],
    chosen: Sequence[Item],
    options: DrawingOptions,
    advance: Callable[[], None],
) -> None:
    """Draw the pictures of `chosen`, which are some of all `items` and have one number of pictures each.

    advance: called after each prompt. Raises ConfigError, DataError, ModelError or RolloutError.
    """
    os.environ.update(quiet_environment())  # before torch is imported, which reads its part once
    from rollout.drawing import draw  # here, since it loads torch and the engine

    places = {item.key: place for place, item in enumerate(items)}
    prompts = [Prompt(item.key, item.prompt) for item in items]
    of_key = {item.key: item for item in items}

    def keep(rollout: GroupRollout, pictures: UInt8Array) -> None:
        write_drawn(folder, of_key[rollout.request.prompt.prompt_id], rollout, pictures)
        advance()

    asyncio.run(draw(options, prompts, keep, only=[places[item.key] for item in chosen]))


def model_weights(options: DrawingOptions) -> Mapping[str, str]:
    """Name -> SHA-256 of the weight files of the model that draws. Raises ModelError when there is no such model."""
    from rollout.janus_checkpoint import resolve_folder

    return weights_of(str(resolve_folder(options.model, options.revision)))


def write_drawn(folder: RunFolder, item: Item, rollout: GroupRollout, pictures: UInt8Array) -> None:
    """Keep the pictures of a prompt that are not there yet, and how each was drawn."""
    for path, trajectory, picture in zip(folder.drawn(item), rollout.trajectories, pictures, strict=True):
        if path.exists():
            continue
        line: dict[str, Any] = {
            "file": str(path.relative_to(folder.root)),
            "prompt": item.prompt,
            "plan": trajectory.cot_text,
            "guidance_scale": trajectory.guidance_scale,
            "trajectory_seed": trajectory.seed,
        }
        append_line(folder.root / "drawn.jsonl", line)  # first: a kill may leave a line twice, and no picture without
        write_picture(picture, path)
