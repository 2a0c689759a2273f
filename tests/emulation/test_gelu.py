"""GELU for 16-bit values over every value that there is: far below the type's rounding, in both tails."""

from __future__ import annotations

import numpy as np
import pytest
import torch


def every_value(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def run(kernels, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    input = x.float().numpy()
    value, with_slope, slope = (np.full_like(input, 7.0) for _ in range(3))
    kernels("gelus", input, len(input), value, with_slope, slope)
    return tuple(torch.from_numpy(a) for a in (value, with_slope, slope))


def half_unit(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Half the distance from one number of the type to the next, at each value."""
    info = torch.finfo(dtype)
    exponent = torch.floor(torch.log2(values.abs().clamp_min(info.tiny)))
    return torch.exp2(exponent) * info.eps / 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_value_is_within_a_quarter_of_the_types_rounding(kernels, dtype):
    x = every_value(dtype)
    value, with_slope, _ = run(kernels, x)
    # erfc and not 1 + erf: in the left tail float64 would cancel too.
    exact = 0.5 * x.double() * torch.special.erfc(-x.double() / 2**0.5)
    finite = torch.isfinite(x)
    assert torch.equal(value[finite], with_slope[finite])
    # Where exp(-x^2 / 2) is below the smallest float, the value is zero.
    error = (value.double() - exact).abs()[finite]
    assert (error <= half_unit(exact[finite], dtype) / 4 + 1e-36).all()
    ordinary = finite & (x.abs() < 13)
    assert (value.sign() == x.float().sign())[ordinary].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_slope_is_within_a_quarter_of_the_types_rounding(kernels, dtype):
    x = every_value(dtype)
    finite = torch.isfinite(x)
    slope = run(kernels, x)[2][finite].double()
    wide = x[finite].double()
    density = torch.exp(-wide * wide / 2) / (2 * torch.pi) ** 0.5
    terms = torch.special.erfc(-wide / 2**0.5) / 2, wide * density
    # Around its zero the slope is a difference of two terms; relative to them it is as close as elsewhere.
    allowed = half_unit(terms[0].abs() + terms[1].abs(), dtype) / 4
    assert ((slope - terms[0] - terms[1]).abs() <= allowed + 1e-36).all()


def test_what_is_not_finite_is_what_erf_gives_and_spoils_no_neighbour(kernels):
    special = torch.tensor([float("nan"), 1.0, 2.0, float("nan"), float("inf"), -1.0, -float("inf"), 0.5])
    x = special.repeat(64)
    value, _, slope = run(kernels, x)
    tail = torch.special.erfc(-x.double() / 2**0.5) / 2
    density = torch.exp(-(x.double() ** 2) / 2) / (2 * torch.pi) ** 0.5
    torch.testing.assert_close(value.double(), x.double() * tail, rtol=1e-4, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(slope.double(), tail + x.double() * density, rtol=1e-4, atol=1e-5, equal_nan=True)
