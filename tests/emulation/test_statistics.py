"""group_norm_statistics by its CUDA kernels on the emulation: against float64, and to the bit in every order."""

from __future__ import annotations

import pytest
import torch

import mednext_ops as ops

EPS = 1e-5
# Odd extents, one voxel, channels that fill no tile of 32, runs that no vector divides, more than one block a run.
SHAPES = [(2, 6, 8, 8, 8), (1, 32, 15, 31, 7), (3, 4, 1, 1, 1), (2, 40, 5, 3, 33), (1, 2, 33, 32, 65), (1, 33, 3, 5, 7)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _on_the_emulation(emulated):
    with ops.use_backend("emulated"):
        yield


def exact(input: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    variance, mean = torch.var_mean(input.double().reshape(input.shape[0], num_groups, -1), dim=2, correction=0)
    return mean, (variance + EPS).rsqrt()


def check(input: torch.Tensor, num_groups: int) -> None:
    """A unit in the last place of a float of the size of the values: what is summed over many of them is double."""
    mean, rstd = ops.group_norm_statistics(input, num_groups, EPS)
    assert mean.dtype == rstd.dtype == torch.float32
    exact_mean, exact_rstd = exact(input, num_groups)
    assert ((mean.double() - exact_mean).abs() <= 2**-23 * (exact_mean.abs() + 1 / exact_rstd)).all()
    assert ((rstd.double() - exact_rstd).abs() <= 2**-23 * exact_rstd).all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_that_of_a_float(shape, dtype, channels_last):
    input = (torch.randn(shape) * 2 + 0.5).to(dtype)
    if channels_last:
        input = input.to(memory_format=torch.channels_last_3d)
    for num_groups in {shape[1], 1}:
        check(input, num_groups)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_mean_far_larger_than_the_deviation_costs_no_digits(channels_last):
    input = torch.randn(2, 3, 17, 16, 20) + 1e6
    check(input.to(memory_format=torch.channels_last_3d) if channels_last else input, 3)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_order_of_threads_gives_the_same_bits(emulated, dtype, channels_last):
    input = torch.randn(2, 12, 21, 23, 25).to(dtype)
    if channels_last:
        input = input.to(memory_format=torch.channels_last_3d)
    first = ops.group_norm_statistics(input, 6, EPS)
    for order, seed in [("reversed", 0), *(("shuffled", seed) for seed in range(5))]:
        with emulated.thread_order(order, seed):
            again = ops.group_norm_statistics(input, 6, EPS)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_number_of_threads_changes_nothing():
    input = torch.randn(2, 6, 40, 41, 43)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(ops.group_norm_statistics(input, 3, EPS))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_slices_are_taken():
    input = torch.randn(3, 8, 9, 10, 11)[1:, ::2, 1:, ::2, 3:-2]
    check(input, 2)


@pytest.mark.parametrize("shape", [(0, 4, 5, 5, 5), (0, 4, 0, 5, 5)])
def test_an_empty_batch_gives_empty_statistics(shape):
    mean, rstd = ops.group_norm_statistics(torch.empty(shape), 2, EPS)
    assert mean.shape == rstd.shape == (0, 2)


def test_nan_stays_in_its_group():
    input = torch.randn(2, 4, 9, 9, 9)
    input[1, 0, 4, 4, 4] = float("nan")
    for result in ops.group_norm_statistics(input, 4, EPS):
        assert result.isnan().nonzero().tolist() == [[1, 0]]


def test_it_is_never_chosen_unasked(monkeypatch):
    from mednext_ops import backends

    assert all("emulated" not in order for order in backends.DEFAULT_ORDER.values())
    assert "emulated" in ops.available_backends()


def test_an_order_that_is_none_is_named(emulated):
    with pytest.raises(ValueError, match="order is 'sorted'; it can be 'in order', 'reversed', 'shuffled'"):
        emulated.thread_order("sorted").__enter__()


def test_the_binding_names_bad_input(emulated):
    with pytest.raises(RuntimeError, match=r"input must be \[N, C, D, H, W\], got 4 dimensions"):
        emulated.group_norm_statistics(torch.ones(4, 5, 5, 5), 2, EPS)
    with pytest.raises(RuntimeError, match="num_groups must be a divisor of the 4 channels, got 3"):
        emulated.group_norm_statistics(torch.ones(1, 4, 5, 5, 5), 3, EPS)
