"""Training of a JanusVQVAE's encoder, codebook and decoder on a set of pictures.

    pictures ─► plain autoencoder ─► k-means++ codebook ─► quantized autoencoder ─► unit-norm codes
                 autoencoder_steps                          the remaining steps

transformers' own `JanusVQVAE.forward` decodes from code indices, so it gives the encoder no gradient
from the picture, and its `decode` normalises codes while its `encode` does not (see `encode_pixels`). The step here is
therefore written out: codes and latents live on the unit sphere (ViT-VQGAN, arXiv:2110.04627,
section 3.2), the gradient passes the quantizer straight through (VQ-VAE, arXiv:1711.00937, section
3.2), and the stored codes have unit norm, with which the stock `encode` and `decode` both agree.

A token that depends on the picture around its patch is needlessly hard to predict, and the policy
that must predict it explores noise instead of pictures. Two measures keep tokens plain: the
consistency loss pulls the latents of pixel-identical patches to their mean while training, and
`canonical_tokens` gives all copies of a patch the token most of them got.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

from configs.schema import VQTrainingConfig
from rollout.records import UInt8Array

BETAS = (0.9, 0.95)
WARMUP_STEPS = 20
FINAL_LR_SHARE = 0.1
MAX_GRAD_NORM = 1.0
COMMITMENT_COEF = 0.25
L1_COEF = 0.5
KMEANS_PICTURES = 256
KMEANS_SEEDING_LATENTS = 6000
KMEANS_ITERATIONS = 8

Report = Callable[[int, int, dict[str, float]], None]
"""Called as report(step, total_steps, metrics)."""


def to_pixel_values(pictures: UInt8Array, device: torch.device | None = None) -> Tensor:
    """uint8 [B, height, width, 3] to float32 [B, 3, height, width] in [-1, 1], as the VQ model reads them."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def group_identical_patches(pictures: UInt8Array, num_patches: int) -> NDArray[np.int64]:
    """Number every patch so that two patches share a number exactly when all their pixels agree.

    pictures: uint8 [B, height, width, 3]; num_patches: patches a side. Returns int64 [B, num_patches**2],
    numbers from 0, raster order.
    """
    batch, height, width, channels = pictures.shape
    rows, columns = height // num_patches, width // num_patches
    tiles = pictures.reshape(batch, num_patches, rows, num_patches, columns, channels).transpose(0, 1, 3, 2, 4, 5)
    flat = np.ascontiguousarray(tiles).reshape(batch * num_patches**2, rows * columns * channels)
    _, numbers = np.unique(flat.view(np.dtype((np.void, flat.shape[1])))[:, 0], return_inverse=True)
    return numbers.reshape(batch, num_patches**2)


def normalised_latents(vq_model: JanusVQVAE, pixel_values: Tensor) -> Tensor:
    """float32 [B, 3, H, W] to unit vectors [B, num_patches**2, embed_dim], raster order, with gradients."""
    latents = vq_model.quant_conv(vq_model.encoder(pixel_values))
    return F.normalize(latents, dim=1).flatten(2).transpose(1, 2)


def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """int64 [...]: index of the code with the largest cosine; latents [..., D] and codebook [K, D] have unit norm."""
    with torch.no_grad():
        return (latents @ codebook.t()).argmax(-1)


