"""The one op that every compiled library has, against float64."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

EPS = 1e-5
SHAPES = [(2, 6, 8, 8, 8), (1, 32, 15, 31, 7), (3, 4, 1, 1, 1), (2, 40, 5, 3, 33), (1, 2, 65, 64, 63)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def backend(device: str) -> Any:
    module = importlib.import_module(f"mednext_ops.backends.{device}")
    if module.unavailable() is not None:
        pytest.skip(module.unavailable())
    return module


def exact(input: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    values = input.double().contiguous().reshape(input.shape[0], num_groups, -1)
    variance, mean = torch.var_mean(values, dim=2, correction=0)
    return mean, (variance + EPS).rsqrt()


def check(backend: Any, input: torch.Tensor, num_groups: int) -> None:
    """At most twice the error of torch's own op at that dtype, or half a unit in the last place of the result."""
    results = backend.group_norm_statistics(input, num_groups, EPS)
    values = input.contiguous().reshape(input.shape[0], num_groups, -1)
    own_variance, own_mean = torch.var_mean(values, dim=2, correction=0)
    owns = own_mean, (own_variance + EPS).rsqrt()
    for result, own, expected in zip(results, owns, exact(input, num_groups), strict=True):
        assert result.dtype == torch.float32
        assert result.shape == (input.shape[0], num_groups)
        assert result.is_contiguous()
        error, own_error = ((t.double() - expected).abs().max() for t in (result, own))
        assert error <= max(2 * own_error, 2**-23 * expected.abs().max())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_at_most_twice_that_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, backend: Any, device: str
) -> None:
    input = (torch.randn(shape, device=device) * 2 + 0.5).to(dtype)
    if channels_last:
        input = input.to(memory_format=torch.channels_last_3d)
    for num_groups in {shape[1], 2, 1}:
        check(backend, input, num_groups)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mean", [1e3, -1e4, 1e6])
def test_a_mean_far_larger_than_the_deviation_costs_no_digits(
    mean: float, channels_last: bool, backend: Any, device: str
) -> None:
    input = torch.randn(2, 3, 33, 32, 40, device=device) + mean
    input[0, 0, 0, 0, 0] = 0  # an outlier at the front must not spoil it either
    if channels_last:
        input = input.to(memory_format=torch.channels_last_3d)
    check(backend, input, 3)


def test_every_float16_and_bfloat16_is_read_exactly(backend: Any, device: str) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        values = values[values.float().isfinite()]
        input = values.reshape(-1, 1, 1, 1, 1).to(device)  # a mean of one number is that number
        mean, rstd = backend.group_norm_statistics(input, 1, EPS)
        assert torch.equal(mean.flatten().cpu(), values.float())
        assert torch.allclose(rstd.cpu(), torch.full(rstd.shape, EPS**-0.5), rtol=1e-6)


@pytest.mark.parametrize(
    "cut",
    [
        lambda t: t[:, :, 1:, ::2, 3:-2],
        lambda t: t[:, 1::2],
        lambda t: t[1:],
        lambda t: t.permute(0, 1, 4, 3, 2),
        lambda t: t[:, :, :, :, :1].expand(-1, -1, -1, -1, 5),
    ],
    ids=["space", "channels", "batch", "permuted", "expanded"],
)
def test_slices_and_permutations_give_the_result_of_their_copy(cut: Any, backend: Any, device: str) -> None:
    input = cut(torch.randn(3, 8, 9, 10, 11, device=device))
    sliced = backend.group_norm_statistics(input, 2, EPS)
    copied = backend.group_norm_statistics(input.contiguous(), 2, EPS)
    assert all(torch.equal(a, b) for a, b in zip(sliced, copied, strict=True))


@pytest.mark.parametrize("shape", [(0, 4, 5, 5, 5), (0, 4, 0, 5, 5)])
def test_an_empty_batch_gives_empty_statistics(shape: tuple[int, ...], backend: Any, device: str) -> None:
    mean, rstd = backend.group_norm_statistics(torch.empty(shape, device=device), 2, EPS)
    assert mean.shape == rstd.shape == (0, 2)


def test_empty_groups_and_nan_give_nan_as_in_torch(backend: Any, device: str) -> None:
    for result in backend.group_norm_statistics(torch.empty(2, 4, 0, 5, 5, device=device), 2, EPS):
        assert result.shape == (2, 2)
        assert result.isnan().all()
    input = torch.randn(2, 4, 9, 9, 9, device=device)
    input[1, 0, 4, 4, 4] = float("nan")
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        for result in backend.group_norm_statistics(input.contiguous(memory_format=memory_format), 4, EPS):
            assert result.isnan().nonzero().tolist() == [[1, 0]]


def test_a_constant_has_no_variance(backend: Any, device: str) -> None:
    mean, rstd = backend.group_norm_statistics(torch.full((1, 2, 40, 40, 40), 0.1, device=device), 2, EPS)
    assert torch.equal(mean, torch.full_like(mean, 0.1))
    assert torch.equal(rstd, torch.full_like(rstd, torch.tensor(EPS, dtype=torch.float64).rsqrt().item()))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_does_not_depend_on_the_number_of_threads(dtype: torch.dtype, channels_last: bool) -> None:
    backend = importlib.import_module("mednext_ops.backends.cpu")
    if backend.unavailable() is not None:
        pytest.skip(backend.unavailable())
    input = torch.randn(2, 12, 37, 41, 43).to(dtype)
    if channels_last:
        input = input.to(memory_format=torch.channels_last_3d)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(backend.group_norm_statistics(input, 6, EPS))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_repeats_are_equal_to_the_bit(backend: Any, device: str) -> None:
    input = torch.randn(2, 8, 33, 65, 31, device=device)
    first = backend.group_norm_statistics(input, 8, EPS)
    for _ in range(250 if device == "cuda" else 10):
        again = backend.group_norm_statistics(input, 8, EPS)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
def test_it_runs_on_the_current_stream_and_in_a_graph() -> None:
    backend = importlib.import_module("mednext_ops.backends.cuda")
    if backend.unavailable() is not None:
        pytest.skip(backend.unavailable())
    input = torch.randn(2, 8, 65, 64, 63, device="cuda")
    expected = backend.group_norm_statistics(input, 8, EPS)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = backend.group_norm_statistics(input, 8, EPS)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.parametrize(
    ("shape", "dtype", "num_groups", "sentence"),
    [
        ((4, 5, 5, 5), torch.float32, 2, r"input must be \[N, C, D, H, W\], got 4 dimensions: \[4, 5, 5, 5\]"),
        ((1, 4, 5, 5, 5), torch.float64, 2, "input must be float32, float16 or bfloat16, got Double"),
        ((1, 4, 5, 5, 5), torch.int32, 2, "input must be float32, float16 or bfloat16, got Int"),
        ((1, 4, 5, 5, 5), torch.float32, 3, "num_groups must be a divisor of the 4 channels, got 3"),
        ((1, 4, 5, 5, 5), torch.float32, 0, "num_groups must be a divisor of the 4 channels, got 0"),
        ((1, 4, 5, 5, 5), torch.float32, -2, "num_groups must be a divisor of the 4 channels, got -2"),
    ],
)
def test_bad_input_is_named(
    shape: tuple[int, ...], dtype: torch.dtype, num_groups: int, sentence: str, backend: Any, device: str
) -> None:
    with pytest.raises(RuntimeError, match=f"group_norm_statistics: {sentence}"):
        backend.group_norm_statistics(torch.ones(shape, dtype=dtype, device=device), num_groups, EPS)
