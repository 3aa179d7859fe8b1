"""Log-probabilities in chunks of the vocabulary, against the plain computation that holds all logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from learner.objective.logprobs import LogprobHead, chunked_logprobs, entries_at_once

VOCABULARY = 11
WIDTH = 5
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def plain_logprobs(hidden: Tensor, head: nn.Linear, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    log_probabilities = (head(hidden) / temperature).log_softmax(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return log_probabilities.gather(-1, targets[:, None])[:, 0], entropy


def make_case(num_positions: int, *, bias: bool = True) -> tuple[Tensor, nn.Linear, Tensor]:
    """hidden [T, d], the last layer and targets [T]; among these both ends of the vocabulary."""
    torch.manual_seed(num_positions)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias).double()
    hidden = 3 * torch.randn(num_positions, WIDTH, dtype=torch.float64)
    targets = torch.randint(0, VOCABULARY, (num_positions,))
    targets[:2] = torch.tensor([0, VOCABULARY - 1])[:num_positions]
    return hidden.requires_grad_(), head, targets


def in_chunks(layer: nn.Linear, chunk_size: int, num_positions: int) -> LogprobHead:
    """A head whose memory is so much that so many positions pass in chunks of this size."""
    return LogprobHead(layer, 3 * 4 * chunk_size * num_positions)


def test_a_chunk_takes_the_memory_that_it_is_given_however_long_the_micro_batch() -> None:
    mib = 2**20
    for num_positions in (1, 160, 8 * 160, 8 * 576):
        entries = entries_at_once(128 * mib, num_positions)
        assert 3 * 4 * entries * num_positions <= 128 * mib < 3 * 4 * (entries + 1) * num_positions
    assert (entries_at_once(1, 10_000), entries_at_once(mib, 0)) == (1, 87381), (
        "one entry at least, whatever the memory"
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_size", [1, 4, 10, 11, 100])
def test_values_and_gradients_equal_the_plain_computation(chunk_size: int, temperature: float, bias: bool) -> None:
    hidden, head, targets = make_case(12, bias=bias)
    weights = torch.randn(12, dtype=torch.float64)
    results = []
    for logprobs, entropy in (
        plain_logprobs(hidden, head, targets, temperature),
        in_chunks(head, chunk_size, len(hidden))(hidden, targets, temperature=temperature),
    ):
        gradients = torch.autograd.grad((logprobs * weights).sum(), [hidden, *head.parameters()])
        results.append([logprobs.detach(), entropy.detach(), *gradients])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_size", [1, 4, 100])
def test_the_gradient_of_both_outputs_together_equals_the_plain_one(chunk_size: int, temperature: float) -> None:
    hidden, head, targets = make_case(12)
    weights, entropy_weights = torch.randn(2, 12, dtype=torch.float64)
    gradients = []
    for logprobs, entropy in (
        plain_logprobs(hidden, head, targets, temperature),
        in_chunks(head, chunk_size, len(hidden))(hidden, targets, temperature=temperature, entropy_gradient=True),
    ):
        total = (logprobs * weights + entropy * entropy_weights).sum()
        gradients.append(torch.autograd.grad(total, [hidden, *head.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], **EXACT)


def test_gradients_equal_finite_differences() -> None:
    hidden, head, targets = make_case(3)
    inputs = (hidden, *(parameter.detach().requires_grad_() for parameter in head.parameters()))

    def both(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return chunked_logprobs(hidden, weight, bias, targets, 4, temperature=0.8, entropy_gradient=True)

    assert torch.autograd.gradcheck(both, inputs)


def test_the_entropy_carries_no_gradient_unless_asked_for() -> None:
    hidden, head, targets = make_case(6)
    logprobs, entropy = in_chunks(head, 4, len(hidden))(hidden, targets)
    assert (logprobs.requires_grad, entropy.requires_grad) == (True, False)


def test_a_frozen_layer_gets_no_gradient_and_passes_one_on() -> None:
    hidden, head, targets = make_case(6)
    in_chunks(head.requires_grad_(False), 4, len(hidden))(hidden, targets)[0].sum().backward()
    assert head.weight.grad is None
    assert hidden.grad is not None


def test_only_the_layer_may_train() -> None:
    hidden, head, targets = make_case(6)
    fixed = hidden.detach()
    in_chunks(head, 4, len(fixed))(fixed, targets)[0].sum().backward()
    expected = torch.autograd.grad(plain_logprobs(fixed, head, targets)[0].sum(), head.weight)[0]
    torch.testing.assert_close(head.weight.grad, expected, **EXACT)


def test_the_head_keeps_the_names_and_the_parameters_of_its_layer() -> None:
    _, layer, _ = make_case(1)
    assert [(name, id(value)) for name, value in in_chunks(layer, 4, 1).named_parameters()] == [
        ("weight", id(layer.weight)),
        ("bias", id(layer.bias)),
    ]


def test_half_precision_logits_are_normalised_and_added_up_in_float32() -> None:
    torch.manual_seed(0)
    head = nn.Linear(64, 3000).bfloat16()
    hidden, targets = torch.randn(9, 64).bfloat16().requires_grad_(), torch.arange(9)
    logprobs, entropy = in_chunks(head, 10, len(hidden))(hidden, targets)
    assert (logprobs.dtype, entropy.dtype) == (torch.float32, torch.float32)
    expected = head(hidden).float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected)
    actual_gradients, gradients = (
        torch.autograd.grad(values.sum(), [hidden, *head.parameters()]) for values in (logprobs, expected)
    )
    for actual, gradient in zip(actual_gradients, gradients, strict=True):
        assert actual.dtype == torch.bfloat16
        # Two units in the last place of the largest: the plain way rounds the gradients of all logits as well.
        torch.testing.assert_close(actual, gradient, rtol=2**-6, atol=2**-7 * float(gradient.abs().max()))


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_a_token_without_probability_has_minus_infinity_and_leaves_entropy_and_gradient_finite(chunk_size: int) -> None:
    for without in range(3):
        bias = torch.tensor([0.5, 0.5, 0.5])
        bias[without] = -math.inf
        hidden, weight = torch.zeros(2, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
        targets = torch.tensor([without, (without + 1) % 3])
        logprobs, entropy = chunked_logprobs(hidden, weight, bias, targets, chunk_size, entropy_gradient=True)
        assert logprobs.tolist() == [-math.inf, pytest.approx(-math.log(2))]
        assert entropy.tolist() == pytest.approx([math.log(2)] * 2)
        gradients = torch.autograd.grad(100 * entropy.sum() + logprobs[1], [hidden, weight])
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_numbers_are_not_made_to_look_fine(value: float) -> None:
    hidden, head, targets = make_case(3)
    with torch.no_grad():
        hidden[1, 0] = value
    logprobs, entropy = in_chunks(head, 4, len(hidden))(hidden, targets, entropy_gradient=True)
    assert logprobs.isfinite().tolist() == entropy.isfinite().tolist() == [True, False, True]
    (gradient,) = torch.autograd.grad((logprobs + entropy).sum(), hidden)
    assert gradient.isfinite().all(1).tolist() == [True, False, True]


def test_no_position_gives_no_logprob_and_gradients_of_zero() -> None:
    hidden, head, targets = make_case(0)
    logprobs, entropy = in_chunks(head, 4, len(hidden))(hidden, targets)
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, WIDTH)
    assert head.weight.grad is not None
    assert not head.weight.grad.any()


class LargestTensor(TorchDispatchMode):
    """Number of elements of the largest tensor that any operation makes, forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.num_elements = max(self.num_elements, value.numel())
        return result


