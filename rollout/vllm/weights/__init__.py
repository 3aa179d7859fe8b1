"""Weight updates of a vLLM engine: staged beside the weights that sample, or loaded while it stands still.

rollout worker                                 a vLLM worker
EngineWeights ─► Courier ── slots, a socket ──► Stager (a thread) ─► StagedWeights ─► swapped between two tokens
     └──────────────────── vLLM's own calls ──► BicotWeightEngine ─► loaded in a pause
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from rollout.vllm.weights.transfer import BicotWeightEngine as BicotWeightEngine
    from rollout.vllm.weights.updating import EngineWeights as EngineWeights

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "transfer": ["BicotWeightEngine"],
        "updating": ["EngineWeights"],
    },
)
