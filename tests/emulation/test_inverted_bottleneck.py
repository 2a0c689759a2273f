"""The fused inverted bottleneck on the emulation: against float64, to the bit in every order, on every instance."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

import mednext_ops as ops
from mednext_ops.backends.problem import (
    InvertedBottleneckGradients,
    InvertedBottleneckNeeds,
    Problem,
    memory_format_of,
)

from ..ops.eager import Block, assert_within_twice, grn

DTYPES = [torch.bfloat16, torch.float16]
# Channels, hidden and output channels: the variants' first stages with their ratios, down and up blocks, and shapes
# that are filled up.
SHAPES = [
    (32, 64, 32),
    (32, 96, 32),
    (32, 128, 32),
    (64, 128, 64),
    (64, 192, 64),
    (32, 64, 64),
    (64, 128, 32),
    (64, 64, 128),
    (20, 45, 9),
    (5, 10, 5),
]
BACKWARD_SHAPES = [shape for shape in SHAPES if max(shape[0], shape[2]) <= 64]
LARGE_SHAPES = [(64, 256, 64), (64, 512, 64), (128, 256, 64), (128, 256, 128), (100, 96, 72)]
ALL = InvertedBottleneckNeeds(True, True, True, True, True)


@dataclass
class Case:
    input: torch.Tensor
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    expand_weight: torch.Tensor
    expand_bias: torch.Tensor | None
    compress_weight: torch.Tensor
    compress_bias: torch.Tensor | None
    residual: torch.Tensor | None
    gamma: torch.Tensor | None = None
    beta: torch.Tensor | None = None

    @classmethod
    def draw(cls, shape, size, batch, dtype, parameters=None, residual=True, grn=False) -> Case:
        channels, hidden, outputs = shape
        parameters = parameters or dtype

        def tensor(*sizes, scale=1.0, shift=0.0, dtype=parameters):
            return (torch.randn(*sizes) * scale + shift).to(dtype)

        return cls(
            tensor(batch, channels, *size, dtype=dtype),
            tensor(channels, scale=0.2, shift=1.0),
            tensor(channels, scale=0.2),
            tensor(hidden, channels, scale=channels**-0.5),
            tensor(hidden, scale=0.2),
            tensor(outputs, hidden, scale=hidden**-0.5),
            tensor(outputs, scale=0.2),
            tensor(batch, outputs, *size, dtype=dtype) if residual else None,
            tensor(hidden) if grn else None,
            tensor(hidden, scale=0.3) if grn else None,
        )

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        flat = self.input.double().flatten(2)
        return flat.mean(2).float(), ((flat.var(2, correction=0) + 1e-5) ** -0.5).float()

    def to(self, dtype) -> Case:
        return Case(*(None if v is None else v.to(dtype) for v in vars(self).values()))

    def channels_last(self) -> Case:
        """The same with its volumes in channels_last_3d."""

        def lay(volume: torch.Tensor | None) -> torch.Tensor | None:
            return None if volume is None else volume.contiguous(memory_format=torch.channels_last_3d)

        return replace(self, input=lay(self.input), residual=lay(self.residual))

    def grn(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        return None if self.gamma is None else (self.gamma, self.beta)

    def normalized(self) -> torch.Tensor:
        return F.group_norm(self.input, self.input.shape[1], self.norm_weight, self.norm_bias, 1e-5)

    def eager(self, n: torch.Tensor | None = None) -> torch.Tensor:
        """PyTorch's own layers, in the dtype of the tensors."""
        n = self.normalized() if n is None else n
        hidden = F.gelu(F.conv3d(n, self.expand_weight[..., None, None, None], self.expand_bias))
        if self.gamma is not None:
            hidden = grn(hidden, self.gamma, self.beta)
        output = F.conv3d(hidden, self.compress_weight[..., None, None, None], self.compress_bias)
        return output if self.residual is None else output + self.residual

    def fused(self, backend) -> torch.Tensor:
        return backend.inverted_bottleneck(
            self.input, *self.statistics(), self.norm_weight, self.norm_bias, self.expand_weight, self.expand_bias,
            self.compress_weight, self.compress_bias, self.grn(), self.residual,
        )  # fmt: skip

    def eager_gradients(self, grad_output: torch.Tensor) -> InvertedBottleneckGradients:
        """What autograd makes of these layers in the dtype of the tensors; only the sums over them are in float64."""
        names = ("expand_weight", "expand_bias", "compress_weight", "compress_bias", "gamma", "beta")
        leaves = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in leaves.items()}
        n = self.normalized().detach().requires_grad_()
        output = replace(self, **leaves).eager(n)
        grad, *found = torch.autograd.grad(output, (n, *leaves.values()), grad_output.to(output.dtype))
        by_name = dict(zip(leaves, found, strict=True))
        unit = F.group_norm(self.input.double(), self.input.shape[1], eps=1e-5)
        return InvertedBottleneckGradients(
            grad,
            grad.double().sum((2, 3, 4)),
            (grad.double() * unit).sum((2, 3, 4)),
            *(by_name.get(name) for name in names),
        )

    def fused_gradients(self, backend, grad_output, needs=ALL) -> InvertedBottleneckGradients:
        return backend.inverted_bottleneck_backward(
            grad_output, self.input, *self.statistics(), self.norm_weight, self.norm_bias, self.expand_weight,
            self.expand_bias, self.compress_weight, self.grn(), needs,
        )  # fmt: skip


