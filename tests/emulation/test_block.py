"""Whole blocks on the emulation: every pair of what a block may be, and the extremes of its norm.

Backends are forced to the emulated one alone: a block that it declines fails with the reason.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import mednext_ops as ops
from mednext_ops.backends.problem import memory_format_of

from ..ops.eager import Block, assert_within_twice

FORMS = ("regular", "down", "up")
FACTORS: dict[str, tuple[Any, ...]] = {
    "form": FORMS,
    "stride": ((2, 2, 2), (1, 2, 2)),
    "dtype": (torch.bfloat16, torch.float16, torch.float32),
    "parameters": ("as the input", "float32"),
    "kernel": ((3, 3, 3), (5, 5, 5), (7, 7, 7), (1, 3, 3)),
    "channels": (32, 20, 72),
    "ratio": (2, 3, 4, 8),
    "grn": (False, True),
    "recompute": (None, "conv"),
    "batch": (1, 2, 3),
    "channels_last": (False, True),
    "skip": (False, True),  # of an up block; a down block keeps its input for one
    "groups": ("channels", 4),
}
RESAMPLING_ONLY = ("stride", "skip")
#: How many are judged together: in float32 few roundings add up, and one draw's error says little.
DRAWS = {torch.bfloat16: 1, torch.float16: 1, torch.float32: 4}

Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairs(row: dict[str, Any]) -> set[Pair]:
    """The pairs of settings that a row covers; stride and skip mean nothing in a regular block."""
    settings = [(n, v) for n, v in row.items() if row["form"] != "regular" or n not in RESAMPLING_ONLY]
    return set(itertools.combinations(settings, 2))


def all_pairs() -> set[Pair]:
    every = set()
    for (a, first), (b, second) in itertools.combinations(FACTORS.items(), 2):
        every |= {((a, x), (b, y)) for x, y in itertools.product(first, second)}
    return {p for p in every if not (p[0] == ("form", "regular") and p[1][0] in RESAMPLING_ONLY)}


def covering() -> list[dict[str, Any]]:
    """Rows in which every pair of settings occurs: each is the best of 200 random ones."""
    generator, rows, missing = random.Random(0), [], all_pairs()
    while missing:
        drawn = [{name: generator.choice(values) for name, values in FACTORS.items()} for _ in range(200)]
        rows.append(max(drawn, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(rows[-1])
    return rows


@dataclass
class Run:
    """One way to run a block: the tensors that it takes, what else goes in, and what is asked of it."""

    block: Block
    form: str
    stride: tuple[int, int, int]
    groups: int
    skip: torch.Tensor | None = None
    keep_input: bool = False
    recompute: str | None = None

    def to(self, dtype: torch.dtype) -> Run:
        """The same values as contiguous leaves of another type: what is compared with."""
        block = self.block.to(dtype)
        block.input = block.input.contiguous()
        skip = None if self.skip is None else self.skip.detach().to(dtype).requires_grad_()
        return replace(self, block=block.leaves(), skip=skip)

    def eager(self) -> list[torch.Tensor]:
        output = self.block.eager(self.form, self.stride, self.groups)
        output = output if self.skip is None else output + self.skip
        return [output, self.block.input * 1] if self.keep_input else [output]

    def ours(self) -> list[torch.Tensor]:
        output = self.block.ours(
            self.form, self.stride, self.groups, skip=self.skip, keep_input=self.keep_input, recompute=self.recompute
        )
        return list(output) if self.keep_input else [output]

    def gradients(self, outputs: list[torch.Tensor], grads: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        named = self.block.tensors() | ({} if self.skip is None else {"skip": self.skip})
        grads = [grad.to(output.dtype) for grad, output in zip(grads, outputs, strict=True)]
        return dict(zip(named, torch.autograd.grad(outputs, list(named.values()), grads), strict=True))


def results(run: Run) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Ours, PyTorch's in the input's type and the exact value of the output and of every gradient, by name."""
    dtype, form = run.block.input.dtype, memory_format_of(run.block.input)
    with ops.use_backend("emulated"):
        outputs = run.ours()
        grads = [torch.randn_like(output) for output in outputs]
        ours = run.gradients(outputs, grads)
    assert outputs[0].is_contiguous(memory_format=form) and ours["input"].is_contiguous(memory_format=form)
    assert len(outputs) == 1 or torch.equal(outputs[1], run.block.input)
    plain, exact = run.to(dtype), run.to(torch.float64)
    their_outputs, exact_outputs = plain.eager(), exact.eager()
    theirs, right = plain.gradients(their_outputs, grads), exact.gradients(exact_outputs, grads)
    found = {name: (gradient, theirs[name], right[name]) for name, gradient in ours.items()}
    if run.groups == run.block.input.shape[1]:  # the norm cancels the bias: what PyTorch has is noise
        assert not found.pop("conv_bias")[0].any()
    return found | {"output": (outputs[0], their_outputs[0], exact_outputs[0])}


