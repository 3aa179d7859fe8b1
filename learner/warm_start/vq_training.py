"""Training of a JanusVQVAE's encoder, codebook and decoder on a set of pictures.

    pictures ─► as many codes as kinds of patches? ─ yes ─► a code for each kind ───────────┐
                   │ no                                                                   ▼
                   └─► plain autoencoder ─► k-means++ codebook ─► quantized autoencoder ─► unit-norm codes
                        autoencoder_steps                          the remaining steps

transformers' own `JanusVQVAE.forward` decodes from code indices, so it gives the encoder no gradient
from the picture, and its `decode` normalises codes while its `encode` does not (see `encode_pixels`). The step here is
therefore written out: codes and latents live on the unit sphere (ViT-VQGAN, arXiv:2110.04627,
section 3.2), the gradient passes the quantizer straight through (VQ-VAE, arXiv:1711.00937, section
3.2), and the stored codes have unit norm, with which the stock `encode` and `decode` both agree.

A token that depends on the picture around its patch is needlessly hard to predict, and the policy
that must predict it explores noise instead of pictures. Patches of one kind (`learner.warm_start.patches`:
all their pixels agree, or their outlines do) therefore get one token. Where the codebook has room for all
kinds, each has its code from the start, the decoder learns what to draw for it, and the encoder learns to
tell the kinds apart. Where it has not, the consistency loss pulls the latents of a kind to their mean, and
kinds that look alike come to share a code.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

from configs.schema import VQTrainingConfig
from learner.warm_start.patches import patch_kinds
from rollout.records import UInt8Array

BETAS = (0.9, 0.95)
WARMUP_STEPS = 20
FINAL_LR_SHARE = 0.1
MAX_GRAD_NORM = 1.0
COMMITMENT_COEF = 0.25
L1_COEF = 0.5
RARITY_POWER = 0.3
"""At 0.5 the ground, which is most of a picture, counts so little that it comes out tinted."""
ENCODER_TEMPERATURE = 0.1
"""Of the cosines between latent and codes, when the encoder learns to tell kinds apart."""
ENCODER_COEF = 0.1
KMEANS_PICTURES = 256
KMEANS_SEEDING_LATENTS = 6000
KMEANS_ITERATIONS = 8

Report = Callable[[int, int, dict[str, float]], None]
"""Called as report(step, total_steps, metrics)."""


def to_pixel_values(pictures: UInt8Array, device: torch.device | None = None) -> Tensor:
    """uint8 [B, height, width, 3] to float32 [B, 3, height, width] in [-1, 1], as the VQ model reads them."""
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def visible_difference(decoded: Tensor, pixels: Tensor) -> Tensor:
    """decoded - pixels, both [...], but 0 where a pixel of -1 or 1 is overshot: who shows a picture clamps it there.

    So the decoder need not hit white exactly, only reach it, and grounds come out without a tint.
    """
    lowest = pixels.masked_fill(pixels <= -1, -torch.inf)
    highest = pixels.masked_fill(pixels >= 1, torch.inf)
    return decoded - decoded.detach().clamp(lowest, highest)


def normalised_latents(vq_model: JanusVQVAE, pixel_values: Tensor) -> Tensor:
    """float32 [B, 3, H, W] to unit vectors [B, num_patches**2, embed_dim], raster order, with gradients."""
    latents = vq_model.quant_conv(vq_model.encoder(pixel_values))
    return F.normalize(latents, dim=1).flatten(2).transpose(1, 2)


def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """int64 [...]: index of the code with the largest cosine; latents [..., D] and codebook [K, D] have unit norm."""
    with torch.no_grad():
        return (latents @ codebook.t()).argmax(-1)


def pool_identical_patches(latents: Tensor, patch_numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Mean latent of every kind of patch, and where each patch finds its own.

    latents: [B, P, D]; patch_numbers: int64 [B, P], from `patch_kinds`.
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


def spread_codes(num_codes: int, embed_dim: int, generator: torch.Generator) -> Tensor:
    """Unit vectors [num_codes, embed_dim] that lie far apart on the sphere: repelled from random places."""
    codes = torch.randn(num_codes, embed_dim, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([codes], lr=0.05)
    for _ in range(200):
        unit = F.normalize(codes, dim=-1)
        cosines = (unit @ unit.t()).fill_diagonal_(-1)
        optimizer.zero_grad()
        (cosines * 10).logsumexp(-1).mean().backward()
        optimizer.step()
    return F.normalize(codes.detach(), dim=-1)


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


class _Trainer:
    """One training run of one VQ model."""

    def __init__(self, vq_model: JanusVQVAE, pictures: UInt8Array, config: VQTrainingConfig, seed: int) -> None:
        self.model = vq_model
        self.config = config
        self.pictures = pictures
        self.patch_kinds = torch.from_numpy(patch_kinds(pictures, vq_model.config.num_patches, config.outlines))
        self.num_kinds = int(self.patch_kinds.max()) + 1
        self.device = next(vq_model.parameters()).device
        self.random = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.AdamW(vq_model.parameters(), lr=config.lr, betas=BETAS, weight_decay=0.0)
        self.has_code_per_kind = self.num_kinds <= vq_model.config.num_embeddings

    def train(self, report: Report) -> None:
        model, config = self.model, self.config
        model.requires_grad_(True).train()
        if self.has_code_per_kind:
            self._spread_codebook()
        for step in range(config.steps):
            quantized = step >= config.autoencoder_steps
            if step == config.autoencoder_steps and not self.has_code_per_kind:
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

    def _spread_codebook(self) -> None:
        codebook = self.model.quantize.embedding.weight
        codebook.data.copy_(spread_codes(codebook.shape[0], codebook.shape[1], self.random))

    def _seed_codebook(self) -> None:
        chosen = self._sample(KMEANS_PICTURES)
        with torch.no_grad():
            latents = torch.cat([normalised_latents(self.model, self._pixels(part)) for part in chosen.split(64)])
            means, _ = pool_identical_patches(latents, self.patch_kinds[chosen].to(self.device))
            codebook = self.model.quantize.embedding.weight
            codebook.copy_(kmeans_codebook(F.normalize(means, dim=-1).cpu(), len(codebook), self.random))

    def _pixels(self, chosen: Tensor) -> Tensor:
        return to_pixel_values(self.pictures[chosen.numpy()], self.device).contiguous(memory_format=torch.channels_last)

    def _losses(self, chosen: Tensor, quantized: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the pictures with indices `chosen` [B], and its parts."""
        pixels = self._pixels(chosen)
        kinds = self.patch_kinds[chosen].to(self.device)
        latents = normalised_latents(self.model, pixels)
        means, index = pool_identical_patches(latents, kinds)
        # Most of a simple picture is ground: a patch counts the less the more of its kind are in the batch.
        weights = torch.bincount(index.flatten()).float().pow(-RARITY_POWER)[index]
        if self.has_code_per_kind:
            decoder_input, parts = self._assign(latents, kinds, weights)
        else:
            consistency = self.config.consistency_coef * (latents - means[index]).pow(2).sum(-1).mean()
            pooled = F.normalize(means, dim=-1)[index]
            decoder_input, codebook_loss = self._quantize(pooled) if quantized else (pooled, pooled.new_zeros(()))
            parts = {"codebook": codebook_loss, "consistency": consistency}
        num_patches = self.model.config.num_patches
        grid = decoder_input.transpose(1, 2).unflatten(2, (num_patches, num_patches))
        difference = visible_difference(self.model.decoder(self.model.post_quant_conv(grid)), pixels)
        error = difference.pow(2) + L1_COEF * difference.abs()
        patch_error = F.adaptive_avg_pool2d(error.mean(1), num_patches).flatten(1)
        parts = {"reconstruction": (patch_error * weights).sum() / weights.sum(), **parts}
        loss = torch.stack(list(parts.values())).sum()
        return loss, {name: part.detach() for name, part in parts.items()}

    def _assign(self, latents: Tensor, kinds: Tensor, weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The code of each patch's kind, [B, P, D], and what the encoder has to learn to find it.

        latents: [B, P, D]; kinds: int64 [B, P], places in the codebook; weights: [B, P].
        """
        codebook = F.normalize(self.model.quantize.embedding.weight, dim=-1)
        logits = latents @ codebook.detach().t() / ENCODER_TEMPERATURE
        nll = F.cross_entropy(logits.flatten(0, 1), kinds.flatten(), reduction="none").view_as(weights)
        return codebook[kinds], {"encoder": ENCODER_COEF * (nll * weights).sum() / weights.sum()}

    def _quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of unit latents [B, P, D] with a straight-through gradient, and the codebook and commitment loss."""
        codebook = F.normalize(self.model.quantize.embedding.weight, dim=-1)
        codes = codebook[nearest_codes(latents, codebook)]
        codebook_loss = (codes - latents.detach()).pow(2).sum(-1).mean()
        commitment_loss = (codes.detach() - latents).pow(2).sum(-1).mean()
        return latents + (codes - latents).detach(), codebook_loss + COMMITMENT_COEF * commitment_loss