def check_forward(backend, case: Case) -> None:
    exact, theirs = case.to(torch.float64).eager(), case.to(case.input.dtype).eager()
    ours = case.fused(backend)
    assert ours.is_contiguous(memory_format=memory_format_of(case.input))
    assert_within_twice(ours, theirs, exact, "output")


def check_backward(backend, case: Case) -> None:
    channels = case.compress_weight.shape[0]
    grad_output = torch.randn(len(case.input), channels, *case.input.shape[2:]).to(case.input.dtype)
    grad_output = grad_output.contiguous(memory_format=memory_format_of(case.input))
    exact = case.to(torch.float64).eager_gradients(grad_output)
    theirs = case.to(case.input.dtype).eager_gradients(grad_output)
    ours = case.fused_gradients(backend, grad_output)
    for name, our, their, right in zip(ours._fields, ours, theirs, exact, strict=True):
        if right is None:
            assert our is None or case.grn() is None
            continue
        assert our.dtype == (case.input.dtype if name == "grad" else torch.float32), name
        assert name != "grad" or our.is_contiguous(memory_format=memory_format_of(case.input))
        assert_within_twice(our, their, right, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", BACKWARD_SHAPES)
def test_every_gradient_of_every_shape(emulated, shape, dtype):
    check_backward(emulated, Case.draw(shape, (3, 6, 8), 2, dtype))


def test_gradients_of_a_large_shape(emulated):
    check_backward(emulated, Case.draw((64, 256, 64), (3, 4, 8), 1, torch.bfloat16))


@pytest.mark.parametrize("size", [(1, 1, 2), (3, 5, 7), (1, 1, 63), (2, 3, 22), (1, 8, 8), (7, 7, 7)])
@pytest.mark.parametrize("batch", [1, 3])
def test_gradients_of_any_extent_and_batch(emulated, size, batch):
    check_backward(emulated, Case.draw((32, 64, 32), size, batch, torch.bfloat16))


@pytest.mark.parametrize("shape", [(64, 96, 64), (64, 128, 32), (32, 64, 64)])
@pytest.mark.parametrize("architecture", [80, 86, 100, 120])
def test_gradients_as_other_architectures_cut_them(emulated, architecture, shape):
    case = Case.draw(shape, (3, 5, 7), 2, torch.bfloat16)
    with emulated.architecture(architecture):
        check_backward(emulated, case)
        check_backward(emulated, case.channels_last())


def test_gradients_with_float32_parameters_and_without_biases(emulated):
    case = Case.draw((32, 96, 32), (3, 4, 8), 2, torch.float16, torch.float32)
    check_backward(emulated, case)
    check_backward(emulated, replace(case, expand_bias=None, compress_bias=None))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(32, 64, 32), (64, 192, 64), (20, 45, 9)])
@pytest.mark.parametrize("size", [(3, 4, 8), (3, 5, 7)])
def test_global_response_normalisation_forward_and_backward(emulated, size, shape, dtype):
    case = Case.draw(shape, size, 2, dtype, grn=True)
    check_forward(emulated, case)
    check_backward(emulated, case)


