"""Prompts from files or the shapes world, and the chat template that turns them into token ids."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rollout.prompts.conversation import Conversation as Conversation
    from rollout.prompts.source import PromptSet as PromptSet
    from rollout.prompts.source import PromptSource as PromptSource
    from rollout.prompts.source import load_prompts as load_prompts

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "conversation": ["Conversation"],
        "source": ["PromptSet", "PromptSource", "load_prompts"],
    },
)
