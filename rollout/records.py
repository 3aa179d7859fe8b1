"""The records that cross a process, in the order in which they are made.

    Prompt ─► GroupRequest ─► GroupRollout + pictures ─► ScoredGroup ─► TrajectoryBatch
                                                             WeightBucket ◄─ learner

All are frozen, slotted dataclasses of plain values and NumPy arrays: no torch tensor, no vLLM and
no Ray object. Token ids are in the tokenizer's vocabulary; image ids are VQ codes, from 0.
Log-probabilities are in nats. N_x is the number of tokens of x.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]


STALE_CONTEXT: Final = -1
"""In place of a weight version: of tokens whose context was computed under earlier weights than they were."""


@dataclass(frozen=True, slots=True)
class SpatialInfo:
    """Where `obj1` is, relative to `obj2` (T2I-R1's schema: "left of", "on the top of", ...)."""

    obj1: str
    obj2: str
    locality: str


@dataclass(frozen=True, slots=True)
class CountInfo:
    """How many of an object the picture must hold (T2I-R1's schema)."""

    obj_name: str
    num: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the user wants drawn. Produced by PromptSource; consumed by rollout and rewards.

    All but `prompt_id` and `text` may be missing in the data, and then are empty.
    """

    prompt_id: str
    """Unique in its source: `file.jsonl:17`, or `shapes:train:17`."""
    text: str
    task_type: str = ""
    nouns: tuple[str, ...] = ()
    attr_nouns: tuple[str, ...] = ()
    spatial_info: SpatialInfo | None = None
    numeracy_info: tuple[CountInfo, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Whatever else the data say of it, as JSON has it: for rewards to read. Never changed by anybody."""

    def to_record(self) -> dict[str, Any]:
        """The record of a prompt file that gives this prompt, without its id and without empty fields."""
        tree = asdict(self)
        del tree["prompt_id"]
        return {"prompt": tree.pop("text")} | {name: value for name, value in tree.items() if value}


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """One group to roll. Produced by admission; consumed by a rollout worker."""

    sequence: int
    """Place of the group in the run, from 0: group `sequence` belongs to optimizer step
    `sequence // groups_per_step`. Negative for groups that are only evaluated."""
    attempt: int
    """0, or how often this group has failed before."""
    prompt: Prompt
    group_size: int
    images_per_cot: int
    seed: int
    """Seed of the group; each CoT and each picture derives its own from it and its place in the group."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One prompt, one semantic CoT, one picture's tokens. Produced by a rollout worker; consumed by the learner."""

    semantic_prompt_ids: Int32Array
    """int32 [N_semantic_prompt]: context of the CoT, from BOS."""
    cot_ids: Int32Array
    """int32 [N_cot]: the semantic CoT as sampled; ends with EOS unless cut at max_cot_tokens."""
    cot_logprobs: Float32Array
    """float32 [N_cot], nats: under the weights that sampled each token; at temperature 1, with `algorithm.policy:
    guided` at the one it was sampled with."""
    image_prompt_ids: Int32Array
    """int32 [N_image_prompt]: context of the picture, from BOS to begin-of-image."""
    image_ids: Int32Array
    """int32 [N_image]: VQ codes in raster order."""
    image_logprobs: Float32Array
    """float32 [N_image], nats: *conditional* log-probability, though sampling was guided; with `algorithm.policy:
    guided` the guided one, at the temperature it was sampled with."""
    cot_text: str
    """The CoT in words, without special tokens."""
    guidance_scale: float
    seed: int
    cot_versions: Int32Array
    """int32 [N_cot]: the weight version that sampled each token."""
    image_versions: Int32Array
    """int32 [N_image]: likewise. Under which version the context was sampled does not matter to a token: an engine
    computes it again under its new weights, unless `rollout.recompute_on_swap` is false."""
    image_unconditional_logprobs: Float32Array | None = None
    """float32 [N_image], nats, at temperature 1: of the same tokens under the unconditional stream, which sees the
    picture so far and no prompt. None without guidance. For objectives that weigh tokens by what the prompt says to
    them, as the log-ratio of the two (arXiv 2605.29198)."""
    cot_context_version: int | None = None
    """The version under which the context was begun, by an engine that keeps keys and values over new weights: tokens
    of later versions are sampled with a stale context. None: by an engine that computes them again."""
    image_context_version: int | None = None
    """Likewise."""

    def whole_versions(self, phase: str) -> Int32Array:
        """int32 [N]: the weight version that each token *and its context* are of, so that a forward pass under it finds
        the log-probability that was recorded; STALE_CONTEXT where there is none."""
        of_cot = (self.cot_versions, self.cot_context_version)
        versions, context = of_cot if phase == "cot" else (self.image_versions, self.image_context_version)
        if context is None:
            return versions
        return np.where(versions == context, versions, np.int32(STALE_CONTEXT))

    @property
    def oldest_weight_version(self) -> int:
        """Of all its tokens."""
        return int(min(versions.min() for versions in (self.cot_versions, self.image_versions) if len(versions)))

    @property
    def newest_weight_version(self) -> int:
        """Of all its tokens."""
        return int(max(versions.max() for versions in (self.cot_versions, self.image_versions) if len(versions)))

    def num_tokens(self, phases: Collection[str] = ("cot", "image")) -> int:
        """Sampled tokens of these phases."""
        lengths = {"cot": len(self.cot_ids), "image": len(self.image_ids)}
        return sum(lengths[phase] for phase in phases)


@dataclass(frozen=True, slots=True)
class GroupRollout:
    """The G trajectories of one prompt. Produced by a rollout worker; their pictures travel beside
    it as one uint8 array [G, height, width, 3], and never reach the learner."""

    request: GroupRequest
    trajectories: tuple[Trajectory, ...]
    worker_id: str
    started_s: float
    """Unix time at which the first token was asked for."""
    finished_s: float


@dataclass(frozen=True, slots=True)
class Score:
    """What one reward says of one picture. Produced by a Reward."""

    value: float | None
    """Finite; its range is the reward's own. None: the reward does not apply to this prompt; it is left out of the
    combination, not scored 0."""
    parts: Mapping[str, Any] = field(default_factory=dict)
    """Why: objects found, boxes, answers. Plain values, shown to people."""

    @property
    def applicable(self) -> bool:
        """Whether the reward applies to the prompt."""
        return self.value is not None


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with its rewards. Produced by the reward pool; consumed by the learner."""

    rollout: GroupRollout
    rewards: Float32Array
    """float32 [G]: the combined reward."""
    reward_columns: Mapping[str, Float32Array]
    """name -> float32 [G]: each reward as it was given; NaN where it was not applicable."""
    explanations: tuple[str, ...]
    """G texts for people."""
    scored_s: float
    """Seconds from the end of the rollout to the last score."""


@dataclass(frozen=True, slots=True)
class TrajectoryBatch:
    """All groups of one optimizer step, in order of `sequence`. Produced by the trajectory queue;
    consumed by every learner rank, which takes its own share."""

    step: int
    groups: tuple[ScoredGroup, ...]

    @property
    def num_trajectories(self) -> int:
        return sum(len(group.rollout.trajectories) for group in self.groups)


class WeightVersion(NamedTuple):
    """A version of the learner's weights. A learner that goes on from a checkpoint makes versions of the same
    number again, with other weights: they are told apart by its life."""

    life: int = 0
    """How often the run's learner has been started again; goes up only."""
    number: int = 0
    """Optimizer steps made."""


NO_VERSION: Final = WeightVersion(-1, 0)
"""Older than every version there is."""


@dataclass(frozen=True, slots=True)
class WeightBucket:
    """Some tensors of one weight version as bytes. Produced by learner rank 0; consumed by engines.

    Raw bytes, since NumPy has no bfloat16; each tensor is C-contiguous.
    """

    names: tuple[str, ...]
    """Parameter names of the Hugging Face checkpoint."""
    dtypes: tuple[str, ...]
    """`float32` or `bfloat16`, per tensor."""
    shapes: tuple[tuple[int, ...], ...]
    arrays: tuple[UInt8Array, ...]
    """uint8 [bytes], per tensor; read-only where they came through Ray's object store."""


BucketStream = Iterable[WeightBucket] | AsyncIterable[WeightBucket]
"""The buckets of one weight version, at hand or as they arrive."""


TensorInfo = tuple[str, str, Sequence[int]]
"""Name, dtype (`float32` or `bfloat16`) and shape of a tensor whose bytes travel by another way."""


@dataclass(frozen=True, slots=True)
class GroupPlace:
    """One member's place in a weight-transfer group that is to be formed. All of it can be written as JSON."""

    master_address: str
    master_port: int
    """At which rank 0 waits for the others."""
    rank: int
    world_size: int
    patience_s: float
    """How long nothing may move before the group counts as failed; forming it may take as long."""
    transport: Literal["nccl", "ipc"] = "nccl"
    """nccl: broadcast, on CPUs gloo's. ipc: members of one machine open rank 0's memory, on a GPU by CUDA IPC."""


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**31) that depends on every part, and on nothing else.

    A hash and not `seed + i`: neighbouring runs, groups and trajectories must not share streams.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**31
