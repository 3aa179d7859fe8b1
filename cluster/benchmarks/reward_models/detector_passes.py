"""GenEval's detector: several pictures in one pass, against one a pass, on a CPU."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from cluster.benchmarks.report import Scope, Table, ratio, spread
from cluster.benchmarks.reward_models.small_models import SMALL_MODELS
from rewards.objects.geneval_detector import ObjectDetector

PICTURE_SIZE, SHORT_SIDE = 384, 800
NUM_PICTURES = 8


def measure_passes(scope: Scope) -> Table:
    """Pictures a CPU second of one thread's, in turns. What runs beside it takes no CPU time from it."""
    num_rounds = scope.pick(quick=2, full=5)
    with tempfile.TemporaryDirectory(prefix="bicot-bench-") as directory:
        torch.manual_seed(0)
        detector = ObjectDetector(SMALL_MODELS["geneval"](Path(directory))["model"], "float32", "cpu", SHORT_SIDE)
    shape = (NUM_PICTURES, PICTURE_SIZE, PICTURE_SIZE, 3)
    pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    speeds: dict[str, list[float]] = {"one": [], "eight": []}
    for number in range(num_rounds + 1):
        moments = [time.process_time()]
        for place in range(NUM_PICTURES):
            detector.see_in_one_pass(pictures[place : place + 1])
        moments.append(time.process_time())
        detector.see_in_one_pass(pictures)
        moments.append(time.process_time())
        if number:  # the first round warms both up
            for key, started_s, ended_s in zip(speeds, moments, moments[1:], strict=False):
                speeds[key].append(NUM_PICTURES / (ended_s - started_s))
    return Table(
        "GenEval's detector: pictures a CPU second",
        f"{NUM_PICTURES} pictures of noise, {PICTURE_SIZE} pixels enlarged to {SHORT_SIDE}, {scope.num_threads} "
        "thread(s): a small random Mask2Former. So on a CPU `rewards.benchmark geneval` looks at one a pass.",
        ("", "one a pass", "eight a pass", "eight against one"),
        (("`geneval`", spread(speeds["one"]), spread(speeds["eight"]), ratio(speeds["eight"], speeds["one"])),),
    )
