"""What a reward says when its model cannot be loaded, and how soon."""

from __future__ import annotations

import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import constants

from configs.errors import ModelError
from rewards.loading import hub, model_errors
from rewards.registry import create_reward, import_reward


class _Refusing(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # which the tests are else run with
    hub.is_hub_reachable.cache_clear()
    yield
    hub.is_hub_reachable.cache_clear()


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("unreachable")
def test_without_the_hub_a_reward_fails_at_once_and_says_how_to_do_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    import_reward("clip_score")  # which takes longer than what is measured
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"does not reach http://127.0.0.1:9, .*local path.*HF_HUB_OFFLINE=1"):
        create_reward("clip_score", {"model": "nobody/no-such-model"}, "cpu")
    assert time.monotonic() - started < 10, "the hub's own retries take 23 s a file"
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.usefixtures("unreachable")
def test_a_local_model_does_not_ask_for_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a hub id that this machine can reach, or to a local path"):
        create_reward("clip_score", {"model": str(tmp_path)}, "cpu")
    assert hub.is_hub_reachable.cache_info().currsize == 0


def test_a_hub_that_refuses_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        assert hub.is_hub_reachable()
        server.shutdown()


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "does not fit into [^:]*: .*dtype to bfloat16",
        ),
        (RuntimeError("CUDA error: out of memory"), "does not fit into the memory"),
        (MemoryError(), "does not fit into the memory"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "the GPU failed, not the model"),
        (ValueError("it lacks 3 weights"), "set rewards\\[\\].options.model to a hub id"),
    ],
)
def test_the_remedy_is_for_what_went_wrong(tmp_path: Path, error: Exception, remedy: str) -> None:
    with pytest.raises(ModelError, match=remedy) as raised, model_errors("hps", str(tmp_path)):
        raise error
    assert ("options.model" in str(raised.value)) == isinstance(error, ValueError)