def pool_identical_patches(latents: Tensor, patch_numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean latent of every distinct patch, and where each patch finds its own.

    latents: [B, P, D]; patch_numbers: int64 [B, P], from `group_identical_patches`.
    Returns (means [M, D], index int64 [B, P] into them); gradients flow through the means.
    """
    flat = latents.flatten(0, 1)
    _, index, sizes = torch.unique(patch_numbers, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(sizes), flat.shape[1], device=flat.device, dtype=flat.dtype)
    return sums.index_add(0, index.flatten(), flat) / sizes[:, None], index


def kmeans_codebook(latents: Tensor, num_codes: int, generator: torch.Generator) -> Tensor:
    """Codes [num_codes, D] by spherical k-means of unit latents [N, D], seeded by k-means++.

    k-means++: Arthur and Vassilvitskii, SODA 2007.
    """
    shuffled = latents[torch.randperm(len(latents), generator=generator, device=latents.device)]
    candidates = shuffled[:KMEANS_SEEDING_LATENTS]
    codes = [candidates[0]]
    distances = 1 - candidates @ codes[0]
    for _ in range(num_codes - 1):
        # The floor lets a codebook larger than the number of distinct latents repeat some.
        pick = torch.multinomial(distances.clamp_min(0) + 1e-6, 1, generator=generator)[0]
        codes.append(candidates[pick])
        distances = torch.minimum(distances, 1 - candidates @ candidates[pick])
    codebook = torch.stack(codes)
    for _ in range(KMEANS_ITERATIONS):
        members = nearest_codes(shuffled, codebook)
        sums = torch.zeros_like(codebook).index_add_(0, members, shuffled)
        occupied = torch.bincount(members, minlength=num_codes)[:, None] > 0
        codebook = torch.where(occupied, F.normalize(sums, dim=-1), codebook)
    return codebook


def train_vq_model(
    vq_model: JanusVQVAE, pictures: UInt8Array, config: VQTrainingConfig, seed: int, report: Report
) -> None:
    """Train `vq_model` in place, from fresh convolutions, on pictures uint8 [N, height, width, 3].

    The model must be in float32. Same arguments, same device: same weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # transformers' initialisation (normal, std 0.02) stalls this training; PyTorch's own does not.
        for module in vq_model.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
    _Trainer(vq_model, pictures, config, seed).train(report)


def encode_pictures(vq_model: JanusVQVAE, pictures: UInt8Array, batch_size: int = 64) -> NDArray[np.int64]:
    """Image tokens int64 [N, num_patches**2] of pictures uint8 [N, height, width, 3]; see `encode_pixels`."""
    parameter = next(vq_model.parameters())
    tokens = np.empty((len(pictures), vq_model.config.num_patches**2), np.int64)
    with torch.no_grad():
        for start in range(0, len(pictures), batch_size):
            batch = to_pixel_values(pictures[start : start + batch_size], parameter.device).to(parameter.dtype)
            tokens[start : start + batch_size] = encode_pixels(vq_model, batch).cpu().numpy()
    return tokens


def encode_pixels(vq_model: JanusVQVAE, pixel_values: Tensor) -> Tensor:
    """Image tokens int64 [B, P] of pixel_values [B, 3, height, width] in [-1, 1].

    Latents and codes are compared at unit length, as Janus's authors do and as `decode` expects. transformers' own
    `JanusVQVAE.encode` compares them at the length they are stored with, which gives other tokens for a codebook
    that is not stored at unit length, as their code allows.
    """
    codebook = F.normalize(vq_model.quantize.embedding.weight, dim=-1)
    return nearest_codes(normalised_latents(vq_model, pixel_values), codebook)


def canonical_tokens(tokens: NDArray[np.int64], pictures: UInt8Array) -> NDArray[np.int64]:
    """`tokens` [N, P] with all pixel-identical patches given the token that most of them have."""
    num_codes = int(tokens.max()) + 1
    numbers = group_identical_patches(pictures, math.isqrt(tokens.shape[1]))
    pairs, counts = np.unique(numbers * num_codes + tokens, return_counts=True)
    rarest_first = pairs[np.argsort(counts, kind="stable")]
    token_of_patch = np.empty(numbers.max() + 1, np.int64)
    token_of_patch[rarest_first // num_codes] = rarest_first % num_codes  # the last write wins
    return token_of_patch[numbers]


class _Trainer:
    """One training run of one VQ model."""

    def __init__(self, vq_model: JanusVQVAE, pictures: UInt8Array, config: VQTrainingConfig, seed: int) -> None:
        self.model = vq_model
        self.config = config
        self.pictures = pictures
        self.patch_numbers = torch.from_numpy(group_identical_patches(pictures, vq_model.config.num_patches))
        self.device = next(vq_model.parameters()).device
        self.random = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.AdamW(vq_model.parameters(), lr=config.lr, betas=BETAS, weight_decay=0.0)

    def train(self, report: Report) -> None:
        model, config = self.model, self.config
        model.requires_grad_(True).train()
        for step in range(config.steps):
            quantized = step >= config.autoencoder_steps
            if step == config.autoencoder_steps:
                self._seed_codebook()
            self.optimizer.param_groups[0]["lr"] = self._learning_rate(step)
            loss, metrics = self._losses(self._sample(config.batch_size), quantized)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            self.optimizer.step()
            report(step + 1, config.steps, {name: value.item() for name, value in metrics.items()})
        weight = model.quantize.embedding.weight
        weight.data.copy_(F.normalize(weight.data, dim=-1))
        model.requires_grad_(False).eval()

    def _learning_rate(self, step: int) -> float:
        decay = 1 - (1 - FINAL_LR_SHARE) * step / self.config.steps
        return self.config.lr * min(1.0, (step + 1) / WARMUP_STEPS) * decay

    def _sample(self, size: int) -> Tensor:
        return torch.randint(len(self.pictures), (size,), generator=self.random)

    def _seed_codebook(self) -> None:
        chosen = self._sample(KMEANS_PICTURES)
        with torch.no_grad():
            latents = torch.cat([normalised_latents(self.model, self._pixels(part)) for part in chosen.split(64)])
            means, _ = pool_identical_patches(latents, self.patch_numbers[chosen].to(self.device))
            codebook = self.model.quantize.embedding.weight
            codebook.copy_(kmeans_codebook(F.normalize(means, dim=-1).cpu(), len(codebook), self.random))

    def _pixels(self, chosen: Tensor) -> Tensor:
        return to_pixel_values(self.pictures[chosen.numpy()], self.device)

    def _losses(self, chosen: Tensor, quantized: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the pictures with indices `chosen` [B], and its parts."""
        pixels = self._pixels(chosen)
        latents = normalised_latents(self.model, pixels)
        means, index = pool_identical_patches(latents, self.patch_numbers[chosen].to(self.device))
        # Most of a simple picture is ground: each patch counts by the root of how rare it is in the batch.
        weights = torch.bincount(index.flatten()).float().rsqrt()[index]
        consistency = (latents - means[index]).pow(2).sum(-1).mean()
        pooled = F.normalize(means, dim=-1)[index]
        decoder_input, codebook_loss = self._quantize(pooled) if quantized else (pooled, pooled.new_zeros(()))
        num_patches = self.model.config.num_patches
        grid = decoder_input.transpose(1, 2).unflatten(2, (num_patches, num_patches))
        difference = self.model.decoder(self.model.post_quant_conv(grid)) - pixels
        error = difference.pow(2) + L1_COEF * difference.abs()
        patch_error = F.adaptive_avg_pool2d(error.mean(1), num_patches).flatten(1)
        reconstruction = (patch_error * weights).sum() / weights.sum()
        loss = reconstruction + codebook_loss + self.config.consistency_coef * consistency
        parts = {"reconstruction": reconstruction, "codebook": codebook_loss, "consistency": consistency}
        return loss, {name: part.detach() for name, part in parts.items()}

    def _quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of unit latents [B, P, D] with a straight-through gradient, and the codebook and commitment loss."""
        codebook = F.normalize(self.model.quantize.embedding.weight, dim=-1)
        codes = codebook[nearest_codes(latents, codebook)]
        codebook_loss = (codes - latents.detach()).pow(2).sum(-1).mean()
        commitment_loss = (codes.detach() - latents).pow(2).sum(-1).mean()
        return latents + (codes - latents).detach(), codebook_loss + COMMITMENT_COEF * commitment_loss
