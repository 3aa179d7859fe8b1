"""What watching costs the launcher: metrics, timeline and live.json of a step and of a pulse, switched on and off.

groups of a step ─► Activity.step ─► Ray's metrics, timeline.json      each step
pools, disk      ─► Activity.pulse ─► all gauges again, live.json       every RESEND_S
run directory    ─► Publisher.publish ─► Redis                          every RESEND_S, where registry.redis_url is set
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cluster.benchmarks.models import shapes_config
from cluster.benchmarks.report import Scope, Table, spread
from cluster.groups.roller import RolledGroup
from cluster.report.publishing import Publisher, connect
from cluster.reports.activity import Activity
from cluster.reports.live import write_live
from cluster.reports.metrics import METRICS
from cluster.reports.metrics_file import MetricsWriter
from cluster.reports.sample_file import write_sample_file
from cluster.reports.samples import SampleEntry
from cluster.reports.timeline import Timeline
from cluster.session import PrivateRedis, plan_placement, ray_session
from cluster.state import RunDirectory
from cluster.telemetry.export import RESEND_S, Exporter
from rollout.records import GroupRequest, GroupRollout, Prompt, ScoredGroup, Trajectory

NUM_GROUPS, GROUP_SIZE, NUM_COT, NUM_IMAGE = 16, 8, 48, 576
"""T2I-R1's step."""
NUM_PICTURES, SIDE = 16, 384
"""A page of samples of Janus-Pro."""


def measure(scope: Scope) -> list[Table]:
    """Both sides in turns, in this process, connected to a Ray of its own."""
    num_rounds = scope.pick(quick=10, full=50)
    with tempfile.TemporaryDirectory(prefix="bicot-bench-", ignore_cleanup_errors=True) as directory:
        config = shapes_config("tiny-janus", ["run.name=watched"])
        with ray_session(config.cluster, plan_placement(config), Path(directory) / "logs"):
            sides: dict[bool, Callable[[int], tuple[float, float]]] = {}
            for is_on in (True, False):
                folder = Path(directory) / str(is_on)
                folder.mkdir()
                timeline = Timeline(folder / "timeline.json" if is_on else None)
                activity = Activity(config, "watched", Exporter("watched", is_on=is_on), timeline)
                sides[is_on] = _side(activity, timeline, folder, is_on=is_on)
            publishing_ms = _publishing(Path(directory), num_rounds)
            times = [{is_on: side(number) for is_on, side in sides.items()} for number in range(num_rounds)]
    rows = []
    for place, what in enumerate(("a step", f"a pulse, every {RESEND_S:g} s")):
        on, off = ([1000 * round_[side][place] for round_ in times] for side in (True, False))
        extra = [a - b for a, b in zip(on, off, strict=True)]
        share = [value / (1000 * (1.0 if place == 0 else RESEND_S)) * 100 for value in extra]
        rows.append((what, spread(on), spread(off), spread(share)))
    shares = [value / (1000 * RESEND_S) * 100 for value in publishing_ms]
    rows.append((f"the page to Redis, every {RESEND_S:g} s", spread(publishing_ms), "–", spread(shares)))
    return [
        Table(
            "Watching",
            f"What the launcher does for those who watch, in milliseconds: {NUM_GROUPS} groups of {GROUP_SIZE} a step, "
            "into Ray's metrics, timeline.json and live.json, against the same calls with all of it off. The share is "
            "of one second for the step, so of a step that takes 10 s it is a tenth of that. To Redis goes a step with "
            f"a new page of {NUM_PICTURES} pictures of {SIDE} pixels each time, from a thread.",
            ("of", "on, ms", "off, ms", "share of a core, %"),
            tuple(rows),
        )
    ]


def _side(activity: Activity, timeline: Timeline, folder: Path, *, is_on: bool) -> Callable[[int], tuple[float, float]]:
    def once(number: int) -> tuple[float, float]:
        rolled = [_group(number * NUM_GROUPS + place) for place in range(NUM_GROUPS)]
        metrics = {**dict.fromkeys(METRICS, 0.5), "step": float(number + 1)}
        began = time.perf_counter()
        activity.phase("waiting")
        activity.phase("learning")
        activity.step(metrics, rolled)
        timeline.flush()
        stepped = time.perf_counter()
        if is_on:
            activity.pulse([], folder)
            write_live(folder / "live.json", activity.tree())
        return stepped - began, time.perf_counter() - stepped

    return once


def _publishing(folder: Path, num_rounds: int) -> list[float]:
    """Milliseconds of each time that a run's page is brought to a Redis of its own, a step and its pictures later."""
    config = shapes_config("tiny-janus", [f"run.dir={folder}"])
    directory = RunDirectory.create(config)
    pixels = np.random.default_rng(0).integers(0, 256, (NUM_PICTURES, SIDE // 8, SIDE // 8, 3), np.uint8)
    pictures = pixels.repeat(8, axis=1).repeat(8, axis=2)
    entries = [SampleEntry(picture, "a red star above a blue circle", "a plan", 0.5) for picture in pictures]
    activity = Activity(config, "watched", Exporter("watched", is_on=False), Timeline(None))
    found = []
    with (
        PrivateRedis(folder / "redis") as server,
        connect(server.url) as client,
        MetricsWriter(directory.metrics_path) as metrics,
    ):
        publisher = Publisher(directory, client)
        publisher.publish(activity.tree())
        for step in range(1, num_rounds + 1):
            metrics.write({**dict.fromkeys(METRICS, 0.5), "step": float(step)})
            write_sample_file(directory.samples_path(step).with_suffix(".json"), f"step {step}", entries)
            began = time.perf_counter()
            publisher.publish(activity.tree())
            found.append(1000 * (time.perf_counter() - began))
    return found


def _group(sequence: int) -> RolledGroup:
    prompt = Prompt(f"bench:{sequence}", "a red star above a blue circle")
    request = GroupRequest(sequence, 0, prompt, GROUP_SIZE, 1, sequence)
    empty = np.zeros(0, np.float32)
    cot_ids, image_ids = np.zeros(NUM_COT, np.int32), np.zeros(NUM_IMAGE, np.int32)
    trajectory = Trajectory(
        semantic_prompt_ids=cot_ids,
        cot_ids=cot_ids,
        cot_logprobs=empty,
        image_prompt_ids=cot_ids,
        image_ids=image_ids,
        image_logprobs=empty,
        cot_text="",
        guidance_scale=5.0,
        seed=0,
        cot_versions=cot_ids,
        image_versions=image_ids,
    )
    now = time.time()
    rollout = GroupRollout(request, (trajectory,) * GROUP_SIZE, f"rollout-{sequence % 4}", now - 1.0, now)
    rewards = np.linspace(0, 1, GROUP_SIZE, dtype=np.float32)
    return RolledGroup(ScoredGroup(rollout, rewards, {"shapes": rewards}, ("",) * GROUP_SIZE, 0.1), None)
