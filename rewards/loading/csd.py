"""CSD, a style descriptor (Somepalli et al. 2024, arXiv 2404.01292), as transformers' CLIPVisionModelWithProjection.

The published `checkpoint.pth` holds the visual tower of OpenAI's CLIP ViT-L/14, trained on, under OpenAI's names, and
two projections, of style and of content, in the place of CLIP's own:

    backbone.…                                  ─►  the visual tower, as of an open_clip checkpoint
    last_layer_style [width, e]                 ─►  visual_projection.weight [e, width]
    last_layer_content                          ─►  not needed
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from rewards.loading.open_clip import convert_state_dict
from rewards.loading.pretrained import fill_model, read_state_dict
from rewards.loading.state_dicts import StateDict, count_layers

HEAD_SIZE = 64
HIDDEN_ACT = "quick_gelu"
"""Of OpenAI's CLIP; a checkpoint does not tell either."""
_BACKBONE, _STYLE, _CONTENT = "backbone.", "last_layer_style", "last_layer_content"


def load_csd(path: str, device: str) -> CLIPVisionModelWithProjection:
    """The style descriptor in float32, frozen, on its device; `image_embeds` is not of unit length yet.

    Raises OSError or ValueError for another file.
    """
    weights = convert_csd(read_state_dict(path))
    return fill_model(CLIPVisionModelWithProjection, infer_config(weights), weights, path, "float32", device)


def convert_csd(csd: Mapping[str, Tensor]) -> StateDict:
    """The weights under transformers' names. Raises ValueError for a checkpoint of another kind."""
    if _STYLE not in csd:
        raise ValueError(f"the checkpoint lacks {_STYLE}; it is none of CSD's")
    others = [name for name in csd if not name.startswith((_BACKBONE, _STYLE, _CONTENT))]
    if others:
        raise ValueError(f"'{others[0]}' is no weight of CSD")
    tower = {
        f"visual.{name.removeprefix(_BACKBONE)}": tensor for name, tensor in csd.items() if name.startswith(_BACKBONE)
    }
    return convert_state_dict({**tower, "visual.proj": csd[_STYLE]})


def infer_config(weights: Mapping[str, Tensor]) -> CLIPVisionConfig:
    """The config of converted weights, read from their shapes. Raises ValueError when one is missing."""
    try:
        width, _, patch_size, _ = weights["vision_model.embeddings.patch_embedding.weight"].shape
        num_positions = len(weights["vision_model.embeddings.position_embedding.weight"])
        mlp = len(weights["vision_model.encoder.layers.0.mlp.fc1.weight"])
    except KeyError as error:
        raise ValueError(f"the checkpoint lacks {error}") from error
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=count_layers(weights, "vision_model.encoder.layers"),
        num_attention_heads=max(1, width // HEAD_SIZE),
        image_size=math.isqrt(num_positions - 1) * patch_size,
        patch_size=patch_size,
        projection_dim=len(weights["visual_projection.weight"]),
        hidden_act=HIDDEN_ACT,
    )
