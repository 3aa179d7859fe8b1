"""Decoding of image tokens to pixels with the checkpoint's VQ model.

    VQ codes [B, N_image] ─► look-up and decoder, `batch_size` pictures a call ─► uint8 [B, height, width, 3]

Only the VQ model's tensors are read from the checkpoint's files (a 7B policy is not loaded to draw
with its 0.07B decoder), and of them only what decoding needs. Training never changes them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers.models.janus.modeling_janus import JanusVQVAE

from configs.errors import ModelError
from rollout.janus_checkpoint import JanusCheckpoint
from rollout.pictures.fitting_batches import FittingBatches
from rollout.records import Int32Array, UInt8Array

_PREFIX = "model.vqmodel."
_UNUSED = ("encoder.", "quant_conv.")


class ImageDecoder:
    """Decodes pictures in float32, as transformers' `decode_image_tokens` and `postprocess` do. Not thread-safe."""

    def __init__(self, model_path: str, device: str = "cpu", batch_size: int = 16, revision: str | None = None) -> None:
        """batch_size: pictures a forward pass at most, fewer where the device's memory has no room for so many.

        Raises ModelError when the checkpoint has no usable VQ model.
        """
        checkpoint = JanusCheckpoint.from_pretrained(model_path, revision, weights=True)
        self.num_image_tokens = checkpoint.num_image_tokens
        self.num_codes = checkpoint.num_codes
        self._device = torch.device(device)
        self._batches = FittingBatches(batch_size, self._device)
        mean, std = checkpoint.pixel_mean_and_std
        self._mean = torch.tensor(mean, device=self._device)
        self._std = torch.tensor(std, device=self._device)
        self._vq_model = _load_vq_model(checkpoint).to(self._device)

    @torch.inference_mode()
    def decode(self, image_ids: Int32Array) -> UInt8Array:
        """Pictures of VQ codes.

        image_ids: int [B, N_image], codes in raster order. Returns uint8 [B, height, width, 3], RGB.
        Raises ValueError for another shape, or codes outside the codebook.
        """
        if image_ids.ndim != 2 or image_ids.shape[1] != self.num_image_tokens:
            raise ValueError(f"image tokens have shape {image_ids.shape}, expected [B, {self.num_image_tokens}]")
        if image_ids.size and not (image_ids.min() >= 0 and image_ids.max() < self.num_codes):
            raise ValueError(
                f"image tokens range from {image_ids.min()} to {image_ids.max()}; "
                f"the codebook holds 0 to {self.num_codes - 1}"
            )
        return np.concatenate(
            list(self._batches.run(len(image_ids), lambda start, end: self._decode_batch(image_ids[start:end])))
        )

    def _decode_batch(self, image_ids: Int32Array) -> UInt8Array:
        codes = torch.as_tensor(image_ids, dtype=torch.long, device=self._device)
        pixels = self._vq_model.decode(codes).permute(0, 2, 3, 1)
        # Cut, not rounded, to whole levels: so does transformers, and so did Janus-Pro's authors.
        levels = ((pixels * self._std + self._mean) * 255.0).clamp(0, 255).to(torch.uint8)
        return levels.cpu().numpy()


def _load_vq_model(checkpoint: JanusCheckpoint) -> JanusVQVAE:
    """The VQ model with the decoding half of its weights, in float32; the encoder is dropped."""
    with torch.device("meta"):
        vq_model = JanusVQVAE(checkpoint.config.vq_config)
    del vq_model.encoder, vq_model.quant_conv
    weights = {}
    for file, names in _weight_files(checkpoint.folder).items():
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in names:
                    weights[name.removeprefix(_PREFIX)] = tensors.get_tensor(name).float()
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: the VQ model cannot be read: {error}") from error
    try:
        vq_model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ModelError(f"model {checkpoint.folder}: its VQ model does not fit its config: {error}") from error
    # The order of memory that convolutions on CPUs are twice as fast in.
    return vq_model.eval().to(memory_format=torch.channels_last)


def _weight_files(folder: Path) -> dict[Path, list[str]]:
    """Safetensors file -> names in it of the tensors that decoding needs."""
    index_path, single_path = folder / "model.safetensors.index.json", folder / "model.safetensors"
    try:
        if index_path.exists():
            file_of = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        else:
            with safe_open(single_path, framework="pt") as tensors:
                file_of = dict.fromkeys(tensors.keys(), single_path.name)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"model {folder}: no readable model.safetensors: {error}") from error
    names_of: dict[Path, list[str]] = {}
    for name, file_name in file_of.items():
        if name.startswith(_PREFIX) and not name.removeprefix(_PREFIX).startswith(_UNUSED):
            names_of.setdefault(folder / file_name, []).append(name)
    return names_of
