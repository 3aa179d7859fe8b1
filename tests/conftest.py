"""What holds for every test: one thread a process, no network, no display, GPU tests only on GPUs."""

from __future__ import annotations

import os
import signal

import pytest

# Before any test module imports torch, matplotlib, transformers or Ray, which read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# On loopback only, and without a token: Ray would leave one behind in the user's home.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# A shell in the background starts what it starts with Ctrl-C ignored, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # By the marker: the names of all folders above are keywords, too, and a clone may lie in one named gpu.
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))
