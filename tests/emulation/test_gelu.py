"""GELU for 16-bit values over every value that there is: far below the type's rounding, in both tails."""

from __future__ import annotations

import numpy as np
import pytest
import torch

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
    assert torch.isnan(slope[torch.isnan(x)]).all()
