"""PickScore and CLIPScore: how well a picture fits its text, by the cosine of CLIP's embeddings.

    PickScore   exp(logit_scale) x cosine, of a CLIP ViT-H/14 fine-tuned on 500,000 human choices between two pictures
                of one prompt: about 18 to 24 (Kirstain et al. 2023, arXiv 2305.01569)
    CLIPScore   2.5 x max(cosine, 0), of CLIP ViT-B/32 as published: about 0.4 to 1 (Hessel et al. 2021,
                arXiv 2104.08718)

Both see the middle square of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rewards.loading import resolve_dtype
from rewards.loading.clip_embedder import load_clip
from rollout.records import Prompt, Score, UInt8Array

PICK_SCORE_MODEL = "yuvalkirstain/PickScore_v1"
PICK_SCORE_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CLIP_SCORE_MODEL = "openai/clip-vit-base-patch32"
CLIP_SCORE_FACTOR = 2.5
GPU_DTYPE = "tf32"
"""The cosines of one group differ by about 0.01: the 8 bits of bfloat16 would change the order."""


class PickScoreReward:
    """PickScore of each picture.

    model: hub id or folder of transformers' CLIPModel; processor: of its tokenizer and image processor, null is the
    model's own. Raises ModelError when either cannot be loaded.
    """

    def __init__(
        self,
        device: str,
        model: str = PICK_SCORE_MODEL,
        dtype: str = "auto",
        processor: str | None = PICK_SCORE_PROCESSOR,
    ) -> None:
        dtype = resolve_dtype(dtype, device, GPU_DTYPE)
        self._clip, self._prepare = load_clip("pick_score", model, processor or model, dtype, device)

    def prepare(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> Tensor:
        """Pixels as the model takes them, on its device: what can be done while the batch before is scored."""
        return self._prepare(pictures, self._clip.device)

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt], prepared: Tensor | None = None) -> list[Score]:
        """The scaled cosine for each picture; pictures uint8 [B, height, width, 3]. Parts: the cosine."""
        pixels = self.prepare(pictures, prompts) if prepared is None else prepared
        cosines = self._clip.cosines(pixels, [prompt.text for prompt in prompts]).tolist()
        return [Score(self._clip.scale * cosine, parts={"cosine": cosine}) for cosine in cosines]


class ClipScoreReward:
    """CLIPScore of each picture.

    model: hub id or folder of transformers' CLIPModel, with tokenizer and image processor. prefix: put before every
    prompt; the paper's is the default. Raises ModelError when the model cannot be loaded.
    """

    def __init__(
        self,
        device: str,
        model: str = CLIP_SCORE_MODEL,
        dtype: str = "auto",
        prefix: str = "A photo depicts ",
    ) -> None:
        dtype = resolve_dtype(dtype, device, GPU_DTYPE)
        self._clip, self._prepare = load_clip("clip_score", model, model, dtype, device)
        self._prefix = prefix

    def prepare(self, pictures: UInt8Array, prompts: Sequence[Prompt]) -> Tensor:
        """Pixels as the model takes them, on its device: what can be done while the batch before is scored."""
        return self._prepare(pictures, self._clip.device)

    def score(self, pictures: UInt8Array, prompts: Sequence[Prompt], prepared: Tensor | None = None) -> list[Score]:
        """The clipped, scaled cosine for each picture; pictures uint8 [B, height, width, 3]. Parts: the cosine."""
        pixels = self.prepare(pictures, prompts) if prepared is None else prepared
        cosines = self._clip.cosines(pixels, [f"{self._prefix}{prompt.text}" for prompt in prompts]).tolist()
        return [Score(CLIP_SCORE_FACTOR * max(cosine, 0.0), parts={"cosine": cosine}) for cosine in cosines]
