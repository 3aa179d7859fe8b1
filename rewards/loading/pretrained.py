"""Loading of pretrained reward models: never with weights missing, and with errors that say what to do."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import constants, hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from configs.errors import ConfigError, ModelError
from rewards.loading.hub import cache_alone_where_offline, is_hub_reachable, is_local

AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)
DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Precisions a config may name. tf32: float32 whose matrix products round to 10 bits of mantissa, on GPUs that can; it
holds for all models of the process."""
AUTO = "auto"
"""float32 on a CPU; on a GPU the one that the reward's module names as GPU_DTYPE, with its reason."""


@contextmanager
def model_errors(reward: str, model: str) -> Iterator[None]:
    """Turn the errors of loading a model into one ModelError that says what to do: about a folder or hub id that is
    missing or broken, a hub that does not answer, a device without room or out of order."""
    try:
        with cache_alone_where_offline(model):
            yield
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"reward '{reward}' cannot load its model '{model}' ({type(error).__name__}: {error}); "
            f"{_remedy(model, error)}"
        ) from error


def _remedy(model: str, error: Exception) -> str:
    text = str(error).lower()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "out of memory" in text:
        return (
            "it does not fit into the memory that is free: set rewards[].options.dtype to bfloat16, or put fewer "
            "rewards and workers on one device (gpus_per_replica)"
        )
    if "cuda" in text and not isinstance(error, OSError | ValueError | KeyError):
        return "the GPU failed, not the model: look at nvidia-smi and the driver's log on that machine"
    if not is_local(model) and (constants.HF_HUB_OFFLINE or not is_hub_reachable()):
        return (
            f"this machine does not reach {constants.ENDPOINT}, and its cache lacks the model: set "
            "rewards[].options.model to a local path, or fill the cache (hf download) and set HF_HUB_OFFLINE=1"
        )
    return "set rewards[].options.model to a hub id that this machine can reach, or to a local path"


def resolve_dtype(dtype: str, device: str, on_gpu: str) -> str:
    """One of DTYPES: `auto` is float32 on a CPU and `on_gpu` on a GPU. Switches TF32 on where it is chosen.

    Raises ConfigError for anything else.
    """
    if dtype != AUTO and dtype not in DTYPES:
        raise ConfigError(f"rewards[].options.dtype: '{dtype}' is not one of {', '.join((AUTO, *DTYPES))}")
    is_gpu = device.startswith("cuda")
    if dtype == AUTO:
        dtype = on_gpu if is_gpu else "float32"
    if dtype == "tf32" and is_gpu:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return dtype


def parse_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of one of DTYPES. Raises ConfigError for anything else."""
    if dtype not in DTYPES:
        raise ConfigError(f"rewards[].options.dtype: '{dtype}' is not one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def load_model(model_class: type[AnyModel], model: str, dtype: str, device: str, **options: Any) -> AnyModel:
    """`from_pretrained`, frozen, on its device. Raises ValueError when the checkpoint lacks a weight."""
    loaded, report = model_class.from_pretrained(model, dtype=parse_dtype(dtype), output_loading_info=True, **options)
    refuse_missing(report["missing_keys"], model)
    return freeze(loaded, device)


def fill_model(
    model_class: type[AnyModel],
    config: PreTrainedConfig,
    weights: Mapping[str, Tensor],
    model: str,
    dtype: str,
    device: str,
    **options: Any,
) -> AnyModel:
    """A model of this config with these weights, frozen, on its device; no random one is made first.

    model: where the weights are from. Raises ValueError when one is missing, or is of another model.
    """
    filled, report = model_class.from_pretrained(
        None, config=config, state_dict=dict(weights), dtype=parse_dtype(dtype), output_loading_info=True, **options
    )
    refuse_missing(report["missing_keys"], model)
    if unexpected := sorted(report["unexpected_keys"]):
        raise ValueError(
            f"{model} holds weights that {model_class.__name__} does not have, the first is {unexpected[0]}"
        )
    return freeze(filled, device)


def refuse_missing(missing: Any, model: str) -> None:
    """Raise ValueError when weights are missing: transformers would leave them random, and only warn."""
    if missing:
        names = sorted(missing)
        raise ValueError(f"{model} lacks {len(names)} weights, the first is {names[0]}")


def freeze(model: AnyModel, device: str) -> AnyModel:
    """In evaluation mode, without gradients, on its device. Raises ConfigError when there is no such device."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("rewards[].gpus_per_replica is above 0, but this process sees no GPU; set it to 0")
    model.requires_grad_(False)
    model.eval()
    return model.to(torch.device(device))


def fetch_file(name: str) -> str:
    """Path of a file: a local one, or one on the hub as `owner/repo/file`, downloaded if need be. Raises OSError."""
    if Path(name).is_file():
        return name
    owner_and_repo, _, filename = name.rpartition("/")
    if owner_and_repo.count("/") != 1 or Path(name).is_absolute():
        raise FileNotFoundError(f"{name} is no file")
    path: str = hf_hub_download(owner_and_repo, filename)
    return path


def read_state_dict(path: str) -> dict[str, Tensor]:
    """The state dict of a .pt, .pth or .bin file, plain or under `state_dict`, `model_state_dict`, `model` or
    `module`, as saved or from a parallel run; or of a .safetensors file.

    Only tensors are unpickled. Raises OSError or ValueError when the file cannot be read or is of another kind.
    """
    if path.endswith(".safetensors"):
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}") from error
    content = torch.load(path, map_location="cpu", weights_only=True)
    state_dict = content
    for name in ("state_dict", "model_state_dict", "model", "module"):
        state_dict = state_dict.get(name, state_dict) if isinstance(state_dict, dict) else None
    if not isinstance(state_dict, dict) or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise ValueError(f"{path} holds no state dict")
    return {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model)
    return tokenizer


def plain_token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text, without special ones that the tokenizer would put around it."""
    token_ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return token_ids


def single_token_id(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    """Id of a word that is one token. Raises ValueError when it is none, or several."""
    token_ids = plain_token_ids(tokenizer, word)
    if len(token_ids) != 1 or token_ids[0] == tokenizer.unk_token_id:
        raise ValueError(f"the tokenizer has no single token for '{word}'")
    return int(token_ids[0])
