"""GELU: for 16 bits over every value that there is, far below the type's rounding; in float32 down both tails."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ..ops.eager import assert_within_twice

#: What may be left of the left tail beyond the polynomials' range, where they give summands: far below anything that
#: these are added to. Otherwise only what underflows, in bfloat16, and what is below the smallest float16.
TAIL = {True: {torch.bfloat16: 1e-9, torch.float16: 1e-10}, False: {torch.bfloat16: 1e-36, torch.float16: 1e-10}}


def every_value(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def run(kernels, dtype: torch.dtype, summand: bool, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    input = x.float().numpy()
    value, with_slope, slope = (np.full_like(input, 7.0) for _ in range(3))
    kernels("gelus", dtype == torch.bfloat16, summand, input, len(input), value, with_slope, slope)
    return tuple(torch.from_numpy(a) for a in (value, with_slope, slope))


def half_unit(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Half the distance from one number of the type to the next, at each value."""
    info = torch.finfo(dtype)
    exponent = torch.floor(torch.log2(values.abs().clamp_min(info.tiny)))
    return torch.exp2(exponent) * info.eps / 2


@pytest.mark.parametrize("summand", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_value_is_within_a_quarter_of_the_types_rounding(kernels, dtype, summand):
    x = every_value(dtype)
    value, with_slope, _ = run(kernels, dtype, summand, x)
    # erfc and not 1 + erf: in the left tail float64 would cancel too.
    exact = 0.5 * x.double() * torch.special.erfc(-x.double() / 2**0.5)
    finite = torch.isfinite(x)
    assert torch.equal(value[finite], with_slope[finite])
    error = (value.double() - exact).abs()[finite]
    assert (error <= half_unit(exact[finite], dtype) / 4 + TAIL[summand][dtype]).all()
    ordinary = finite & (x.abs() < 12)
    assert (value.sign() == x.float().sign())[ordinary].all()


@pytest.mark.parametrize("summand", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_slope_is_within_a_quarter_of_the_types_rounding(kernels, dtype, summand):
    x = every_value(dtype)
    finite = torch.isfinite(x)
    slope = run(kernels, dtype, summand, x)[2][finite].double()
    wide = x[finite].double()
    density = torch.exp(-wide * wide / 2) / (2 * torch.pi) ** 0.5
    terms = torch.special.erfc(-wide / 2**0.5) / 2, wide * density
    # Around its zero the slope is a difference of two terms; relative to them it is as close as elsewhere.
    allowed = half_unit(terms[0].abs() + terms[1].abs(), dtype) / 4
    assert ((slope - terms[0] - terms[1]).abs() <= allowed + TAIL[summand][dtype]).all()


@pytest.mark.parametrize("summand", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nan_stays_nan_and_infinities_give_the_limits(kernels, dtype, summand):
    nan, infinity = float("nan"), float("inf")
    x = torch.tensor([nan, 1.0, infinity, -infinity, 3e38, -3e38, 0.0, -0.0]).repeat(32)
    value, with_slope, slope = run(kernels, dtype, summand, x)
    expected = torch.tensor([nan, 0.8413447, infinity, 0.0, 3e38, 0.0, 0.0, 0.0]).repeat(32)
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-30, equal_nan=True)
    torch.testing.assert_close(with_slope, value, rtol=0, atol=0, equal_nan=True)
    finite = torch.tensor([1.083316, 1.0, 0.0, 0.5, 0.5]).repeat(32)
    chosen = torch.tensor([False, True, False, False, True, True, True, True]).repeat(32)
    torch.testing.assert_close(slope[chosen], finite, rtol=1e-3, atol=1e-30)
    assert torch.isnan(slope[~torch.isfinite(x)]).all()  # infinity times zero, as PyTorch's is


WAYS = ["norm", "products"]


def by_operator(emulated, way: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and slope at ``x``, of a multiple of 8 elements, by operators that compute GELU in its type."""
    if way == "norm":
        volume, one, zero = x.view(1, 1, -1, 1, 1), torch.ones(1), torch.zeros(1)
        identity = (volume, zero[None], one[None], one, zero, "gelu")
        value = emulated.group_norm(*identity)
        return value.flatten(), emulated.group_norm_backward(torch.ones_like(volume), *identity)[0].flatten()
    native, value, slope = emulated._kernels._native, x.view(1, 1, -1).clone(), torch.ones_like(x).view(1, 1, -1)
    native.bottleneck_hidden_gradient_(x.view(1, 1, -1).clone(), slope, torch.zeros(1), None)
    native.bottleneck_hidden_(value, torch.zeros(1), None)
    return value.flatten(), slope.flatten()


def exact_terms(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """GELU and the two terms of its slope in float64, without the cancellation of 1 + erf."""
    x = x.double()
    probability = torch.special.erfc(-x / 2**0.5) / 2
    return x * probability, probability, x * torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5


@pytest.mark.parametrize("way", WAYS)
def test_in_float32_value_and_slope_are_within_twice_pytorchs_error(emulated, way):
    x = torch.linspace(-6, 6, 4096, requires_grad=True)
    theirs = F.gelu(x)
    value, slope = by_operator(emulated, way, x.detach())
    exact, *terms = exact_terms(x.detach())
    assert_within_twice(value, theirs.detach(), exact, "value")
    assert_within_twice(slope, torch.autograd.grad(theirs.sum(), x)[0], sum(terms), "slope")


@pytest.mark.parametrize("way", WAYS)
def test_in_float32_the_tails_keep_their_digits(emulated, way):
    """Where PyTorch's 1 + erf has none. An argument's rounding costs x^2 units, whatever the function does."""
    x = torch.linspace(-40, -5, 1024)
    value, slope = by_operator(emulated, way, x)
    exact, *terms = exact_terms(x)
    units = (4 + x.double().square()) * torch.finfo(torch.float32).eps
    smallest = 4 * x.double().abs() * 2.0**-149  # of what underflows
    assert ((value.double() - exact).abs() <= units * exact.abs() + smallest).all()
    assert ((slope.double() - sum(terms)).abs() <= units * (terms[0] + terms[1].abs()) + smallest).all()
    assert (value <= 0).all() and (value[x > -13] < 0).all() and (slope[x > -13] < 0).all()
    value, slope = by_operator(emulated, way, -x)
    assert torch.equal(value[x < -6], -x[x < -6]) and torch.equal(slope[x < -6], torch.ones_like(slope)[x < -6])
    torch.testing.assert_close(value, -x, rtol=1e-6, atol=0)
    torch.testing.assert_close(slope, torch.ones_like(x), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", WAYS)
def test_operators_keep_nan_and_give_the_limits_at_infinities(emulated, way, dtype):
    """But in float32, at minus infinity, NaN as PyTorch's formula does. The slope there is NaN in both."""
    nan, infinity = float("nan"), float("inf")
    x = torch.tensor([nan, infinity, -infinity, 6e4, -6e4, 1.0, 0.0, -0.0]).to(dtype).requires_grad_()
    value, slope = by_operator(emulated, way, x.detach())
    limit = nan if dtype == torch.float32 else 0.0
    expected = torch.tensor([nan, infinity, limit, 6e4, 0.0, 0.8413447, 0.0, 0.0]).to(dtype)
    torch.testing.assert_close(value, expected, rtol=torch.finfo(dtype).eps, atol=0, equal_nan=True)
    theirs = torch.autograd.grad(F.gelu(x).sum(), x)[0]
    assert theirs[:3].isnan().all()
    torch.testing.assert_close(slope, theirs, rtol=2 * torch.finfo(dtype).eps, atol=0, equal_nan=True)
