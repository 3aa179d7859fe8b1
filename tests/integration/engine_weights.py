"""The weights that a vLLM engine computes with, read back from its own process.

A test that asks for them starts the engine with VLLM_ALLOW_INSECURE_SERIALIZATION=1, without which vLLM takes no
function as a call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""vLLM's fused layers, and which of the checkpoint's lie in them, one below the other."""
Words = np.ndarray[Any, np.dtype[np.uint32]]


@torch.no_grad()
def weights_of(worker: Any) -> dict[str, Words]:
    """Bits of every float32 weight of the engine's model by its module's name. Called within vLLM's worker.

    On a CPU vLLM packs a linear layer's weights for its kernels and drops the rest: what the kernel makes of the unit
    vectors are those weights, exactly, since each is multiplied by 1 and added to zeros.
    """
    weights = {}
    for name, module in worker.model_runner.model.named_modules():
        if not isinstance(weight := getattr(module, "weight", None), torch.Tensor):
            continue
        packed = getattr(module, "cpu_linear", None)
        if packed is not None:
            num_inputs = getattr(module, "input_size_per_partition", None) or module.embedding_dim
            weight = packed(torch.eye(num_inputs), weight, None).T
        weights[name] = weight.float().contiguous().view(torch.int32).numpy().view(np.uint32)
    return weights


def assert_has_bits(held: dict[str, Words], model: torch.nn.Module, trainable: tuple[str, ...]) -> None:
    """Of what `weights_of` has found, all of these parameters of `model`, float32, are the model's own."""
    state = model.state_dict()
    seen = set()
    for module, words in held.items():
        base, _, last = module.rpartition(".")
        parts = [f"{base}.{part}.weight" for part in _PARTS[last]] if last in _PARTS else [f"{module}.weight"]
        if parts[0].startswith(trainable):
            expected = torch.cat([state[part] for part in parts]).contiguous().view(torch.int32).numpy()
            np.testing.assert_array_equal(words[: len(expected)], expected.view(np.uint32), err_msg=module)
            seen.update(parts)
    assert seen == {name for name in state if name.startswith(trainable)}
