"""Export of the policy's weights from DeepSpeed: as buckets for the engines, and as a Hugging Face folder.

    DeepSpeedEngine.gathered ─┬─► export_buckets ─► WeightBucket, WeightBucket, ...
                              └─► take_weights ─► host memory ─► PretrainedWriter ─► folder

What is exported is what engines need to follow the policy (`JanusPolicy.named_exported_parameters`): all parts of the
model that training changes, or the adapters of LoRA alone, which the writer merges into the model that it holds.
At ZeRO-3 this needs an all-gather: every rank must make the call and exhaust the iterator. Only rank 0 yields.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch.distributed as dist
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration

from configs.errors import LearnerError
from learner.janus_policy import JanusPolicy
from learner.lora import PeftFormat
from learner.zero import DeepSpeedEngine, HostCopies, all_succeed
from rollout.prompts.conversation import ConversationFormat
from rollout.records import WeightBucket
from rollout.weights.buckets import view_bucket

_GATHER_BYTES = 64 * 2**20
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
"""Tokenizer, templates and configs; not the weights."""
ADAPTER_FOLDER = "adapter"


def export_buckets(engine: DeepSpeedEngine, policy: JanusPolicy, bucket_mb: int) -> Iterator[WeightBucket]:
    """What is exported, under its names; nothing on ranks above 0.

    bucket_mb: size of a bucket in units of 2**20 bytes; a larger parameter has a bucket of its own. One bucket is
    gathered at a time, and each shares the memory of the weights on a CPU: it is valid until the next is asked for.
    """
    for tensors in engine.gathered(policy.named_exported_parameters(), bucket_mb * 2**20):
        if dist.get_rank() == 0:
            yield view_bucket(tensors)


def weight_layout(engine: DeepSpeedEngine, policy: JanusPolicy) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of the tensors of `export_tensors`, in the same order. Not collective."""
    return [
        (name, str(parameter.dtype).removeprefix("torch."), engine.whole_shape(parameter))
        for name, parameter in policy.named_exported_parameters()
    ]


def export_tensors(engine: DeepSpeedEngine, policy: JanusPolicy) -> Iterator[tuple[str, Tensor]]:
    """The tensors of `export_buckets` one by one, on the device; at ZeRO-3 each is valid until the next is asked for.
    Every rank must exhaust the iterator."""
    for tensors in engine.gathered(policy.named_exported_parameters(), _GATHER_BYTES):
        yield from tensors


def take_weights(engine: DeepSpeedEngine, policy: JanusPolicy, copies: HostCopies) -> None:
    """Copy the tensors of `export_buckets` into `copies`: on rank 0, and nothing on the others. Collective."""
    buckets = engine.gathered(policy.named_exported_parameters(), _GATHER_BYTES)
    tensors = (entry for bucket in buckets for entry in bucket)
    if dist.get_rank() == 0:
        copies.take(tensors)
    else:
        for _ in tensors:  # gathering ZeRO-3's partitions is collective
            pass


def save_pretrained(
    engine: DeepSpeedEngine, policy: JanusPolicy, writer: PretrainedWriter | None, directory: Path
) -> None:
    """Write a Hugging Face folder with the present weights; every rank returns when it is whole. writer: on rank 0.

    Raises CheckpointError when it cannot be written.
    """
    copies = HostCopies()
    take_weights(engine, policy, copies)

    def write() -> None:
        if writer is not None:
            writer.write(copies.tensors, directory)

    all_succeed(write, f"write the model to {directory}")


class PretrainedWriter:
    """Writes folders that `from_pretrained` loads: the model that training began with, with trained weights in it.

    It holds of that model what training leaves as it was, in host memory, so that no folder needs it loaded again: with
    adapters, all of it.
    """

    def __init__(
        self,
        janus: JanusForConditionalGeneration,
        policy: JanusPolicy,
        folder: Path,
        format: ConversationFormat,
        peft: PeftFormat | None = None,
    ) -> None:
        """janus: the model that `policy` was made of. It is this object's from here on, and loses the weights that
        training changes; the policy keeps its own. folder: where it came from. format: written beside the weights,
        since a policy plans best when it is asked as it was trained. peft: of a policy with adapters."""
        self._janus = janus
        self._folder = folder
        self._format = format
        self._peft = peft
        self._expected = {name for name, _ in policy.named_exported_parameters()}
        own = dict(janus.named_parameters())
        self._adapted = {module: own[f"{module}.weight"] for module in policy.adapters()}
        self._trained: dict[str, nn.Parameter] = {}
        for name, _ in [] if self._adapted else policy.named_changing_parameters():
            self._trained[name] = own[name]
            own[name].data = own[name].new_empty(0)

    def write(self, trained: Mapping[str, Tensor], directory: Path) -> None:
        """Write a folder with these weights, by the names of `take_weights`, the starting model's tokenizer, chat
        template and generation config, and the conversation format. Adapters are merged into their weights, which
        rounds them to the weights' precision, and stand by themselves in the folder `adapter`, as PEFT has them.

        It appears whole or not at all: it is written beside `directory`, then renamed, replacing an older one.
        Raises LearnerError for other weights than those that training changes.
        """
        if different := trained.keys() ^ self._expected:
            raise LearnerError(
                f"model {self._folder}: {min(different)} is either trained and not a weight of it, or was not given"
            )
        # By parameter and not by name: weights that are tied have several.
        values = {id(parameter): trained[name] for name, parameter in self._trained.items()}
        if self._peft is not None:
            values |= {
                id(weight): self._peft.merged(weight.detach(), trained, module)
                for module, weight in self._adapted.items()
            }
        state = {
            name: values.get(id(tensor), tensor.detach())
            for name, tensor in self._janus.state_dict(keep_vars=True).items()
        }
        new = directory.with_name(f".{directory.name}.new")
        old = directory.with_name(f".{directory.name}.old")
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir(parents=True)
        self._janus.save_pretrained(new, state_dict=state)
        _copy_small_files(self._folder, new)
        self._format.save(new)
        if self._peft is not None:
            self._peft.save(new / ADAPTER_FOLDER, trained)
        if directory.exists():
            directory.rename(old)
        new.rename(directory)
        shutil.rmtree(old, ignore_errors=True)


def _copy_small_files(source: Path, target: Path) -> None:
    """Copy what stands beside the weights, byte by byte, unless the model has written its own.

    An index names the files of the starting model's weights, which are not copied.
    """
    for pattern in _SMALL_FILES:
        for file in source.glob(pattern):
            if not (target / file.name).exists() and not file.name.endswith(".index.json"):
                shutil.copyfile(file, target / file.name)