@pytest.mark.parametrize("with_grn", [False, True])
def test_what_nobody_needs_is_left_out_and_changes_no_bit(emulated, with_grn):
    case = Case.draw((32, 64, 32), (2, 5, 8), 2, torch.bfloat16, grn=with_grn)
    grad_output = torch.randn(2, 32, 2, 5, 8).bfloat16()
    complete = case.fused_gradients(emulated, grad_output)
    for bits in range(32):
        needs = InvertedBottleneckNeeds(*(bool(bits >> i & 1) for i in range(5)))
        found = case.fused_gradients(emulated, grad_output, needs)
        hidden = needs.input or needs.norm or needs.expand
        assert (found.grad is None) == (not needs.input)
        assert (found.grad_sum is None) == (found.expand_weight is None) == (not hidden)
        assert (found.compress_weight is None) == (not needs.compress and not with_grn)
        for name, part, whole in zip(found._fields, found, complete, strict=True):
            assert part is None or torch.equal(part, whole), (needs, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(emulated, shape, dtype):
    check_forward(emulated, Case.draw(shape, (3, 4, 8), 2, dtype))


@pytest.mark.parametrize("shape", LARGE_SHAPES)
def test_large_shapes(emulated, shape):
    case = Case.draw(shape, (3, 4, 4), 1, torch.bfloat16)
    check_forward(emulated, case)
    check_forward(emulated, case.channels_last())  # one kernel up to 128 channels


@pytest.mark.parametrize("size", [(1, 1, 2), (3, 5, 7), (1, 1, 31), (2, 3, 12), (1, 4, 8), (7, 7, 7)])
@pytest.mark.parametrize("batch", [1, 3])
def test_any_extent_and_batch(emulated, size, batch):
    check_forward(emulated, Case.draw((32, 64, 32), size, batch, torch.bfloat16))


@pytest.mark.parametrize("size", [(4, 8, 16), (3, 3, 61)])
def test_without_residual_and_biases_and_with_float32_parameters(emulated, size):
    case = Case.draw((32, 96, 32), size, 2, torch.float16, torch.float32, residual=False)
    check_forward(emulated, case)
    check_forward(emulated, replace(case, expand_bias=None, compress_bias=None))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (128, 256, 64), (128, 256, 128), (100, 96, 72)])
def test_every_shape_in_channels_last(emulated, shape, dtype):
    case = Case.draw(shape, (3, 4, 5), 2, dtype).channels_last()
    check_forward(emulated, case)
    check_forward(emulated, replace(case, residual=None))
    if max(shape[0], shape[2]) <= 64:
        check_backward(emulated, case)


@pytest.mark.parametrize("size", [(1, 1, 2), (3, 5, 7), (1, 1, 63), (7, 7, 7)])
def test_any_extent_in_channels_last(emulated, size):
    case = Case.draw((32, 64, 32), size, 3, torch.bfloat16).channels_last()
    check_forward(emulated, case)
    check_backward(emulated, case)


@pytest.mark.parametrize("shape", [(32, 64, 32), (20, 45, 9)])
def test_global_response_normalisation_in_channels_last(emulated, shape):
    case = Case.draw(shape, (3, 5, 7), 2, torch.bfloat16, grn=True).channels_last()
    check_forward(emulated, case)
    check_backward(emulated, case)


def test_a_gradient_in_the_other_format_is_read_too(emulated):
    case = Case.draw((32, 64, 32), (3, 4, 8), 2, torch.bfloat16)
    grad_output = torch.randn(2, 32, 3, 4, 8).bfloat16()
    expected = case.fused_gradients(emulated, grad_output)
    other = grad_output.contiguous(memory_format=torch.channels_last_3d)
    assert all(
        torch.equal(a, b) for a, b in zip(case.fused_gradients(emulated, other), expected, strict=True) if b is not None
    )
    mixed = replace(case.channels_last(), residual=case.residual)
    assert torch.equal(mixed.fused(emulated), case.channels_last().fused(emulated))


