"""vLLM's newer model runner, on a CPU: it samples what the first one does, and passes the engine's tests.

It is written in Triton, which has no backend for CPUs. Its interpreter runs the same kernels, slowly; `make triton`
puts it beside the environment, since what is in the environment has to be as users have it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integration.launcher import ROOT

TRITON = ROOT / "build" / "triton"
SECONDS = 1500
pytestmark = [
    pytest.mark.slow,
    pytest.mark.proof,
    pytest.mark.timeout(2 * SECONDS),
    pytest.mark.skipif(not (TRITON / "triton").is_dir(), reason="`make triton` has not been called"),
]


def run(*command: str, interpreted: bool) -> str:
    """Raises CalledProcessError with what the command printed."""
    folders = [ROOT / "tests" / "interpreted_triton", TRITON, ROOT] if interpreted else [ROOT]
    runner = {"BICOT_MODEL_RUNNER": "second"} if interpreted else {}
    environment = {**os.environ, **runner, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run(
        (sys.executable, "-m", *command), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_both_runners_sample_the_same_tokens_with_old_and_new_weights(tmp_path: Path) -> None:
    run("tests.integration.runner_draws", "first", str(tmp_path / "first.npz"), interpreted=False)
    run("tests.integration.runner_draws", "second", str(tmp_path / "second.npz"), interpreted=True)
    first, second = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert len(first) == 3 * 12
    for name, values in first.items():
        np.testing.assert_allclose(second[name], values, atol=1e-4 if "log" in name else 0, err_msg=name)


def test_the_engines_tests_pass_with_the_newer_runner() -> None:
    # That one starts a process with a PYTHONPATH of its own, which has no Triton on it.
    others = "not without_the_entry_point"
    printed = run("pytest", "-q", "tests/integration/test_vllm_engine.py", "-k", others, interpreted=True)
    assert " passed" in printed
    assert "skipped" not in printed
