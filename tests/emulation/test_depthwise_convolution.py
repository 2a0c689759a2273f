"""Every operator of a convolution on the emulation: random problems against float64, and to the bit.

200 problems an operator; MEDNEXT_OPS_TEST_PROBLEMS=2000 takes the long form, whose results
`python benchmarks/emulated_sweep.py` writes down as well.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient
from mednext_ops.plans import PASSES, convolution_plans

from .random_problems import CORES, OPS, cores_of, draw, strata
from .random_results import EPS, results
from .repeats import assert_250_runs_give_the_same_bits
from .sweep import Pools, check

IN_CI = 200
PROBLEMS = int(os.environ.get("MEDNEXT_OPS_TEST_PROBLEMS", IN_CI))
CHUNKS = 8  # tests that the problems of an operator are dealt to, for several workers
LEAST = 10  # of the problems in CI, for each core and pass


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("op", OPS)
def test_random_problems_are_within_twice_pytorchs_error(emulated, op, chunk):
    pools = Pools()
    for seed in range(chunk, PROBLEMS, CHUNKS):
        check(emulated, draw(op, seed), pools)
    assert pools.failures() == []


@pytest.mark.parametrize("op", OPS)
def test_the_problems_in_ci_reach_every_core(op):
    problems = [draw(op, seed) for seed in range(IN_CI)]
    assert len(strata()) <= IN_CI  # every core with every kernel, dtype, prologue and epilogue
    for name in PASSES:
        counted = Counter(cores_of(p)[name] for p in problems)
        assert counted.keys() - {"none"} == CORES[op][name]
        assert all(counted[core] >= LEAST for core in CORES[op][name]), counted
        assert 1 <= counted["none"] <= IN_CI // 20  # empty batches
    assert min(Counter(p.dtype for p in problems).values()) >= IN_CI // 5


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("op", OPS)
def test_every_order_of_threads_gives_the_same_bits(emulated, op, seed):
    p = draw(op, 1_000_000 + seed)
    first = results(emulated, p)
    for order in ("reversed", "shuffled"):
        with emulated.thread_order(order, seed):
            again = results(emulated, p)
        assert all(torch.equal(first[name], again[name]) for name in first), p


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_mean_far_larger_than_the_deviation_costs_no_digits_of_the_statistics(emulated, channels_last):
    x = torch.randn(2, 3, 9, 16, 20) + 1e4
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    w = torch.rand(3, 1, 3, 3, 3) + 0.5
    geometry = ConvGeometry((3, 3, 3))  # unpadded: every output has all taps
    output, mean, rstd = emulated.depthwise_conv3d_statistics(x, w, None, geometry, 3, EPS)
    exact_variance, exact_mean = torch.var_mean(output.double().flatten(2), dim=2, correction=0)
    assert ((mean.double() - exact_mean).abs() <= 2**-22 * exact_mean.abs()).all()
    assert ((rstd.double() * (exact_variance + EPS).sqrt() - 1).abs() <= 2**-20).all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("transposed", [False, True], ids=["convolution", "transposed"])
def test_250_runs_of_the_general_core_give_the_same_bits(emulated, transposed, channels_last):
    geometry = ConvGeometry((3, 1, 5), (1, 2, 1), (1, 0, 2), (2, 1, 1), transposed=transposed)
    form = torch.channels_last_3d if channels_last else torch.contiguous_format
    x, w = torch.randn(2, 2, 5, 4, 6).contiguous(memory_format=form), torch.randn(2, 1, 3, 1, 5)
    grad, output = (torch.randn(2, 2, *geometry.output_size(x.shape[2:])) for _ in range(2))
    gradient = GroupNormGradient(*(t.contiguous(memory_format=form) for t in (grad, output)), *torch.randn(3, 2, 2))
    plans = convolution_plans(x.shape, geometry, "float32", 90, channels_last=channels_last, affine=True)
    assert {plan["core"] for plan in plans.values()} == {"general"}

    def run():
        made = emulated.depthwise_conv3d_statistics(x, w, None, geometry, 2, EPS)
        return *made, *emulated.depthwise_conv3d_backward(gradient, x, w, geometry, x, True, True)

    assert_250_runs_give_the_same_bits(emulated, run)
