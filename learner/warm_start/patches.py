"""Which patches of pictures are alike, and the one token that all of a kind get.

    pictures ─► (outlines) ─► patch_kinds: a number for every patch ─► CanonicalTokens: one token a kind

Two patches are of one kind when all their pixels agree or, by outline, when they show white ground in the same
places: then the kind says where an object ends and not what colour it has, and a token of it is the same for all
colours. Only patches that are drawn all over keep their colours in their kind; the decoder carries them to the
outlines around. So no token ties a colour to a shape, and a policy can put together what it never saw together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rollout.records import UInt8Array

_GROUND, _DRAWN = 255, 0


def patch_kinds(pictures: UInt8Array, num_patches: int, by_outline: bool) -> NDArray[np.int64]:
    """Number every patch so that two patches share a number exactly when they are of one kind.

    pictures: uint8 [B, height, width, 3]; num_patches: patches a side. Returns int64 [B, num_patches**2],
    numbers from 0, raster order.
    """
    _, numbers = _number_kinds(pictures, num_patches, by_outline)
    return numbers


def outlines(pictures: UInt8Array, num_patches: int) -> UInt8Array:
    """The pictures with all that is drawn turned black, but for patches that show no ground (white)."""
    num, height, width, _ = pictures.shape
    drawn = (pictures != _GROUND).any(-1)
    tiles = drawn.reshape(num, num_patches, height // num_patches, num_patches, width // num_patches)
    is_full = tiles.all((2, 4), keepdims=True)
    return np.where((tiles & ~is_full).reshape(drawn.shape)[..., None], np.uint8(_DRAWN), pictures)


class CanonicalTokens:
    """Turns pictures into image tokens, all patches of one kind into the same: what most of the first ones got."""

    def __init__(
        self, encode: Callable[[UInt8Array], NDArray[np.int64]], num_patches: int, by_outline: bool = False
    ) -> None:
        """encode: the VQ model's own tokens int64 [B, num_patches**2] of pictures uint8 [B, height, width, 3]."""
        self._encode = encode
        self._num_patches = num_patches
        self._by_outline = by_outline
        self._token_of: dict[bytes, int] = {}

    def __call__(self, pictures: UInt8Array) -> NDArray[np.int64]:
        """int64 [B, num_patches**2] of pictures uint8 [B, height, width, 3]; only those with a new kind are encoded."""
        kinds, numbers = _number_kinds(pictures, self._num_patches, self._by_outline)
        is_new = np.array([kind not in self._token_of for kind in kinds])
        rows = np.flatnonzero(is_new[numbers].any(-1))
        if len(rows):
            self._learn(kinds, numbers[rows], self._encode(pictures[rows]))
        return np.array([self._token_of[kind] for kind in kinds])[numbers]

    def _learn(self, kinds: list[bytes], numbers: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        num_codes = int(tokens.max()) + 1
        pairs, counts = np.unique(numbers * num_codes + tokens, return_counts=True)
        for pair in pairs[np.argsort(-counts, kind="stable")]:
            self._token_of.setdefault(kinds[pair // num_codes], int(pair % num_codes))  # the commonest comes first


def _number_kinds(pictures: UInt8Array, num_patches: int, by_outline: bool) -> tuple[list[bytes], NDArray[np.int64]]:
    """Every kind's pixels, and `patch_kinds`, which are places in that list."""
    if by_outline:
        pictures = outlines(pictures, num_patches)
    batch, height, width, channels = pictures.shape
    rows, columns = height // num_patches, width // num_patches
    tiles = pictures.reshape(batch, num_patches, rows, num_patches, columns, channels).transpose(0, 1, 3, 2, 4, 5)
    flat = np.ascontiguousarray(tiles).reshape(batch * num_patches**2, rows * columns * channels)
    kinds, numbers = np.unique(flat.view(np.dtype((np.void, flat.shape[1])))[:, 0], return_inverse=True)
    return [kind.tobytes() for kind in kinds], numbers.reshape(batch, num_patches**2)
