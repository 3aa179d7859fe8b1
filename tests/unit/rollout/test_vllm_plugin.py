"""What a process must call before vLLM can run Janus in it: nothing happens by an import alone."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import JanusConfig

from rollout.janus_checkpoint import SpecialIds
from rollout.vllm.plugin import JanusOverride
from rollout.vllm.settings import environment_set

IDS = SpecialIds(bos=1, eos=2, pad=0, begin_of_image=4)

SCRIPT = """
import multiprocessing, threading
import rollout.vllm.plugin as plugin
from rollout.janus_checkpoint import SpecialIds
from vllm import ModelRegistry
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory as factory

def state():
    threads = [thread.name for thread in threading.enumerate()]
    return (
        "JanusForConditionalGeneration" in ModelRegistry.get_supported_archs(),
        "bicot" in factory._registry,
        "end-with-parent" in threads,
    )

class Look:  # unpickled before the override, which is the next argument
    def __reduce__(self):
        return state, ()

def child(before, override):
    plugin.register()
    print(before, state(), flush=True)

if __name__ == "__main__":
    arguments = (Look(), plugin.JanusOverride(SpecialIds(1, 2, 0, 4)))
    context = multiprocessing.get_context("spawn")
    for name in ("EngineCore_DP0", "Worker"):
        process = context.Process(target=child, args=arguments, name=name)
        process.start()
        process.join()
"""


def test_a_process_registers_when_vllms_config_arrives_in_it_and_not_before(tmp_path: Path) -> None:
    """The engine core also begins to watch its parent; a worker, whose parent is the engine core, does not."""
    script = tmp_path / "processes.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "VLLM_PLUGINS": ""}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True, timeout=240
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("(")]
    assert lines == ["(False, False, False) (True, True, True)", "(False, False, False) (True, True, False)"]


def test_the_override_widens_a_janus_config_once_and_lets_others_be() -> None:
    config = JanusConfig(text_config={"model_type": "llama", "vocab_size": 100}, vq_config={"num_embeddings": 16})
    heads, head_dim = config.text_config.num_attention_heads, config.text_config.head_dim
    override = pickle.loads(pickle.dumps(JanusOverride(IDS)))
    assert override == JanusOverride(IDS)
    assert pickle.loads(pickle.dumps(JanusOverride(IDS, num_streams=1))).num_streams == 1
    for _ in range(2):
        widened = override(config)
        text = widened.text_config
        assert (text.text_vocab_size, text.vocab_size) == (100, 116)
        assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (2 * heads, 2 * heads, head_dim)
    assert SpecialIds(**config.guidance_special_ids) == IDS
    plain = config.vq_config
    assert override(plain) is plain
    assert not hasattr(plain, "guidance_special_ids")


def test_the_environment_is_as_before_after_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BICOT_TEST_OLD", "old")
    monkeypatch.delenv("BICOT_TEST_NEW", raising=False)
    before = dict(os.environ)
    seen = []

    def start_without_luck() -> None:
        with environment_set({"BICOT_TEST_OLD": "1", "BICOT_TEST_NEW": "2"}):
            seen.append((os.environ["BICOT_TEST_OLD"], os.environ["BICOT_TEST_NEW"]))
            raise RuntimeError("no luck")

    with pytest.raises(RuntimeError, match="no luck"):
        start_without_luck()
    assert seen == [("1", "2")]
    assert dict(os.environ) == before