def extremes() -> dict[str, Case]:
    """Inputs and norms at which a folded affine map, or a division, would fail."""
    case = Case.draw((32, 64, 32), (4, 5, 8), 2, torch.bfloat16, torch.float32)
    constant = case.input.clone()
    constant[:, 3] = 2.5
    zero_weight = case.norm_weight.clone()
    zero_weight[::3] = 0
    return {
        "the mean is far larger than the deviation": replace(case, input=(case.input.float() + 60).to(torch.bfloat16)),
        "no weight": replace(case, norm_weight=zero_weight),
        "tiny variance": replace(case, input=case.input * 2**-8),
        "a constant channel": replace(case, input=constant),
        "a large bias": replace(case, norm_bias=case.norm_bias + 5),
    }


@pytest.mark.parametrize("extreme", extremes())
def test_extremes_of_the_norm(emulated, extreme):
    case = extremes()[extreme]
    check_forward(emulated, case)
    check_backward(emulated, case)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(3, 9, 8), (2, 3, 31)])
def test_the_forward_has_the_same_bits_in_every_order(emulated, size, channels_last):
    case = Case.draw((32, 64, 32), size, 2, torch.bfloat16)
    case = case.channels_last() if channels_last else case
    first = case.fused(emulated)
    for order in ("reversed", "shuffled"):
        with emulated.thread_order(order, seed=5):
            assert torch.equal(case.fused(emulated), first)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("with_grn", [False, True])
def test_gradients_have_the_same_bits_in_every_order(emulated, with_grn, channels_last):
    case = Case.draw((32, 64, 32), (2, 9, 8), 2, torch.bfloat16, grn=with_grn)
    case = case.channels_last() if channels_last else case
    grad_output = torch.randn(2, 32, 2, 9, 8).bfloat16()
    first = case.fused_gradients(emulated, grad_output)
    for order in ("reversed", "shuffled"):
        with emulated.thread_order(order, seed=5):
            again = case.fused_gradients(emulated, grad_output)
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_an_empty_batch_has_no_gradient(emulated):
    case = Case.draw((32, 64, 32), (2, 2, 8), 0, torch.bfloat16)
    case.statistics = lambda: (torch.zeros(0, 32), torch.ones(0, 32))
    assert case.fused(emulated).shape == (0, 32, 2, 2, 8)
    found = case.fused_gradients(emulated, torch.zeros(0, 32, 2, 2, 8).bfloat16())
    assert found.grad.shape == (0, 32, 2, 2, 8)
    assert not any(t.any() for t in (found.expand_weight, found.expand_bias, found.compress_weight))


def test_slices_are_read_as_they_are_and_nothing_beside_them(emulated):
    case = Case.draw((32, 64, 32), (2, 4, 8), 1, torch.bfloat16)
    wide = torch.full((1, 40, 2, 4, 8), float("nan"), dtype=torch.bfloat16)
    wide[:, 4:36] = case.input
    sliced = replace(case, input=wide[:, 4:36])
    assert torch.equal(sliced.fused(emulated), case.fused(emulated))


def begins_at(volume: torch.Tensor, element: int) -> torch.Tensor:
    """The same volume, so many elements from a multiple of 16 bytes, between NaNs."""
    wide = torch.full((volume.numel() + 16,), float("nan"), dtype=volume.dtype)
    part = wide[element : element + volume.numel()].view(volume.shape)
    return part.copy_(volume)


@pytest.mark.parametrize(
    "shape", [(32, 64, 32), (64, 128, 32), (32, 64, 64), (20, 45, 9), (64, 64, 128), (128, 128, 64)]
)
@pytest.mark.parametrize("size", [(3, 5, 7), (2, 3, 22)])
def test_rows_that_begin_anywhere(emulated, size, shape):
    case = Case.draw(shape, size, 2, torch.bfloat16)
    check_forward(emulated, case)
    if max(shape[0], shape[2]) <= 64:
        check_backward(emulated, case)