def check(*runs: Run) -> None:
    """Output and every gradient are within twice PyTorch's error, taken over all runs together."""
    found = [results(run) for run in runs]
    for name in found[0]:
        assert_within_twice(*(torch.cat([f[name][i].flatten() for f in found]) for i in range(3)), name)


def drawn(row: dict[str, Any], size: tuple[int, int, int] = (2, 3, 5)) -> Run:
    form, channels = row["form"], row["channels"]
    layout = torch.channels_last_3d if row["channels_last"] else torch.contiguous_format
    block = Block.random(form, row["kernel"], size, row["batch"], channels, row["ratio"] * channels, row["grn"])
    block = block.to(row["dtype"])
    if row["parameters"] == "float32":
        block = replace(block.to(torch.float32), input=block.input)
    block.input = block.input.contiguous(memory_format=layout)
    stride = (1, 1, 1) if form == "regular" else row["stride"]
    groups = channels if row["groups"] == "channels" else row["groups"]
    skip = None
    if form == "up" and row["skip"]:
        extents = [n * s for n, s in zip(size, stride, strict=True)]
        skip = torch.randn(row["batch"], channels // 2, *extents).to(row["dtype"])
        skip = skip.contiguous(memory_format=layout).requires_grad_()
    return Run(block.leaves(), form, stride, groups, skip, form == "down" and row["skip"], row["recompute"])


def described(row: dict[str, Any]) -> str:
    return " ".join(str(value).removeprefix("torch.").replace(" ", "") for value in row.values())


COVERING = covering()


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("row", COVERING, ids=described)
def test_every_pair_of_settings(row):
    check(*(drawn(row) for _ in range(DRAWS[row["dtype"]])))


def kept(form: str) -> torch.Tensor:
    """The 3x3x3 kernel that keeps a constant volume: one tap; transposed with stride 2, linear interpolation."""
    line = torch.tensor([0.5, 1.0, 0.5] if form == "up" else [0.0, 1.0, 0.0], dtype=torch.float64)
    return line[:, None, None] * line[:, None] * line


def far_mean(block: Block, form: str) -> None:
    block.input += 60.0
    block.conv_weight *= 2.0**-9
    block.conv_weight += kept(form)


def no_weight(block: Block, form: str) -> None:
    block.norm_weight.zero_()


def some_weights_zero(block: Block, form: str) -> None:
    block.norm_weight[::3] = 0


def tiny_variance(block: Block, form: str) -> None:
    block.input *= 2.0**-14


def constant_channel(block: Block, form: str) -> None:
    block.input[:, 3] = 2.5
    block.conv_weight[3] = kept(form)


def variance(block: Block, form: str, stride: tuple[int, int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance [N, C] of the convolution, in float64, and its squared mean."""
    convolution = F.conv_transpose3d if form == "up" else F.conv3d
    convolved = convolution(
        block.input.double(), block.conv_weight.double(), None, stride, 1, groups=block.input.shape[1]
    )
    flat = convolved.flatten(2)
    return flat.var(2, correction=0), flat.mean(2).square()


EXTREMES = [far_mean, no_weight, some_weights_zero, tiny_variance, constant_channel]


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("with_grn", [False, True], ids=["", "grn"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("form", FORMS)
def test_extremes_of_the_norm(form, extreme, dtype, with_grn):
    stride = (1, 1, 1) if form == "regular" else (2, 2, 2)
    runs = []
    for _ in range(4):  # in 16 bits what is left of a far mean, or beside a constant channel, is a draw
        block = Block.random(form, (3, 3, 3), (4, 3, 5), 2, 32, 64, with_grn).to(torch.float64)
        extreme(block, form)
        block = block.to(dtype)
        found, squared_mean = variance(block, form, stride)
        if extreme is far_mean:
            assert (squared_mean > 30**2 * found).all()
        if extreme is tiny_variance:
            assert (found < 1e-6).all()
        assert (found[:, 3] == 0).all() == (extreme is constant_channel)
        runs.append(Run(block.leaves(), form, stride, 32))
    check(*runs)
