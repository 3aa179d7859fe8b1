"""How many pictures a pass of the VQ decoder may draw: as many as the device's memory has room for, found by trying.

    pass ─► out of memory ─► half as many pictures, from now on ─► … ─► one picture does not fit: the error is raised
    on a GPU, before each pass: at most what is free / what a picture took so far

An engine, a learner and rewards may share the device, so what is free changes from pass to pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import torch

Result = TypeVar("Result")
SHARE: Final = 0.9
"""Of the free memory; fragments take the rest."""
_SIGNS: Final = ("out of memory", "not enough memory", "can't allocate memory")


class FittingBatches:
    """Cuts a number of pictures into passes. size: pictures a pass at most."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self._device = device
        self._bytes_a_picture = 0

    def run(self, count: int, draw: Callable[[int, int], Result]) -> Iterator[Result]:
        """Results of `draw(start, end)` for consecutive parts of `count` pictures; one call for none at all.

        Raises the device's error where one picture does not fit, and whatever else `draw` raises.
        """
        start = 0
        while start < count or (count == 0 and start == 0):
            end = min(count, start + self._size_now())
            try:
                result = self._measured(draw, start, end)
            except (RuntimeError, MemoryError) as error:
                if end - start <= 1 or not is_out_of_memory(error):
                    raise
                self._halve(end - start)
                continue
            yield result
            start = max(end, 1)

    def _measured(self, draw: Callable[[int, int], Result], start: int, end: int) -> Result:
        if self._device.type != "cuda":
            return draw(start, end)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        result = draw(start, end)
        taken = torch.cuda.max_memory_allocated(self._device) - before
        self._bytes_a_picture = max(self._bytes_a_picture, taken // max(1, end - start))
        return result

    def _size_now(self) -> int:
        """The first pass on a GPU is of one picture: it shows what a picture takes."""
        if self._device.type != "cuda":
            return self.size
        if not self._bytes_a_picture:
            return 1
        free, _ = torch.cuda.mem_get_info(self._device)
        # What PyTorch keeps without using it is free for us, too.
        free += torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return max(1, min(self.size, int(SHARE * free) // self._bytes_a_picture))

    def _halve(self, failed: int) -> None:
        self.size = failed // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        logging.getLogger(__name__).warning(
            "%d pictures at once do not fit the memory that is free: the VQ decoder draws %d from now on; "
            "rollout.decode_batch_size can be as low",
            failed,
            self.size,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may help."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _SIGNS)
