"""T2I-R1's end of HPSv2.1; what is wrong with it is in rewards/t2i_r1/__init__.py."""

from __future__ import annotations

from torch import Tensor


def half_cosines(pictures: Tensor, texts: Tensor) -> Tensor:
    """Cosines of two [B, e] of unit length, row by row, float32 [B], as autocast's product in float16 gives them.

    Products of two float16 are exact in float32, in which they are added up; the sum is rounded to float16.
    """
    return (pictures.half().float() * texts.half().float()).sum(dim=-1).half().float()
