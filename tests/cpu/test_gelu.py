"""The vectorised GELU and its derivative against float64, over all magnitudes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F


def every_magnitude() -> torch.Tensor:
    """All of bfloat16's finite numbers, and random ones where the function bends."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16).float()
    values = values[values.isfinite()]
    return torch.cat([values, torch.randn(400_000) * 3, torch.rand(300_000) * 2 - 1, torch.linspace(-14, 14, 300_000)])


def through_group_norm(cpu, x):
    """GELU and its derivative of the values alone: the norm is the identity."""
    volume = x.reshape(1, 1, 1, 1, -1)
    zero, one = torch.zeros(1, 1), torch.ones(1, 1)
    value = cpu.group_norm(volume, zero, one, one[0], zero[0], "gelu")
    slope, _, _ = cpu.group_norm_backward(torch.ones_like(volume), volume, zero, one, one[0], zero[0], "gelu")
    return value.flatten(), slope.flatten()


def test_it_is_exact_to_a_few_units_in_the_last_place(cpu):
    x = every_magnitude()
    value, slope = through_group_norm(cpu, x)
    exact = x.double().requires_grad_()
    # In float64 too, erfc keeps the digits of the lower tail that 1 + erf loses.
    wanted = exact * torch.special.erfc(-exact * 0.5**0.5) / 2
    (wanted_slope,) = torch.autograd.grad(wanted.sum(), exact)
    seen = wanted.abs() > 2**-126  # float32 has no normal number below
    error = ((value.double() - wanted).abs() / wanted.abs())[seen & (x.abs() < 13)]
    assert error.max() < 4 * 2**-23
    assert ((value.double() - wanted).abs()[x.abs() >= 13] <= 1e-38 + 2**-23 * wanted.abs()[x.abs() >= 13]).all()
    # The derivative crosses zero at -0.75: its error is measured against its largest magnitude.
    assert (slope.double() - wanted_slope.nan_to_num(0.0)).abs().max() < 2 * 2**-23


def test_it_is_closer_than_pytorch(cpu):
    x = every_magnitude()
    x = x[x.abs() < 1e4]
    exact = x.double() * torch.special.erfc(-x.double() * 0.5**0.5) / 2
    own = (F.gelu(x).double() - exact).abs().mean()
    assert (through_group_norm(cpu, x)[0].double() - exact).abs().mean() <= own


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_as_in_pytorch(cpu, value):
    x = torch.full((1,), value)
    result, slope = through_group_norm(cpu, x)
    assert torch.equal(result.isnan(), F.gelu(x).isnan())
    if value == float("inf"):
        assert result.item() == value and slope.item() == 1
