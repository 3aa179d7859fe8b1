"""What an exception out of a reward means for the batch, and for the replica."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from configs.errors import BicotError, RewardBrokenError, RewardError
from rewards.calling import WrongAnswerError
from rewards.calling.answers import shorten
from rollout.records import Prompt

_OUT_OF_MEMORY = ("out of memory", "cublas_status_alloc_failed", "not enough memory", "can't allocate memory")
_LOST_GPU = ("cuda error", "cublas_status", "cudnn_status", "nccl error", "hip error")
MAX_PROMPTS_NAMED = 5


class OutOfMemoryError(RewardError):
    """The batch was too large for the device; a smaller one may fit."""


def as_reward_error(name: str, prompts: Sequence[Prompt], error: BaseException) -> RewardError:
    """The error as text, with the reward and the prompts named: OutOfMemoryError, RewardBrokenError, WrongAnswerError,
    or a plain RewardError.

    Without its cause: that holds frames, and these the pictures. A user's own error says where it was raised.
    """
    if isinstance(error, WrongAnswerError | RewardBrokenError):
        return type(error)(f"{_heading(name, prompts)} {shorten(str(error))}")
    text = str(error) if isinstance(error, BicotError) else f"{type(error).__name__}: {error}"
    text = f"{_heading(name, prompts)} {shorten(text)}"
    if not isinstance(error, BicotError):
        text += _place_of(error)
    if _is_out_of_memory(error):
        return OutOfMemoryError(text)
    if _is_lost_gpu(error):
        return RewardBrokenError(text)
    return RewardError(text)


def naming(name: str, prompt: Prompt, error: RewardError) -> RewardError:
    """The error of one picture that the reward itself gave in its place, with the reward and the prompt named."""
    return RewardError(f"{_heading(name, [prompt])} {shorten(str(error))}")


def free_gpu_memory() -> None:
    """Give back what torch keeps of memory that nobody uses, where torch is there at all."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _heading(name: str, prompts: Sequence[Prompt]) -> str:
    prompt_ids = list(dict.fromkeys(prompt.prompt_id for prompt in prompts))
    shown = ", ".join(prompt_ids[:MAX_PROMPTS_NAMED])
    more = f" and {len(prompt_ids) - MAX_PROMPTS_NAMED} more" if len(prompt_ids) > MAX_PROMPTS_NAMED else ""
    return f"reward '{name}' failed on {shown}{more}:"


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY)


def _is_lost_gpu(error: BaseException) -> bool:
    """An illegal access, an assertion on the device or an ECC error: every later call fails, too."""
    if isinstance(error, BicotError):
        return False
    return type(error).__name__ == "AcceleratorError" or any(sign in str(error).lower() for sign in _LOST_GPU)


def _place_of(error: BaseException) -> str:
    """` (taste.py:12, in score)`: where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno}, in {frames[-1].name})" if frames else ""
