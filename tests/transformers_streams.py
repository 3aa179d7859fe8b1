"""What transformers' own Janus draws with, taken from its `generate`."""

from __future__ import annotations

import numpy as np
import torch
from transformers import JanusForConditionalGeneration


def unconditional_context(model: JanusForConditionalGeneration, prompt_ids: np.ndarray | torch.Tensor) -> torch.Tensor:
    """int64 [N_image_prompt]: the context of its unconditional stream, for a prompt that ends in begin-of-image.

    `generate` doubles the batch and embeds it at once: the second row is the unconditional stream.
    """
    embedded: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda module, args: embedded.append(args[0].clone()))
    row = torch.as_tensor(prompt_ids, dtype=torch.long)[None]
    try:
        model.generate(
            row, attention_mask=torch.ones_like(row), generation_mode="image", guidance_scale=5.0, do_sample=False
        )
    finally:
        hook.remove()
    assert embedded[0].shape == (2, row.shape[1])
    return embedded[0][1]