@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("vocabulary", [500, 5000])
def test_no_tensor_grows_with_the_vocabulary_forward_or_backward(vocabulary: int, entropy_gradient: bool) -> None:
    num_positions, chunk_size, width = 64, 16, 4
    head = in_chunks(nn.Linear(width, vocabulary).requires_grad_(False), chunk_size, num_positions)
    hidden = torch.randn(num_positions, width, requires_grad=True)
    targets = torch.randint(0, vocabulary, (num_positions,))
    with LargestTensor() as largest:
        logprobs, entropy = head(hidden, targets, entropy_gradient=entropy_gradient)
        (logprobs.sum() + (entropy.sum() if entropy_gradient else 0.0)).backward()
    assert largest.num_elements == num_positions * chunk_size


def test_a_layer_that_trains_adds_a_gradient_of_its_own_size_and_no_more() -> None:
    vocabulary, width = 5000, 4
    head = in_chunks(nn.Linear(width, vocabulary, bias=False), 16, 64)
    hidden = torch.randn(64, width, requires_grad=True)
    with LargestTensor() as largest:
        head(hidden, torch.randint(0, vocabulary, (64,)))[0].sum().backward()
    assert largest.num_elements == vocabulary * width


def test_nothing_of_the_logits_is_kept_for_backward() -> None:
    vocabulary, num_positions, width = 500, 256, 4
    head = in_chunks(nn.Linear(width, vocabulary), 16, num_positions)
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    hidden = torch.randn(num_positions, width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        head(hidden, torch.zeros(num_positions, dtype=torch.int64))
    assert max(saved) == vocabulary * width  # the weight itself


def test_wrong_shapes_are_refused() -> None:
    hidden, head, targets = make_case(4)
    with pytest.raises(ValueError, match=r"hidden must be \[T, d\]"):
        in_chunks(head, 2, len(hidden))(hidden[None], targets)
    with pytest.raises(ValueError, match=r"targets \[T\]"):
        in_chunks(head, 2, len(hidden))(hidden, targets[:3])
    with pytest.raises(ValueError, match=r"weight \[V, d\]"):
        in_chunks(head, 2, len(hidden))(hidden[:, :2], targets)
    with pytest.raises(ValueError, match="chunk_size"):
        chunked_logprobs(hidden, head.weight, head.bias, targets, 0)
