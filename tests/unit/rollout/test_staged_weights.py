"""Weights that are staged: the model that samples is not touched before the swap, and faults leave it as it was."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from configs.errors import WeightSyncError
from rollout.records import WeightBucket
from rollout.vllm.weights.courier import Courier
from rollout.vllm.weights.staged import StagedWeights
from rollout.vllm.weights.stager import Stager
from rollout.weights import WeightManifest
from rollout.weights.buckets import pack_bucket
from tests.short_folder import short_folder


class Model(nn.Module):
    """Loads as vLLM's models do: through each parameter's own loader."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(3, 2)
        self.frozen = nn.Embedding(2, 2)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(1.0)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        parameters = dict(self.named_parameters())
        for name, tensor in weights:
            parameter = parameters[name]
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)


@pytest.fixture
def model() -> Model:
    model = Model()
    record_metadata_for_reloading(model)
    return model


WEIGHT, BIAS = torch.arange(6.0).reshape(2, 3), torch.tensor([7.0, 8.0])
MANIFEST = WeightManifest({"lm_head.weight": (2, 3), "lm_head.bias": (2,)})


def test_the_live_model_changes_at_the_swap_and_no_sooner(model: Model) -> None:
    weight, frozen = model.lm_head.weight, model.frozen.weight
    address = frozen.data_ptr()
    staged = StagedWeights(model, {})
    staged.load([("lm_head.weight", WEIGHT)])
    staged.load([("lm_head.bias", BIAS)])
    staged.finish()
    assert all(bool((parameter == 1).all()) for parameter in model.parameters())
    staged.swap()
    assert model.lm_head.weight is weight, "whoever holds the parameter sees the new values"
    torch.testing.assert_close(model.lm_head.weight.data, WEIGHT)
    torch.testing.assert_close(model.lm_head.bias.data, BIAS)
    assert model.frozen.weight.data_ptr() == address


def test_nothing_that_was_loaded_is_kept_by_reference(model: Model) -> None:
    """A slot is used again before the layer is whole."""
    slot = WEIGHT.clone()
    staged = StagedWeights(model, {})
    staged.load([("lm_head.weight", slot)])
    slot.fill_(99.0)
    staged.load([("lm_head.bias", BIAS)])
    staged.finish()
    staged.swap()
    torch.testing.assert_close(model.lm_head.weight.data, WEIGHT)


class Worker:
    """Stands in for `AsyncLLM` with one vLLM worker, which runs in this process."""

    def __init__(self, model: Model) -> None:
        self.stager = Stager(model)

    async def collective_rpc(self, method: str, args: tuple[str]) -> list[bool]:
        assert method == "connect_stager"
        self.stager.connect(*args)
        return [True]


def buckets() -> list[WeightBucket]:
    return [pack_bucket([("lm_head.weight", WEIGHT)]), pack_bucket([("lm_head.bias", BIAS)])]


async def connected(worker: Any, folder: Path) -> Courier:
    courier = await Courier.connect(worker, folder)
    assert courier is not None
    return courier


async def test_an_update_passes_through_slots_bit_for_bit(model: Model) -> None:
    worker = Worker(model)
    with short_folder() as folder:
        courier = await connected(worker, folder)
        await courier.stage(buckets(), MANIFEST)
        worker.stager.swap()
        await courier.drop()
        torch.testing.assert_close(model.lm_head.weight.data, WEIGHT, rtol=0, atol=0)
        with pytest.raises(RuntimeError, match="no weight update has been staged"):
            worker.stager.swap()
        courier.close()


async def test_what_a_worker_cannot_load_is_told_and_dropped(model: Model) -> None:
    worker = Worker(model)
    manifest = WeightManifest({"lm_head.weight": (2, 4), "lm_head.bias": (2,)})
    wrong = [pack_bucket([("lm_head.weight", torch.zeros(2, 4))]), pack_bucket([("lm_head.bias", BIAS)])]
    with short_folder() as folder:
        courier = await connected(worker, folder)
        with pytest.raises(WeightSyncError, match="could not stage new weights: "):
            await courier.stage(wrong, manifest)
        with pytest.raises(WeightSyncError, match=r"'lm_head\.bias' is missing"):
            await courier.stage(buckets()[:1], MANIFEST)
        await courier.stage(buckets(), MANIFEST)  # and the next one is staged as if nothing had been
        worker.stager.swap()
        torch.testing.assert_close(model.lm_head.bias.data, BIAS)
        courier.close()


class DyingWorker:
    """Ends at the first message."""

    async def collective_rpc(self, method: str, args: tuple[str]) -> list[bool]:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(*args)

        def die() -> None:
            connection.recv(1)
            connection.close()

        threading.Thread(target=die).start()
        return [True]


async def test_a_worker_that_ends_meanwhile_is_an_error_and_not_a_wait() -> None:
    with short_folder() as folder:
        courier = await connected(DyingWorker(), folder)
        async with asyncio.timeout(30):
            with pytest.raises(WeightSyncError, match="a process of the vLLM engine"):
                await courier.stage(buckets(), MANIFEST)
        courier.close()
