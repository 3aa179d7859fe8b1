"""The toy domain: pictures of coloured shapes, their prompts and their plans, made by rule."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rollout.shapes.world import load_split as load_split
    from rollout.shapes.world import render as render
    from rollout.shapes.world import sample_prompt as sample_prompt

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "world": ["load_split", "render", "sample_prompt"],
    },
)
