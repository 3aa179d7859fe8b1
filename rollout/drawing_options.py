"""How pictures are drawn outside training: the options, and their place on a command line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class DrawingOptions:
    """Options of image generation. None means the checkpoint's own value, or what the machine has."""

    model: str
    revision: str | None = None
    engine: Literal["vllm", "transformers"] = "vllm"
    device: Literal["cpu", "cuda"] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    num_images: int = 4
    images_per_cot: int = 1
    no_cot: bool = False
    guidance_scale: float | None = None
    temperature: float = 1.0
    max_cot_tokens: int | None = None
    seed: int = 0

    @classmethod
    def of(cls, arguments: argparse.Namespace, **others: Any) -> DrawingOptions:
        """Those of parsed arguments, and others that the command line does not have."""
        named = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in vars(arguments).items() if name in named} | others)


def add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that every command that draws has, named as the fields of DrawingOptions, but for the model."""
    parser.add_argument("--revision", help="git revision of a hub id")
    parser.add_argument("--no-cot", action="store_true", help="draw from the prompt alone, without a plan")
    parser.add_argument(
        "--guidance-scale",
        type=number(least=1.0),
        help="how far to follow the prompt; 1 is no guidance; default: the checkpoint's, or 5",
    )
    parser.add_argument("--temperature", type=number(least=0.01), default=1.0, help="default: %(default)s")
    parser.add_argument("--seed", type=whole(0), default=0, help="same seed, same pictures; default: %(default)s")
    parser.add_argument(
        "--max-cot-tokens", type=whole(1), help="longest plan; default: 128, or what the context has room for"
    )
    parser.add_argument(
        "--engine",
        choices=("vllm", "transformers"),
        default="vllm",
        help="default: %(default)s; transformers is slower, and starts sooner",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on cuda, float32 on cpu")


def whole(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number, at least `least`."""

    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of {least} or more")
        return int(text)

    return whole_number


def number(least: float) -> Callable[[str], float]:
    """An argparse type: a finite number, at least `least`."""

    def finite_number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            raise argparse.ArgumentTypeError(f"'{text}' is not a number of {least:g} or more")
        return value

    return finite_number
