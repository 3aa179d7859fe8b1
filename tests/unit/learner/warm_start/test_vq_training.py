"""Training of the VQ model: its quantizer against transformers' own, its measures against slow ones."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers.models.janus.modeling_janus import JanusVQVAE

from configs.schema import TinyJanusConfig, VQTrainingConfig
from learner.warm_start.patches import CanonicalTokens, patch_kinds
from learner.warm_start.tiny_janus import build_tiny_janus
from learner.warm_start.vq_training import (
    encode_pictures,
    kmeans_codebook,
    nearest_codes,
    normalised_latents,
    pool_identical_patches,
    spread_codes,
    to_pixel_values,
    train_vq_model,
    visible_difference,
)
from rollout.records import UInt8Array

CONFIG = VQTrainingConfig(steps=80, autoencoder_steps=25, batch_size=8, lr=5e-3)
NUM_CODES = 16


@pytest.fixture(scope="module")
def pictures() -> UInt8Array:
    """64 pictures of 16 pixels a side: coloured patches on white ground."""
    rng = np.random.default_rng(0)
    pictures = np.full((64, 16, 16, 3), 255, np.uint8)
    for picture in pictures:
        for _ in range(3):
            row, column = 4 * rng.integers(4, size=2)
            picture[row : row + 4, column : column + 4] = ((200, 30, 30), (30, 30, 200))[rng.integers(2)]
    return pictures


def new_vq_model() -> JanusVQVAE:
    config = TinyJanusConfig(hidden_size=32, num_layers=1, num_codes=NUM_CODES, image_size=16, patch_size=4)
    return build_tiny_janus(config, ["red"])[0].model.vqmodel


def train(pictures: UInt8Array, seed: int = 0) -> tuple[JanusVQVAE, list[dict[str, float]]]:
    model, history = new_vq_model(), []
    train_vq_model(model, pictures, CONFIG, seed, lambda step, total, metrics: history.append(metrics))
    return model, history


@pytest.fixture(scope="module")
def trained(pictures: UInt8Array) -> tuple[JanusVQVAE, list[dict[str, float]]]:
    return train(pictures)


def test_training_lowers_the_reconstruction_error(trained: tuple[JanusVQVAE, list[dict[str, float]]]):
    _, history = trained
    assert len(history) == CONFIG.steps
    assert history[-1]["reconstruction"] < 0.3 * history[0]["reconstruction"]


def test_the_stock_encode_takes_the_code_that_training_took(trained, pictures: UInt8Array):
    model, _ = trained
    with torch.no_grad():
        latents = normalised_latents(model, to_pixel_values(pictures))
    similarity = latents @ model.quantize.embedding.weight.t()
    taken = torch.from_numpy(encode_pictures(model, pictures))
    # Fewer distinct patches than codes: some codes are all but the same, and rounding chooses between them.
    assert (taken == nearest_codes(latents, model.quantize.embedding.weight)).float().mean() > 0.95
    torch.testing.assert_close(similarity.gather(-1, taken[..., None])[..., 0], similarity.amax(-1))


def test_the_stock_decode_draws_what_training_drew(trained, pictures: UInt8Array):
    model, _ = trained
    codes = model.quantize.embedding.weight
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(NUM_CODES))
    tokens = torch.from_numpy(encode_pictures(model, pictures[:4]))
    with torch.no_grad():
        grid = codes[tokens].transpose(1, 2).unflatten(2, (4, 4))
        expected = model.decoder(model.post_quant_conv(grid))
        torch.testing.assert_close(model.decode(tokens), expected, atol=1e-5, rtol=1e-5)


def test_a_trained_model_shows_its_pictures(trained, pictures: UInt8Array):
    model, _ = trained
    with torch.no_grad():
        shown = model.decode(torch.from_numpy(encode_pictures(model, pictures))).clamp(-1, 1)
    error = (shown - to_pixel_values(pictures)).abs().mean()
    plain = (1 - to_pixel_values(pictures)).abs().mean()  # of an all-white picture
    assert error < 0.7 * plain


def test_the_trained_model_is_frozen_and_the_seed_decides_it(trained, pictures: UInt8Array):
    model, _ = trained
    assert not any(parameter.requires_grad for parameter in model.parameters())
    again, _ = train(pictures)
    other, _ = train(pictures, seed=1)
    codes = [each.quantize.embedding.weight for each in (model, again, other)]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_what_is_clamped_when_a_picture_is_shown_is_no_error():
    decoded = torch.tensor([1.3, 0.9, -1.2, 1.3, 0.2], requires_grad=True)
    pixels = torch.tensor([1.0, 1.0, -1.0, 0.5, 0.5])
    difference = visible_difference(decoded, pixels)
    torch.testing.assert_close(difference, torch.tensor([0.0, -0.1, 0.0, 0.8, -0.3]))
    difference.pow(2).sum().backward()
    torch.testing.assert_close(decoded.grad, torch.tensor([0.0, -0.2, 0.0, 1.6, -0.6]))


def test_patches_share_a_number_exactly_when_all_their_pixels_agree():
    rng = np.random.default_rng(3)
    pictures = rng.integers(2, size=(3, 8, 8, 3), dtype=np.uint8)
    pictures[0, :4, :4] = pictures[2, 4:, 4:]
    patches = [p[r : r + 4, c : c + 4].tobytes() for p in pictures for r in (0, 4) for c in (0, 4)]
    numbers = patch_kinds(pictures, 2, by_outline=False)
    assert numbers.shape == (3, 4)
    for first, same_as_first in zip(numbers.ravel(), patches, strict=True):
        for second, same_as_second in zip(numbers.ravel(), patches, strict=True):
            assert (first == second) == (same_as_first == same_as_second)
    assert numbers[0, 0] == numbers[2, 3]


def test_pooling_gives_each_patch_the_mean_of_its_copies():
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 5, 3, generator=generator)
    numbers = torch.tensor([[7, 7, 2, 9, 2], [2, 9, 9, 4, 7]])
    means, index = pool_identical_patches(latents, numbers)
    for row in range(2):
        for column in range(5):
            expected = latents[numbers == numbers[row, column]].mean(0)
            torch.testing.assert_close(means[index[row, column]], expected)


def test_the_codebook_finds_well_separated_clusters():
    rng = random.Random(0)
    centres = torch.eye(5)
    members = torch.stack([centres[rng.randrange(5)] for _ in range(200)])
    noise = 0.05 * torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    codebook = kmeans_codebook(F.normalize(members + noise, dim=-1), 5, torch.Generator().manual_seed(2))
    nearest = (codebook @ centres.t()).max(-1)
    assert sorted(nearest.indices.tolist()) == [0, 1, 2, 3, 4]
    assert nearest.values.min() > 0.99


def test_a_codebook_may_be_larger_than_the_number_of_latents():
    latents = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    codebook = kmeans_codebook(latents, 8, torch.Generator().manual_seed(0))
    assert codebook.shape == (8, 4)
    assert torch.isfinite(codebook).all()


def test_canonical_tokens_follow_the_majority_of_identical_patches():
    pictures = np.zeros((2, 4, 4, 3), np.uint8)
    pictures[1, 2:, 2:] = 9  # the one patch that is not black
    tokens = np.array([[5, 5, 1, 5], [5, 2, 5, 1]])
    encoded: list[int] = []

    def encode(batch: UInt8Array) -> np.ndarray:
        encoded.append(len(batch))
        return tokens[: len(batch)]

    tokens_of = CanonicalTokens(encode, 2)
    np.testing.assert_array_equal(tokens_of(pictures), [[5, 5, 5, 5], [5, 5, 5, 1]])
    np.testing.assert_array_equal(tokens_of(pictures[::-1]), [[5, 5, 5, 1], [5, 5, 5, 5]])
    assert encoded == [2]  # what is known is not encoded again
    pictures[0, 0, 0] = 7
    np.testing.assert_array_equal(tokens_of(pictures)[0], [5, 5, 5, 5])
    assert encoded == [2, 1]


def test_by_outline_patches_that_show_ground_do_not_tell_their_colours():
    pictures = np.full((3, 4, 8, 3), 255, np.uint8)
    pictures[0, 0, :4], pictures[1, 0, :4], pictures[2, 1, :4] = (200, 0, 0), (0, 0, 200), (200, 0, 0)
    pictures[:, :, 4:] = np.array([(9, 9, 200), (200, 0, 0), (200, 0, 0)], np.uint8)[:, None, None]
    first, second, third = patch_kinds(np.concatenate([pictures, pictures], axis=1), 2, by_outline=True)[:, :2]
    assert first[0] == second[0] != third[0]  # ground in the same places, ground elsewhere
    assert first[1] != second[1] == third[1]  # drawn all over: red is not blue
    exact = patch_kinds(np.concatenate([pictures, pictures], axis=1), 2, by_outline=False)
    assert exact[0, 0] != exact[1, 0]


def test_every_kind_of_patch_has_its_own_code_where_there_are_enough(trained, pictures: UInt8Array):
    model, _ = trained
    tokens = CanonicalTokens(lambda batch: encode_pictures(model, batch), 4)(pictures)
    kinds = patch_kinds(pictures, 4, by_outline=False)
    pairs = {(int(kind), int(token)) for kind, token in zip(kinds.ravel(), tokens.ravel(), strict=True)}
    assert len(pairs) == len({kind for kind, _ in pairs}) == len({token for _, token in pairs}) == 3


def test_spread_codes_are_farther_apart_than_random_ones():
    codes = spread_codes(64, 8, torch.Generator().manual_seed(0))
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(64))
    random_codes = F.normalize(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    nearest = [float((each @ each.t()).fill_diagonal_(-1).max()) for each in (codes, random_codes)]
    assert nearest[0] < 0.6 < nearest[1]


def test_more_kinds_than_codes_share_a_codebook_of_clusters(pictures: UInt8Array):
    noisy = pictures - np.random.default_rng(1).integers(0, 20, pictures.shape, dtype=np.uint8)
    model, history = train(noisy)
    assert history[-1]["reconstruction"] < 0.5 * history[0]["reconstruction"]
    assert {"codebook", "consistency"} <= set(history[-1])
    assert 2 < len(np.unique(encode_pictures(model, noisy))) <= NUM_CODES