@pytest.mark.parametrize("element", range(1, 8))
@pytest.mark.parametrize("size", [(2, 5, 8), (1, 5, 13)])
def test_volumes_that_begin_anywhere_have_the_same_bits(emulated, size, element):
    case = Case.draw((32, 64, 32), size, 2, torch.bfloat16)
    grad_output = torch.randn(2, 32, *size).bfloat16()
    moved = replace(case, input=begins_at(case.input, element), residual=begins_at(case.residual, 8 - element))
    moved.statistics = case.statistics
    assert torch.equal(moved.fused(emulated), case.fused(emulated))
    expected = case.fused_gradients(emulated, grad_output)
    found = moved.fused_gradients(emulated, begins_at(grad_output, (3 * element) % 8))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True) if b is not None)


def problem(shape, dtype=torch.bfloat16, **details) -> Problem:
    channels, hidden, outputs = shape
    return Problem("inverted_bottleneck", "cpu", dtype, (1, channels, 8, 8, 8), hidden_channels=hidden,
                   out_channels=outputs, num_groups=channels, **details)  # fmt: skip


def test_every_bottleneck_of_three_types_is_taken(emulated):
    """What the fused kernels do not fit goes to products; float64 has no kernels."""
    for architecture in (75, 86, 90):
        with emulated.architecture(architecture):
            for shape in ((32, 64, 32), (64, 512, 64), (256, 512, 256)):
                for dtype in (*DTYPES, torch.float32):
                    for flags in (frozenset(), frozenset({"grn"})):
                        for last in (False, True):
                            assert emulated.supports(problem(shape, dtype, channels_last=last, flags=flags)) is None
    assert "no kernel for torch.float64" in emulated.supports(problem((32, 64, 32), torch.float64))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"norm_weight": torch.ones(31)}, r"norm_weight must be \[32\], got \[31\]"),
        ({"expand_weight": torch.ones(64, 33)}, r"expand_weight must be \[64, 32\], got \[64, 33\]"),
        ({"compress_weight": torch.ones(32, 65)}, r"compress_weight must be \[32, 64\], got \[32, 65\]"),
        ({"expand_bias": torch.ones(64).double()}, "expand_bias must be float32 or BFloat16"),
        ({"compress_bias": torch.ones(33)}, r"compress_bias must be \[32\], got \[33\]"),
        ({"residual": torch.ones(1, 32, 2, 2, 9).bfloat16()}, r"residual must be \[1, 32, 2, 2, 8\]"),
        ({"residual": torch.ones(1, 32, 2, 2, 8)}, "residual must be BFloat16 as the input, got Float"),
        ({"input": torch.ones(1, 32, 2, 2, 8).double()}, "input must be float16 or bfloat16, got Double"),
    ],
)
def test_bad_input_gives_a_sentence(emulated, change, sentence):
    case = Case.draw((32, 64, 32), (2, 2, 8), 1, torch.bfloat16)
    with pytest.raises(RuntimeError, match=f"inverted_bottleneck: {sentence}"):
        replace(case, **change).fused(emulated)


@pytest.mark.parametrize("with_grn", [False, True])
@pytest.mark.parametrize(("form", "stride"), [("regular", (1, 1, 1)), ("down", (2, 2, 2)), ("up", (2, 2, 2))])
def test_the_whole_block_runs_on_it(emulated, form, stride, with_grn):
    block = Block.random(form, (3, 3, 3), (5, 6, 7), 2, 32, 64, with_grn, dtype=torch.bfloat16, device="cpu")
    assert emulated.supports(problem((32, 64, 32))) is None
    exact = block.to(torch.float64).leaves().eager(form, stride, 32)
    theirs = block.eager(form, stride, 32)
    with ops.use_backend("emulated", "reference"):
        ours = block.ours(form, stride, 32)
        grad_output = torch.randn_like(theirs)
        our_gradients = torch.autograd.grad(ours, list(block.tensors().values()), grad_output)
    assert_within_twice(ours, theirs, exact, "output")
    wide = block.to(torch.float64).leaves()
    exact_gradients = torch.autograd.grad(
        wide.eager(form, stride, 32), list(wide.tensors().values()), grad_output.double()
    )
    their_gradients = torch.autograd.grad(theirs, list(block.tensors().values()), grad_output)
    for name, our, their, right in zip(block.tensors(), our_gradients, their_gradients, exact_gradients, strict=True):
        if name != "conv_bias":  # zero: what PyTorch computes of it is noise
            assert_within_twice(our, their, right, name)
