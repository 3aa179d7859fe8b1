"""Chunked log-probabilities against the plain computation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from learner.logprobs import chunked_logprobs


def plain_logprobs(hidden: Tensor, head: nn.Module, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_probabilities = head(hidden).log_softmax(-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return log_probabilities.gather(-1, targets[:, None])[:, 0], entropy


def make_case(num_positions: int, vocabulary: int = 11) -> tuple[Tensor, nn.Module, Tensor]:
    torch.manual_seed(num_positions)
    head = nn.Sequential(nn.Linear(5, 8), nn.GELU(), nn.Linear(8, vocabulary)).double()
    hidden = torch.randn(num_positions, 5, dtype=torch.float64, requires_grad=True)
    return hidden, head, torch.randint(0, vocabulary, (num_positions,))


@pytest.mark.parametrize("chunk_size", [1, 4, 7, 12, 100])
def test_values_and_gradients_equal_the_plain_computation(chunk_size: int) -> None:
    hidden, head, targets = make_case(12)
    weights = torch.randn(12, dtype=torch.float64)
    results = []
    for logprobs, entropy in (
        plain_logprobs(hidden, head, targets),
        chunked_logprobs(hidden, head, targets, chunk_size),
    ):
        gradients = torch.autograd.grad((logprobs * weights).sum(), [hidden, *head.parameters()])
        results.append([logprobs.detach(), entropy.detach(), *gradients])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_the_entropy_carries_no_gradient() -> None:
    hidden, head, targets = make_case(6)
    _, entropy = chunked_logprobs(hidden, head, targets, 4)
    assert not entropy.requires_grad


def test_half_precision_logits_are_normalised_in_float32() -> None:
    torch.manual_seed(0)
    head = nn.Linear(5, 300).bfloat16()
    hidden, targets = torch.randn(9, 5).bfloat16(), torch.arange(9)
    logprobs, entropy = chunked_logprobs(hidden, head, targets, 4)
    assert (logprobs.dtype, entropy.dtype) == (torch.float32, torch.float32)
    expected = head(hidden).float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprobs, expected)


def test_a_token_without_probability_has_minus_infinity_and_a_finite_entropy() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    logprobs, entropy = chunked_logprobs(logits, nn.Identity(), torch.tensor([1]), 1)
    assert logprobs.item() == -math.inf
    assert entropy.item() == pytest.approx(math.log(2))


def test_no_position_gives_no_logprob_and_a_gradient_of_zero() -> None:
    hidden, head, targets = make_case(0)
    logprobs, entropy = chunked_logprobs(hidden, head, targets, 4)
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, 5)


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


@pytest.mark.parametrize("num_positions", [64, 1024])
def test_no_tensor_is_larger_than_one_chunk_of_logits_forward_or_backward(num_positions: int) -> None:
    vocabulary, chunk_size, width = 500, 16, 4
    head = nn.Linear(width, vocabulary)
    hidden = torch.randn(num_positions, width, requires_grad=True)
    targets = torch.randint(0, vocabulary, (num_positions,))
    with LargestTensor() as largest:
        chunked_logprobs(hidden, head, targets, chunk_size)[0].sum().backward()
    assert largest.num_elements == chunk_size * vocabulary


def test_nothing_of_the_vocabulary_is_kept_for_backward() -> None:
    vocabulary, num_positions = 500, 256
    head = nn.Linear(4, vocabulary)
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = torch.randn(num_positions, 4, requires_grad=True)
        chunked_logprobs(hidden, head, torch.zeros(num_positions, dtype=torch.int64), 16)
    assert max(saved, default=0) < 16 * vocabulary


def test_wrong_shapes_are_refused() -> None:
    hidden, head, targets = make_case(4)
    with pytest.raises(ValueError, match=r"hidden must be \[T, d\]"):
        chunked_logprobs(hidden[None], head, targets, 2)
    with pytest.raises(ValueError, match=r"targets \[T\]"):
        chunked_logprobs(hidden, head, targets[:3], 2)
    with pytest.raises(ValueError, match="chunk_size"):
        chunked_logprobs(hidden, head, targets, 0)


def guided_case(num_positions: int) -> tuple[Tensor, nn.Module, Tensor, Tensor]:
    """hidden [T, 2, d], head, targets, guidance scales [T]."""
    _, head, targets = make_case(num_positions)
    hidden = torch.randn(num_positions, 2, 5, dtype=torch.float64, requires_grad=True)
    return hidden, head, targets, torch.linspace(1.0, 5.0, num_positions, dtype=torch.float64)


@pytest.mark.parametrize("chunk_size", [1, 5, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_guided_values_and_gradients_equal_the_plain_computation(chunk_size: int, temperature: float) -> None:
    hidden, head, targets, scales = guided_case(12)
    logits = torch.stack([head(u) + w * (head(c) - head(u)) for (c, u), w in zip(hidden, scales, strict=True)])
    log_probabilities = (logits / temperature).log_softmax(-1)
    expected = log_probabilities.gather(-1, targets[:, None])[:, 0]
    expected_entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    actual, entropy = chunked_logprobs(
        hidden, head, targets, chunk_size, guidance_scales=scales, temperature=temperature
    )
    weights = torch.randn(12, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad((x * weights).sum(), [hidden, *head.parameters()]) for x in (actual, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 5, 100])
def test_the_gradient_of_the_entropy_equals_the_plain_one(chunk_size: int, guided: bool) -> None:
    if guided:
        hidden, head, targets, scales = guided_case(12)
        logits = head(hidden[:, 1]) + scales[:, None] * (head(hidden[:, 0]) - head(hidden[:, 1]))
    else:
        hidden, head, targets = make_case(12)
        logits, scales = head(hidden), None
    log_probabilities = logits.log_softmax(-1)
    expected = -(log_probabilities.exp() * log_probabilities).sum(-1)
    _, entropy = chunked_logprobs(hidden, head, targets, chunk_size, guidance_scales=scales, entropy_gradient=True)
    weights = torch.randn(12, dtype=torch.float64)
    gradients = [torch.autograd.grad((x * weights).sum(), [hidden, *head.parameters()]) for x in (entropy, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-12)


def test_a_token_without_probability_leaves_the_gradient_of_the_entropy_finite() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.5]], requires_grad=True)
    _, entropy = chunked_logprobs(logits, nn.Identity(), torch.tensor([0]), 1, entropy_gradient=True)
    entropy.sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert logits.grad[0, 1] == 0.0


@pytest.mark.parametrize("guided", [False, True])
def test_variants_grow_with_the_chunk_and_not_with_the_number_of_positions(guided: bool) -> None:
    vocabulary, chunk_size, width, num_positions = 500, 16, 4, 512
    head = nn.Linear(width, vocabulary)
    hidden = torch.randn(num_positions, *([2] if guided else []), width, requires_grad=True)
    scales = torch.full((num_positions,), 5.0) if guided else None
    targets = torch.randint(0, vocabulary, (num_positions,))
    with LargestTensor() as largest:
        logprobs, entropy = chunked_logprobs(
            hidden, head, targets, chunk_size, guidance_scales=scales, entropy_gradient=True
        )
        (logprobs.sum() + entropy.sum()).backward()
    assert largest.num_elements == (1 + guided) * chunk_size * vocabulary


def test_wrong_shapes_of_guidance_are_refused() -> None:
    hidden, head, targets, scales = guided_case(4)
    with pytest.raises(ValueError, match=r"hidden must be \[T, 2, d\]"):
        chunked_logprobs(hidden[:, 0], head, targets, 2, guidance_scales=scales)
    with pytest.raises(ValueError, match=r"guidance_scales must be \[T\]"):
        chunked_logprobs(hidden, head, targets, 2, guidance_scales=scales[:3])
