"""Lets vLLM on a CPU run kernels in Triton, by Triton's interpreter: for tests, a thousand times as slow as a GPU.

Python imports this file in every process that has its folder on PYTHONPATH, before anything else. vLLM uses Triton
where Triton has a backend for the device, and asks a backend only whether it is there.
"""

import os
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"

from triton.backends import backends

backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
