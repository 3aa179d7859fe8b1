"""In a process of its own: bytes of all tensors that a DeepSpeed rank holds after a backward pass, as JSON lines."""

from __future__ import annotations

import gc
import json
import warnings

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from configs.local.ports import free_port
from learner.zero import DeepSpeedEngine, OptimizerSettings, close_distributed, init_distributed

SIZES = (
    {"hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 2000},
    {"hidden_size": 384, "num_hidden_layers": 3, "vocab_size": 6000},
)


def live_bytes() -> int:
    """Of every storage that a Python object can reach."""
    gc.collect()
    storages: dict[int, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some libraries' lazy objects complain when they are looked at
        for found in gc.get_objects():
            if type(found) in (torch.Tensor, torch.nn.Parameter):
                storage = found.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def measure(sizes: dict[str, int], dtype: torch.dtype, zero_stage: int) -> int:
    before = live_bytes()
    config = LlamaConfig(intermediate_size=512, num_attention_heads=4, **sizes)
    model = LlamaForCausalLM(config).to(dtype)
    settings = OptimizerSettings(lr=1e-3, total_steps=10)
    engine = DeepSpeedEngine(model, settings, zero_stage=zero_stage, dtype=dtype, device=torch.device("cpu"))
    held = 0
    for _ in range(2):  # the optimizer's moments are made in the first step
        engine.backward(engine(torch.zeros(1, 4, dtype=torch.int64)).logits.float().mean(), is_last=True)
        held = live_bytes() - before
        engine.step()
    engine.destroy()
    return held


def main() -> None:
    init_distributed(0, 1, "127.0.0.1", free_port(), "cpu", 60)
    for dtype, stages in ((torch.float32, (0, 1, 2, 3)), (torch.bfloat16, (1, 2, 3))):
        for zero_stage in stages:
            for sizes in SIZES:
                text = {"intermediate_size": 512, "num_attention_heads": 4, **sizes}
                told = {
                    "dtype": str(dtype).removeprefix("torch."),
                    "zero_stage": zero_stage,
                    "config": {"text_config": text, "tie_word_embeddings": False},
                    "bytes": measure(sizes, dtype, zero_stage),
                }
                print(json.dumps(told), flush=True)
    close_distributed()


if __name__ == "__main__":
    main()
