"""Shares, padding and the refusals of a step's plan."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.errors import LearnerError
from learner.batch import PlanSettings, StepPlan, plan_step
from learner.micro_batch import MicroBatch, right_pad
from learner.objective import AdvantageSettings
from learner.step_sums import figures_of_plan
from rollout.records import STALE_CONTEXT, Trajectory, TrajectoryBatch
from tests.records import make_scored_group, make_trajectory

EPSILON = 1e-4
COT_LENGTHS = (3, 9, 1, 5, 4, 4, 2, 7)


def make_batch(num_groups: int = 2, group_size: int = 4) -> TrajectoryBatch:
    """Groups whose trajectories differ in length and reward, and can be told apart by their tokens."""
    groups = []
    for sequence in range(num_groups):
        group = make_scored_group(sequence, rewards=[0.1 * (sequence + 1) * place for place in range(group_size)])
        trajectories = []
        for place in range(group_size):
            number = sequence * group_size + place
            trajectory = make_trajectory(num_cot=COT_LENGTHS[number % len(COT_LENGTHS)], num_image=4)
            trajectories.append(replace(trajectory, image_prompt_ids=np.array([1, 10 + number, 4], np.int32)))
        rollout = replace(group.rollout, trajectories=tuple(trajectories))
        groups.append(replace(group, rollout=rollout))
    return TrajectoryBatch(step=3, groups=tuple(groups))


def plan(
    batch: TrajectoryBatch, rank: int = 0, num_ranks: int = 1, micro_batch_size: int = 2, **settings: object
) -> StepPlan:
    return plan_step(batch, PlanSettings(num_ranks, micro_batch_size, AdvantageSettings(EPSILON), **settings), rank)


def test_the_share_of_cots_that_were_cut_off_is_told() -> None:
    batch = make_batch()
    lengths = [len(trajectory.cot_ids) for group in batch.groups for trajectory in group.rollout.trajectories]
    longest = max(lengths)
    told = figures_of_plan(plan(batch, max_cot_tokens=longest))
    assert told["cot_length/clip_ratio"] == lengths.count(longest) / len(lengths) > 0
    assert figures_of_plan(plan(batch, max_cot_tokens=longest + 1))["cot_length/clip_ratio"] == 0
    assert math.isnan(figures_of_plan(plan(batch))["cot_length/clip_ratio"])


def micro_batches_of(plan: StepPlan) -> list[MicroBatch]:
    return [micro_batch for mini_batch in plan.mini_batches for micro_batch in mini_batch.micro_batches]


def rows(micro_batches: list[MicroBatch]) -> dict[int, tuple[list[int], list[float], list[float], float]]:
    """Mark of each trajectory -> its CoT, behaviour log-probabilities of both phases, and advantage; no padding."""
    result = {}
    for micro_batch in micro_batches:
        cot, image = micro_batch.phases
        for row in range(len(cot.advantages)):

            def real(values: Tensor, phase: object, row: int = row) -> list[float]:
                return values[row][phase.tokens.target_mask[row]].tolist()  # type: ignore[attr-defined]

            mark = int(image.tokens.context_ids[row, 1])
            assert mark not in result, "a trajectory was dealt twice"
            result[mark] = (
                real(cot.tokens.target_ids, cot),
                real(cot.behaviour_logprobs, cot),
                real(image.behaviour_logprobs, image),
                float(image.advantages[row]),
            )
            assert cot.advantages[row] == image.advantages[row]
    return result


def all_trajectories(batch: TrajectoryBatch) -> list[Trajectory]:
    return [trajectory for group in batch.groups for trajectory in group.rollout.trajectories]


@pytest.mark.parametrize(("num_ranks", "micro_batch_size"), [(1, 1), (1, 8), (2, 2), (4, 1), (4, 2)])
def test_every_trajectory_is_dealt_once_whole_and_with_its_own_advantage(num_ranks: int, micro_batch_size: int) -> None:
    batch = make_batch()
    plans = [plan(batch, rank, num_ranks, micro_batch_size) for rank in range(num_ranks)]
    dealt = rows([micro_batch for one in plans for micro_batch in micro_batches_of(one)])
    rewards = np.stack([group.rewards for group in batch.groups]).astype(np.float64)
    advantages = (
        (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + EPSILON)
    ).ravel()
    assert sorted(dealt) == [10 + number for number in range(8)]
    for number, trajectory in enumerate(all_trajectories(batch)):
        cot, cot_logprobs, image_logprobs, advantage = dealt[10 + number]
        assert cot == trajectory.cot_ids.tolist()
        np.testing.assert_array_equal(np.float32(cot_logprobs), trajectory.cot_logprobs)
        np.testing.assert_array_equal(np.float32(image_logprobs), trajectory.image_logprobs)
        assert advantage == pytest.approx(advantages[number], rel=1e-5)


def test_a_micro_batch_has_the_same_shapes_on_every_rank() -> None:
    batch = make_batch()
    first, second = (plan(batch, rank, num_ranks=2) for rank in range(2))
    for one, other in zip(micro_batches_of(first), micro_batches_of(second), strict=True):
        for a, b in zip(one.phases, other.phases, strict=True):
            assert a.tokens.context_ids.shape == b.tokens.context_ids.shape
            assert a.tokens.target_ids.shape == b.tokens.target_ids.shape


def test_the_figures_of_a_plan_are_of_the_whole_batch_on_every_rank() -> None:
    batch = make_batch()
    for rank in range(2):
        one = plan(batch, rank, num_ranks=2)
        assert one.num_tokens_by_phase == {"cot": sum(COT_LENGTHS), "image": 8 * 4}
        assert one.mini_batches[0].loss_divisor == one.num_tokens == sum(COT_LENGTHS) + 8 * 4
        assert one.num_trajectories == 8
        assert one.groups_without_spread == 0.0
        assert float(one.advantages.std()) == pytest.approx(0.926, abs=1e-3)


def test_trajectories_of_like_length_pass_together() -> None:
    widths = [micro_batch.phases[0].tokens.target_ids.shape[1] for micro_batch in micro_batches_of(plan(make_batch()))]
    assert widths == [2, 4, 5, 9]


def test_the_same_batch_gives_the_same_plan() -> None:
    first, second = plan(make_batch()), plan(make_batch())
    for one, other in zip(micro_batches_of(first), micro_batches_of(second), strict=True):
        assert torch.equal(one.phases[0].tokens.target_ids, other.phases[0].tokens.target_ids)


def test_a_group_of_equal_rewards_is_counted_and_teaches_nothing() -> None:
    batch = make_batch()
    dull = replace(batch.groups[1], rewards=np.full(4, 0.7, np.float32))
    one = plan(replace(batch, groups=(batch.groups[0], dull)))
    assert one.groups_without_spread == 0.5
    assert [row[3] for mark, row in rows(micro_batches_of(one)).items() if mark >= 14] == [0.0] * 4


@pytest.mark.parametrize("bad", [[0, math.inf, 0, 1], [math.nan, math.nan, 0.5, math.nan]])
def test_an_infinite_reward_or_a_lone_one_is_refused_with_step_group_and_prompt(bad: list[float]) -> None:
    batch = make_batch()
    broken = replace(batch.groups[1], rewards=np.array(bad, np.float32))
    with pytest.raises(LearnerError, match=r"step 3, group 1 \(prompt test:1\).*infinite, or fewer than two are left"):
        plan(replace(batch, groups=(batch.groups[0], broken)))


@pytest.mark.parametrize("loss_normalization", ["token", "sequence", "dr_grpo"])
def test_a_trajectory_without_a_reward_counts_nowhere_and_the_others_as_if_it_were_not_there(
    loss_normalization: str,
) -> None:
    batch = make_batch()
    rewards = np.array([0.2, math.nan, 0.9, 0.4], np.float32)
    lacking = replace(batch, groups=(batch.groups[0], replace(batch.groups[1], rewards=rewards)))
    one = plan(lacking, micro_batch_size=1, loss_normalization=loss_normalization, max_cot_tokens=9)
    advantages = {}
    for cot, image in (micro_batch.phases for micro_batch in micro_batches_of(one)):
        number = int(image.tokens.context_ids[0, 1]) - 10
        num_counting = int(cot.tokens.target_mask.sum() + image.tokens.target_mask.sum())
        assert num_counting == (0 if number == 5 else COT_LENGTHS[number] + 4)
        assert (image.row_weights is None) == (loss_normalization != "sequence")
        if image.row_weights is not None:
            assert float(image.row_weights) == pytest.approx(0 if number == 5 else 1 / num_counting)
        advantages[number] = float(image.advantages)
    present = rewards[[0, 2, 3]]
    expected = (present - present.mean()) / (present.std(ddof=1) + EPSILON)
    assert [advantages[number] for number in (4, 6, 7)] == pytest.approx(expected.tolist(), rel=1e-5)
    assert advantages[5] == 0.0
    num_tokens = sum(COT_LENGTHS) - COT_LENGTHS[5] + 7 * 4
    divisors = {"token": num_tokens, "sequence": 7, "dr_grpo": 7 * (9 + 4)}
    assert one.mini_batches[0].loss_divisor == divisors[loss_normalization]
    assert (one.num_tokens, one.num_trajectories, len(one.advantages)) == (num_tokens, 7, 7)


def test_a_reward_of_one_phase_trains_its_tokens_alone() -> None:
    batch = make_batch()
    plans, pictures = np.array([1, 0, 0, 0], np.float32), np.array([0, 0, 2, 4], np.float32)
    groups = tuple(
        replace(
            group, rewards=plans + pictures, reward_columns={"plans": plans, "pictures": pictures, "watched": -plans}
        )
        for group in batch.groups
    )
    settings = AdvantageSettings(
        EPSILON,
        "group_mean_only",
        {"plans": 2.0, "pictures": 1.0},
        rewards_by_phase={"cot": frozenset(["plans"]), "image": frozenset(["pictures"])},
    )
    one = plan_step(replace(batch, groups=groups), PlanSettings(1, 8, settings), rank=0)
    cot, image = micro_batches_of(one)[0].phases
    order = np.argsort([len(t.cot_ids) for t in all_trajectories(batch)], kind="stable")
    np.testing.assert_allclose(cot.advantages.numpy(), np.tile(2 * plans - 0.5, 2)[order], atol=1e-6)
    np.testing.assert_allclose(image.advantages.numpy(), np.tile(pictures - 1.5, 2)[order], atol=1e-6)


def test_rewards_that_do_not_fit_the_trajectories_are_refused() -> None:
    batch = make_batch(num_groups=1)
    broken = replace(batch.groups[0], rewards=np.zeros(3, np.float32))
    with pytest.raises(LearnerError, match="3 rewards for 4 trajectories"):
        plan(replace(batch, groups=(broken,)))


def test_groups_of_different_sizes_are_refused() -> None:
    batch = TrajectoryBatch(0, (make_scored_group(0, [0.0, 1.0]), make_scored_group(1, [0.0, 1.0, 0.5])))
    with pytest.raises(LearnerError, match=r"group 1 .*3 trajectories, but the batch's first group has 2"):
        plan(batch)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(LearnerError, match=r"8 trajectories do not divide by 3 rank\(s\) x learner.micro_batch_size 2"):
        plan(make_batch(), num_ranks=3)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(LearnerError, match="no group"):
        plan(TrajectoryBatch(0, ()))


def test_padding_is_on_the_right() -> None:
    padded, lengths = right_pad([np.array([3, 4], np.int32), np.array([5], np.int32)], width=3)
    assert padded.tolist() == [[3, 4, 0], [5, 0, 0]]
    assert (padded.dtype, lengths.tolist()) == (torch.int64, [2, 1])


def test_mini_batches_are_runs_of_groups_with_advantages_of_the_whole_batch() -> None:
    batch = make_batch(num_groups=4)
    whole, cut = plan(batch), plan(batch, num_mini_batches=2)
    everything = rows(micro_batches_of(whole))
    assert len(cut.mini_batches) == 2
    for number, mini_batch in enumerate(cut.mini_batches):
        own = rows(list(mini_batch.micro_batches))
        assert sorted(own) == [10 + place for place in range(8 * number, 8 * number + 8)]
        assert all(own[mark] == everything[mark] for mark in own)
        assert mini_batch.loss_divisor == sum(COT_LENGTHS) + 8 * 4
    with pytest.raises(LearnerError, match=r"4 groups do not divide into learner\.mini_batches 3"):
        plan(batch, num_mini_batches=3)


def test_advantages_may_be_normalized_over_the_batch_whatever_the_mini_batches() -> None:
    batch, settings = make_batch(), AdvantageSettings(EPSILON, "batch")
    plans = [plan_step(batch, PlanSettings(1, 2, settings, num_mini_batches=count), 0) for count in (1, 2)]
    assert torch.equal(plans[0].advantages, plans[1].advantages)
    assert float(plans[0].advantages.std()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("phase", "num_tokens"), [("cot", sum(COT_LENGTHS)), ("image", 8 * 4)])
def test_a_phase_that_is_not_trained_is_neither_passed_nor_counted(phase: str, num_tokens: int) -> None:
    one = plan(make_batch(), phases=(phase,))
    assert one.num_tokens == one.mini_batches[0].loss_divisor == num_tokens
    assert {batch.tokens.phase for micro_batch in micro_batches_of(one) for batch in micro_batch.phases} == {phase}


def test_sequence_normalization_weighs_every_trajectory_alike() -> None:
    one = plan(make_batch(), loss_normalization="sequence")
    assert one.mini_batches[0].loss_divisor == 8
    for micro_batch in micro_batches_of(one):
        cot, image = micro_batch.phases
        lengths = (cot.tokens.target_mask.sum(1) + image.tokens.target_mask.sum(1)).float()
        for phase in (cot, image):
            assert phase.row_weights is not None
            torch.testing.assert_close(phase.row_weights * lengths, torch.ones(2))


def test_dr_grpo_divides_by_a_constant() -> None:
    one = plan(make_batch(), loss_normalization="dr_grpo", max_cot_tokens=20)
    assert one.mini_batches[0].loss_divisor == 8 * (20 + 4)
    assert all(phase.row_weights is None for micro_batch in micro_batches_of(one) for phase in micro_batch.phases)


def test_rewards_are_normalized_one_by_one_from_their_columns() -> None:
    batch = make_batch()
    rng = np.random.default_rng(0)
    columns = [{"a": rng.random(4).astype(np.float32), "b": rng.random(4).astype(np.float32)} for _ in batch.groups]
    groups = [replace(group, reward_columns=own) for group, own in zip(batch.groups, columns, strict=True)]
    batch = replace(batch, groups=tuple(groups))
    weights = {"a": 1.0, "b": 2.0}
    settings = AdvantageSettings(EPSILON, "group_mean_only", weights, {"a", "b"})
    one = plan_step(batch, PlanSettings(1, 2, settings), 0)
    for number, own in enumerate(columns):
        z = {name: (column - column.mean()) / (column.std(ddof=1) + EPSILON) for name, column in own.items()}
        expected = z["a"] + 2 * z["b"]
        np.testing.assert_allclose(one.advantages[4 * number : 4 * number + 4].numpy(), expected, rtol=1e-4, atol=1e-5)
    broken = replace(batch, groups=(replace(groups[0], reward_columns={"a": columns[0]["a"]}), groups[1]))
    with pytest.raises(LearnerError, match="must have the same names"):
        plan_step(broken, PlanSettings(1, 2, settings), 0)


def test_tokens_with_a_stale_context_are_of_no_version_of_the_learner() -> None:
    group = make_scored_group(0, [0.0, 1.0])
    kept, begun_late = group.rollout.trajectories
    images = np.array([3, 3, 4, 4], np.int32)
    kept = replace(kept, image_versions=images, image_context_version=3)
    begun_late = replace(begun_late, image_versions=images, image_context_version=2)  # submitted before version 3 came
    group = replace(group, rollout=replace(group.rollout, trajectories=(kept, begun_late)))
    _, image = micro_batches_of(plan(TrajectoryBatch(4, (group,))))[0].phases
    assert image.versions.tolist() == [[3, 3, STALE_CONTEXT, STALE_CONTEXT], [STALE_CONTEXT] * 4]
    assert image.versions_of_all_ranks == {3, STALE_CONTEXT}
    assert (kept.oldest_weight_version, kept.newest_weight_version) == (0, 4), "staleness counts what sampled"


def test_each_token_keeps_the_version_that_sampled_it_and_every_rank_knows_which_there_are() -> None:
    group = make_scored_group(0, [0.0, 1.0])  # CoTs of 2 and 3 tokens, pictures of 4
    short, long = group.rollout.trajectories
    short = replace(short, cot_versions=np.array([3, 3], np.int32), image_versions=np.array([3, 3, 4, 4], np.int32))
    long = replace(long, cot_versions=np.array([2, 2, 3], np.int32), image_versions=np.full(4, 3, np.int32))
    group = replace(group, rollout=replace(group.rollout, trajectories=(short, long)))
    batch = TrajectoryBatch(3, (group,))
    cot, image = micro_batches_of(plan(batch))[0].phases
    assert cot.versions[cot.tokens.target_mask].tolist() == [3, 3, 2, 2, 3]
    assert image.versions.tolist() == [[3, 3, 4, 4], [3, 3, 3, 3]]
    settings = PlanSettings(2, 1, AdvantageSettings(EPSILON))
    for rank in (0, 1):
        cot, image = micro_batches_of(plan_step(batch, settings, rank))[0].phases
        assert (cot.versions_of_all_ranks, image.versions_of_all_ranks) == ({2, 3}, {3, 4})


def sharing_batch(images_per_cot: int, num_groups: int = 2) -> TrajectoryBatch:
    """`make_batch` with groups of 4 in which so many pictures share a CoT."""
    batch = make_batch(num_groups)
    groups = []
    for group in batch.groups:
        own = group.rollout.trajectories
        cots = [own[index - index % images_per_cot] for index in range(len(own))]
        trajectories = tuple(
            replace(one, cot_ids=cot.cot_ids, cot_logprobs=cot.cot_logprobs, cot_versions=cot.cot_versions)
            for one, cot in zip(own, cots, strict=True)
        )
        request = replace(group.rollout.request, images_per_cot=images_per_cot)
        groups.append(replace(group, rollout=replace(group.rollout, request=request, trajectories=trajectories)))
    return replace(batch, groups=tuple(groups))


@pytest.mark.parametrize("images_per_cot", [2, 4])
@pytest.mark.parametrize(("num_ranks", "micro_batch_size"), [(1, 8), (1, 4), (2, 2), (2, 1), (4, 2)])
def test_pictures_of_one_cot_are_dealt_together_each_once_with_what_is_its_own(
    images_per_cot: int, num_ranks: int, micro_batch_size: int
) -> None:
    batch = sharing_batch(images_per_cot)
    plans = [plan(batch, rank, num_ranks, micro_batch_size) for rank in range(num_ranks)]
    micro_batches = [micro_batch for one in plans for micro_batch in micro_batches_of(one)]
    alone = tuple(
        replace(group, rollout=replace(group.rollout, request=replace(group.rollout.request, images_per_cot=1)))
        for group in batch.groups
    )
    assert rows(micro_batches) == rows(micro_batches_of(plan(replace(batch, groups=alone))))
    for micro_batch in micro_batches:
        cot, image = micro_batch.phases
        assert cot.tokens.num_sharing == math.gcd(images_per_cot, micro_batch_size)
        assert image.tokens.num_sharing == 1
        whole = cot.tokens.distinct()
        assert len(whole.target_ids) == micro_batch_size // cot.tokens.num_sharing
        for row, ids in enumerate(cot.tokens.target_ids):
            assert ids.equal(whole.target_ids[row // cot.tokens.num_sharing])
    for first, second in zip(*(micro_batches_of(one) for one in (plans[0], plans[-1])), strict=True):
        assert first.phases[0].tokens.target_ids.shape == second.phases[0].tokens.target_ids.shape


def test_pictures_that_should_share_a_cot_and_do_not_are_refused() -> None:
    batch = sharing_batch(2)
    first = batch.groups[0].rollout
    other = replace(first.trajectories[1], cot_ids=first.trajectories[1].cot_ids + np.int32(1))
    broken = replace(batch.groups[0], rollout=replace(first, trajectories=(first.trajectories[0], other)))
    with pytest.raises(LearnerError, match=r"trajectory 1 of group 0 has another CoT .*2 pictures are drawn from each"):
        plan(replace(batch, groups=(replace(broken, rewards=broken.rewards[:2]),)))
