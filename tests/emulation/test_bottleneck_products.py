"""The inverted bottleneck of many channels on the emulation: a library's products, and our kernels between them."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import mednext_ops as ops
from mednext_ops.backends import cuda_products
from mednext_ops.backends.problem import InvertedBottleneckGradients, InvertedBottleneckNeeds
from mednext_ops.formulas import (
    GlobalResponse,
    compression_gradients,
    dot_of_hidden,
    expansion_gradients,
    group_norm_gradient,
)
from mednext_ops.plans import bottleneck_plans

from ..ops.eager import Block
from .test_inverted_bottleneck import DTYPES, Case, check_backward, check_forward, problem

FLOATS = [*DTYPES, torch.float32]
# Too wide for the fused kernels, as middle and deep stages are, down and up blocks too, and one of odd numbers.
WIDE = [(128, 512, 128), (256, 512, 256), (136, 272, 264), (256, 512, 128), (131, 77, 45)]
SIZES = [(4, 4, 8), (3, 5, 7), (1, 1, 1)]


@pytest.fixture
def native(emulated):
    return emulated._kernels._native


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", WIDE)
@pytest.mark.parametrize("dtype", FLOATS)
def test_wide_ones_are_within_twice_of_eager(emulated, dtype, shape, size):
    assert emulated.supports(problem(shape, dtype)) is None
    case = Case.draw(shape, size, 2, dtype)
    if size == (1, 1, 1):  # of one voxel the norm is its bias alone
        check_forward(emulated, case)
    else:
        check_forward(emulated, case)
        check_backward(emulated, case)


@pytest.mark.parametrize("size", [(5, 6, 8), (3, 5, 7)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", [(32, 64, 32), (32, 128, 64), (64, 128, 32), (5, 10, 5)])
def test_in_float32_all_go_to_products(emulated, shape, batch, size):
    """The fused kernels are for tensor cores."""
    for name in ("inverted_bottleneck", "inverted_bottleneck_backward"):
        assert emulated.supports(problem(shape, torch.float32)._replace(op=name)) is None
    case = Case.draw(shape, size, batch, torch.float32)
    case.input[:, ::2] += 30.0  # a mean far above the deviation must not cancel
    check_forward(emulated, case)
    check_backward(emulated, case)


@pytest.mark.parametrize("size", [(4, 4, 8), (3, 5, 7)])
@pytest.mark.parametrize("shape", [(128, 512, 128), (131, 77, 45), (32, 128, 64)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_with_a_global_response(emulated, dtype, shape, size):
    """Forward and backward make the hidden tensor twice; those of (32, 128, 64) are fused in 16 bits."""
    case = Case.draw(shape, size, 2, dtype, grn=True)
    check_forward(emulated, case)
    check_forward(emulated, replace(case, compress_bias=None, residual=None))
    check_backward(emulated, case)


@pytest.mark.parametrize("with_grn", [False, True])
@pytest.mark.parametrize("size", [(4, 4, 8), (3, 5, 7)])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((128, 512, 128), torch.bfloat16), ((256, 512, 136), torch.float16), ((32, 64, 48), torch.float32)],
)
def test_in_channels_last_they_are_the_same_to_the_bit(emulated, shape, dtype, size, with_grn):
    assert emulated.supports(problem(shape, dtype, channels_last=True)) is None
    case = Case.draw(shape, size, 2, dtype, grn=with_grn)
    last = case.channels_last()
    grad_output = torch.randn(2, shape[2], *size).to(dtype)
    expected = [case.fused(emulated), *case.fused_gradients(emulated, grad_output)]
    for of_output in (grad_output, grad_output.contiguous(memory_format=torch.channels_last_3d)):
        found = [last.fused(emulated), *last.fused_gradients(emulated, of_output)]
        assert all(t.is_contiguous(memory_format=torch.channels_last_3d) for t in found[:2])
        for name, a, b in zip(("output", *InvertedBottleneckGradients._fields), found, expected, strict=True):
            if dtype == torch.float32 and name in ("grad_sum", "grad_dot_normalized"):  # summed along another axis
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            else:
                assert a is b is None or torch.equal(a, b), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_response_of_hidden_channels_that_are_zero(emulated, dtype):
    """Their norm has no slope; PyTorch's is NaN there."""
    case = Case.draw((128, 256, 128), (3, 4, 5), 2, dtype, grn=True)
    case.expand_weight[7], case.expand_bias[7] = 0, 0
    found = case.fused_gradients(emulated, torch.randn(2, 128, 3, 4, 5).to(dtype))
    assert all(t.isfinite().all() for t in (case.fused(emulated), *found))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_wide_ones_take_parameters_of_both_types_and_lack_what_may_lack(emulated, parameters, batch):
    case = Case.draw((128, 512, 128), (3, 4, 5), batch, torch.bfloat16, parameters, residual=False)
    case = replace(case, expand_bias=None, compress_bias=None)
    check_forward(emulated, case)
    check_backward(emulated, replace(case, compress_bias=torch.zeros(128)))


@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_extreme_norms(emulated, shift):
    """A mean far above the deviation must not cancel, nor a gamma of zero divide."""
    case = Case.draw((128, 512, 128), (4, 4, 7), 2, torch.bfloat16)
    case.input[:] += shift
    case.norm_weight[::3] = 0
    check_forward(emulated, case)
    check_backward(emulated, case)


@pytest.mark.parametrize("with_grn", [False, True])
@pytest.mark.parametrize("size", [(4, 4, 8), (3, 5, 7)])
def test_tiles_of_the_hidden_tensor_make_the_same_result(emulated, monkeypatch, size, with_grn):
    case = Case.draw((128, 512, 128), size, 2, torch.bfloat16, grn=with_grn)
    grad_output = torch.randn(2, 128, *size).bfloat16()
    whole, gradients = case.fused(emulated), case.fused_gradients(emulated, grad_output)
    monkeypatch.setattr(cuda_products, "TILE_ELEMENTS", 2 * 512 * 40)
    output, tiled = case.fused(emulated), case.fused_gradients(emulated, grad_output)
    if with_grn:  # a sum of squares in another order may round a gain to the other side
        assert (output != whole).float().mean() < 0.05 and (tiled.grad != gradients.grad).float().mean() < 0.05
        torch.testing.assert_close(output, whole, rtol=2**-7, atol=2**-7)
        gradients, tiled = gradients._replace(grad=None), tiled._replace(grad=None)
    else:
        assert torch.equal(output, whole) and torch.equal(tiled.grad, gradients.grad)
    for name, a, b in zip(tiled._fields, tiled, gradients, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()), msg=name)


@pytest.mark.parametrize("with_grn", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("field", InvertedBottleneckNeeds._fields[:4])
def test_one_gradient_alone_has_the_same_bits(emulated, field, dtype, with_grn):
    case = Case.draw((128, 512, 128), (3, 4, 5), 2, dtype, grn=with_grn)
    grad_output = torch.randn(2, 128, 3, 4, 5).to(dtype)
    everything = case.fused_gradients(emulated, grad_output, InvertedBottleneckNeeds(True, True, True, True, with_grn))
    needs = InvertedBottleneckNeeds(*(name == field for name in InvertedBottleneckNeeds._fields))
    alone = case.fused_gradients(emulated, grad_output, needs)
    names = {"input": "grad", "norm": "grad_sum", "expand": "expand_weight", "compress": "compress_bias"}
    assert torch.equal(getattr(alone, names[field]), getattr(everything, names[field]))
    assert (alone.grad is None) == (field != "input")
    assert (alone.compress_weight is None) == (field != "compress" and not with_grn)


@pytest.mark.parametrize(
    ("channels", "hidden", "outputs", "details", "forward", "backward"),
    [
        (64, 256, 64, {}, "fused", "fused"),
        (64, 2048, 64, {}, "products", "products"),
        (128, 256, 64, {}, "products", "products"),
        (64, 256, 64, {"grn": True}, "fused", "fused"),
        (128, 256, 64, {"channels_last": True}, "fused", "products"),
        (256, 512, 256, {"grn": True}, "products", "products"),
    ],
)
def test_plans_say_which_way_is_taken(emulated, channels, hidden, outputs, details, forward, backward):
    plans = bottleneck_plans((1, channels, 8, 8, 8), hidden, outputs, "bf16", 90, **details)
    assert [plans[f"bottleneck_{name}"]["core"] for name in ("forward", "backward")] == [forward, backward]
    assert {plan["core"] for plan in bottleneck_plans((1, 32, 8, 8, 8), 64, 32, "fp32", 90).values()} == {"products"}
    plans = bottleneck_plans((1, 32, 8, 8, 8), 64, 32, "fp32", 90, channels_last=True)
    assert {plan["core"] for plan in plans.values()} == {"products"}


@pytest.mark.parametrize("with_grn", [False, True])
def test_an_empty_batch(emulated, with_grn):
    case = Case.draw((128, 512, 128), (2, 2, 8), 0, torch.bfloat16, grn=with_grn)
    case.statistics = lambda: (torch.zeros(0, 128), torch.ones(0, 128))
    assert case.fused(emulated).shape == (0, 128, 2, 2, 8)
    found = case.fused_gradients(emulated, torch.zeros(0, 128, 2, 2, 8).bfloat16())
    assert found.grad.shape == (0, 128, 2, 2, 8)
    assert not any(t.any() for t in (found.expand_weight, found.expand_bias, found.compress_weight))


@pytest.mark.parametrize("with_grn", [False, True])
@pytest.mark.parametrize("form", ["regular", "down", "up"])
def test_wide_blocks_have_the_same_bits_in_every_order(emulated, form, with_grn):
    stride = (1, 1, 1) if form == "regular" else (2, 2, 2)
    block = Block.random(form, (3, 3, 3), (3, 4, 5), 1, 128, 128, with_grn, dtype=torch.bfloat16, device="cpu")
    grad_output = torch.randn_like(block.eager(form, stride, 128)).detach()

    def run() -> list[torch.Tensor]:
        with ops.use_backend("emulated", "reference"):
            ours = block.ours(form, stride, 128)
            return [ours, *torch.autograd.grad(ours, list(block.tensors().values()), grad_output)]

    first = run()
    with emulated.thread_order("shuffled", seed=3):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


@pytest.mark.parametrize("length", [8, 1024, 1032, 4104])
@pytest.mark.parametrize("dtype", FLOATS)
def test_hidden_is_gelu_of_the_sum_and_gradients_come_with_sums(native, dtype, length):
    preactivation, bias = torch.randn(2, 5, length).to(dtype), torch.randn(5)
    grad = torch.randn(2, 5, length).to(dtype)
    grad_output = torch.randn(2, 3, length + 16).to(dtype)[:, :, 8:-8]  # a tile
    exact = (preactivation.double() + bias.double()[:, None]).requires_grad_()
    exact_hidden = F.gelu(exact)
    (exact_grad,) = torch.autograd.grad(exact_hidden, exact, grad.double())
    forward, alone = preactivation.clone(), preactivation.clone()
    assert native.bottleneck_hidden_(forward, bias, None).numel() == 0
    output_sums = native.bottleneck_hidden_(alone, bias, grad_output)
    without = native.bottleneck_hidden_gradient_(preactivation.clone(), grad.clone(), bias, None)
    sums = native.bottleneck_hidden_gradient_(preactivation, grad, bias, grad_output)
    # A little more than half a unit in the last place; in float32 erf's own error is larger.
    step = {torch.bfloat16: 1.25 * 2**-8, torch.float16: 1.25 * 2**-11, torch.float32: 2**-21}[dtype]
    assert torch.equal(forward, preactivation) and torch.equal(alone, preactivation)
    assert torch.equal(sums, torch.cat([without, output_sums]))
    torch.testing.assert_close(forward.double(), exact_hidden.detach(), rtol=step, atol=1e-5)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=step, atol=1e-4)
    right = torch.cat([grad.double().sum(2).flatten(), grad_output.double().sum(2).flatten()])
    torch.testing.assert_close(sums.double(), right, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("length", [8, 1032, 2056])
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_a_global_response_adds_ends_with_the_voxels(native, dtype, length):
    voxels = length - 3
    preactivation, bias = torch.randn(2, 5, length).to(dtype), torch.randn(5)
    grad, slope = torch.randn(2, 5, length).to(dtype), torch.randn(2, 5)
    grad_output = torch.randn(2, 3, length).to(dtype)
    exact = (preactivation.double() + bias.double()[:, None]).requires_grad_()
    hidden = F.gelu(exact)
    adjusted = grad.double() + slope.double()[..., None] * hidden.detach()
    adjusted[:, :, voxels:] = 0
    (exact_grad,) = torch.autograd.grad(hidden, exact, adjusted)
    forward, plain = preactivation.clone(), preactivation.clone()
    sums = native.bottleneck_hidden_(forward, bias, grad_output, voxels)
    output_sums = native.bottleneck_hidden_(plain, bias, grad_output)
    assert torch.equal(forward, plain) and torch.equal(sums[10:], output_sums)
    squares = forward[:, :, :voxels].double().square().sum(2).flatten()
    torch.testing.assert_close(sums[:10].double(), squares, rtol=1e-6, atol=1e-6)
    assert torch.equal(native.bottleneck_hidden_(preactivation.clone(), bias, None, voxels), sums[:10])

    sums = native.bottleneck_hidden_gradient_(preactivation, grad, bias, grad_output, slope, voxels)
    step = {torch.bfloat16: 1.25 * 2**-8, torch.float16: 1.25 * 2**-11, torch.float32: 2**-20}[dtype]
    assert torch.equal(preactivation, forward) and not grad[:, :, voxels:].any()
    assert torch.equal(sums[10:], output_sums)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=step, atol=1e-3 if dtype != torch.float32 else 1e-6)
    torch.testing.assert_close(sums[:10].double(), grad.double().sum(2).flatten(), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("size", [(4, 4, 8), (3, 5, 7), (7, 7, 7), (1, 1, 1), (2, 5, 150), (2, 3, 31)])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2)])
@pytest.mark.parametrize("front", [(0, 0, 0), (1, 1, 1), (0, 1, 1), (2, 0, 3), (1, 0, 17)])
@pytest.mark.parametrize("added", ["nothing", "residual", "skip", "both"])
@pytest.mark.parametrize("channels", [3, 4])  # of four all rows together are a multiple of eight
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_output_is_the_sum_behind_zeros(native, dtype, size, stride, front, added, channels):
    voxels = size[0] * size[1] * size[2]
    product = torch.randn(2, channels, voxels + 5).to(dtype)
    bias = torch.randn(channels)
    sparse = [-(-n // s) for n, s in zip(size, stride, strict=True)]
    residual = torch.randn(2, channels, *sparse).to(dtype) if added in ("residual", "both") else None
    right = product[:, :, :voxels].reshape(2, channels, *size).float() + bias[:, None, None, None]
    if residual is not None:
        right[:, :, :: stride[0], :: stride[1], :: stride[2]] += residual.float()
    right = F.pad(right, (front[2], 0, front[1], 0, front[0], 0))
    skip = torch.randn(right.shape).to(dtype) if added in ("skip", "both") else None
    found = native.bottleneck_output(product, bias, residual, skip, size, stride, front)
    if skip is None:
        assert torch.equal(found, right.to(dtype))
        plain = native.bottleneck_output(product, None, residual, skip, size, stride, front)
        interior = plain[:, :, front[0] :, front[1] :, front[2] :]
        if residual is None:
            assert torch.equal(interior, product[:, :, :voxels].reshape(2, channels, *size))
    else:  # sums of three, in another order
        right = right.double() + skip.double()
        torch.testing.assert_close(found.double(), right, rtol=1.01 * torch.finfo(dtype).eps, atol=1e-6)


# What blocks pack: the inside of a volume, every other voxel, rows that are longer than their voxels; and permutations.
VIEWS = {
    "whole": lambda t: t,
    "behind zeros": lambda t: t[:, :, 1:, 1:, 1:],
    "strided": lambda t: t[:, :, ::2, ::2, ::2],
    "strided in a plane": lambda t: t[:, :, 1:, ::2, 1::2],
    "rows": lambda t: t.flatten(2)[:, :, None, None, :-3],
    "layers": lambda t: t[:, :, :, :-1],
    "permuted": lambda t: t.permute(1, 0, 4, 2, 3),
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last_3d)[:, :, :, :, 1:],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", [(4, 4, 8), (3, 6, 7), (2, 2, 2), (5, 2, 150), (9, 10, 11)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_packed_voxels_are_the_views(native, dtype, view, size):
    volume = VIEWS[view](torch.randn(2, 3, *size).to(dtype))
    voxels = volume.shape[2:].numel()
    assert torch.equal(native.packed_voxels(volume, False), volume.flatten(2))
    padded = native.packed_voxels(volume, True)
    assert padded.is_contiguous() and padded.shape == (*volume.shape[:2], -(-voxels // 8) * 8)
    assert torch.equal(padded, F.pad(volume.flatten(2), (0, padded.shape[2] - voxels)))


@pytest.mark.parametrize(
    ("channels", "dtype"), [(32, torch.bfloat16), (128, torch.bfloat16), (32, torch.float32)]
)  # fused, and products
@pytest.mark.parametrize("form", ["down", "up"])
def test_resampling_blocks_move_volumes_without_copies_of_pytorch(emulated, form, channels, dtype):
    implementation = importlib.import_module("mednext_ops.ops.mednext_block")
    block = Block.random(form, (3, 3, 3), (4, 4, 6), 1, channels, 2 * channels, dtype=dtype)
    matrix = block.residual_weight.detach().flatten(1)
    block = replace(block, **{n: t.detach() for n, t in block.tensors().items()})
    block.expand_weight, block.compress_weight = block.expand_weight.flatten(1), block.compress_weight.flatten(1)
    block.residual_weight = matrix.t() if form == "up" else matrix
    parameters = list(vars(block).values())[1:]
    skip = torch.randn(1, channels // 2, 8, 8, 12).to(dtype) if form == "up" else None
    found: list[str] = []

    class Copies(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            copies = ("aten::clone", "aten::copy_", "aten::constant_pad_nd", "aten::add")
            if function._schema.name in copies and result.dim() > 2:
                found.append(f"{function._schema.name} of {list(result.shape)}")
            return result

    with ops.use_backend("emulated", "reference"), torch.no_grad(), Copies():
        output, convolved, mean, rstd = implementation._forward(
            block.input, *parameters, form, (2, 2, 2), True, channels, 1e-5, False, skip
        )
        implementation._backward_op(
            torch.ones_like(output), block.input, convolved, mean, rstd, *parameters, form, (2, 2, 2), True, False,
            [t is not None for t in (block.input, *parameters)], block.input if form == "down" else None,
        )  # fmt: skip
    assert found == []


@pytest.mark.parametrize("shape", [(0, 3, 2, 2, 2), (2, 0, 2, 2, 2), (2, 3, 0, 2, 2)])
def test_packing_nothing(native, shape):
    assert native.packed_voxels(torch.empty(shape).bfloat16(), True).shape == (*shape[:2], 8 if shape[2] else 0)


@pytest.mark.parametrize(("channels", "hidden", "outputs"), [(37, 50, 9), (300, 50, 10), (32, 50, 9)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_are_folded_once_rounded(native, dtype, channels, hidden, outputs):
    norm_weight, norm_bias = torch.randn(channels), torch.randn(channels)
    expand, compress = torch.randn(hidden, channels), torch.randn(outputs, hidden)
    for expand_bias in (None, torch.randn(hidden)):
        folded, bias, rounded, compressed = native.bottleneck_weights(
            torch.empty(0, dtype=dtype), norm_weight, norm_bias, expand, expand_bias, compress
        )
        mixed = native.bottleneck_weights(
            torch.empty(0, dtype=dtype), norm_weight.to(dtype), norm_bias, expand, expand_bias, compress.to(dtype)
        )
        assert torch.equal(mixed[0], (expand * norm_weight.to(dtype).float()).to(dtype))
        assert torch.equal(mixed[1], bias) and torch.equal(mixed[3], compressed)
        assert torch.equal(folded, (expand * norm_weight).to(dtype))
        assert torch.equal(rounded, expand.to(dtype)) and torch.equal(compressed, compress.to(dtype))
        right = expand.double() @ norm_bias.double() + (0 if expand_bias is None else expand_bias)
        torch.testing.assert_close(bias.double(), right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 70, 45), (2, 33, 64)])
def test_expansion_gradients_are_the_formulas(native, shape):
    batch, hidden, channels = shape
    sums, normalized = torch.randn(batch, hidden), torch.randn(batch, hidden, channels)
    norm_weight, norm_bias, expand = torch.randn(channels), torch.randn(channels), torch.randn(hidden, channels)
    found = native.bottleneck_expansion_gradients(sums, normalized, norm_weight, norm_bias, expand)
    right = expansion_gradients(*(t.double() for t in (sums, normalized, expand, norm_weight, norm_bias)))
    for name, ours in zip(("grad_sum", "grad_dot_normalized", "expand_weight", "expand_bias"), found, strict=True):
        torch.testing.assert_close(ours.double(), right[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("batch", "hidden", "outputs"), [(1, 5, 3), (3, 70, 45), (2, 1100, 9), (0, 6, 4)])
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_response_is_the_formulas(native, dtype, parameters, batch, hidden, outputs, bias):
    squares = 40 * torch.rand(batch, hidden).square()
    squares[:, 2] = 0
    gamma, beta = torch.randn(hidden).to(parameters), torch.randn(hidden).to(parameters)
    compress = torch.randn(outputs, hidden).to(parameters)
    compress_bias = torch.randn(outputs).to(parameters) if bias else None
    output_sums, output_hidden = torch.randn(batch, outputs), torch.randn(batch, outputs, hidden)
    like = torch.empty(0, dtype=dtype)
    weights, shift = native.bottleneck_response(like, squares, gamma, beta, compress, compress_bias)

    response = GlobalResponse(squares.double(), gamma.double())
    exact_shift = compress.double() @ beta.double() + (0 if compress_bias is None else compress_bias.double())
    assert torch.equal(weights, (compress.float() * response.gain.float()[:, None]).to(dtype))
    torch.testing.assert_close(shift.double(), exact_shift, rtol=1e-7, atol=1e-6)

    again, slope, *gradients = native.bottleneck_response_gradients(
        like, squares, output_sums, output_hidden, gamma, beta, compress
    )
    assert torch.equal(again, weights)
    wide = (output_sums.double(), output_hidden.double(), compress.double())
    dot = dot_of_hidden(*wide[1:])
    torch.testing.assert_close(slope.double(), response.slope(dot), rtol=1e-6, atol=1e-9)
    right = compression_gradients(*wide, response, beta.double())
    for name, ours in zip(("compress_weight", "compress_bias", "grn_gamma", "grn_beta"), gradients, strict=True):
        torch.testing.assert_close(ours.double(), right[name], rtol=1e-6, atol=1e-5, msg=name)


@pytest.mark.parametrize("groups", [1, 6, 90])
@pytest.mark.parametrize("parameters", [torch.float32, torch.bfloat16])
def test_the_map_of_a_norms_gradient(native, groups, parameters):
    channels, voxels = 90, 5 * 6 * 7
    sums, dots = torch.randn(2, channels), torch.randn(2, channels)
    mean, rstd = torch.randn(2, groups), torch.rand(2, groups) + 0.5
    weight = torch.randn(channels).to(parameters)
    found = native.group_norm_input_gradient(sums, dots, mean, rstd, weight, voxels)
    output = torch.empty(2, channels, 5, 6, 7)
    wide = (t.double() for t in (mean, rstd, weight, sums, dots))
    right = group_norm_gradient(output, output, *wide)
    for ours, exact in zip(found, right[2:], strict=True):
        torch.testing.assert_close(ours.double(), exact.expand(2, channels), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("with_grn", "forward", "backward"), [(False, 6, 9), (True, 7, 12)])
def test_a_wide_block_takes_few_launches(emulated, with_grn, forward, backward):
    """What PyTorch launches around our kernels is what a step of small volumes waits for."""
    calls: list[str] = []

    class Calls(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(function._schema.name)
            return function(*args, **(kwargs or {}))

    case = Case.draw((128, 512, 128), (4, 4, 8), 1, torch.bfloat16, grn=with_grn)
    grad_output = torch.randn(1, 128, 4, 4, 8).bfloat16()
    statistics = case.statistics()
    case.statistics = lambda: statistics
    with Calls():
        case.fused(emulated)
    launches = [c for c in calls if c.startswith("mednext_ops") or c in ("aten::mm", "aten::bmm")]
    assert len(launches) == forward
    assert not {"aten::add", "aten::add_", "aten::copy_", "aten::_to_copy", "aten::cat"} & set(calls)
    calls.clear()
    with Calls():
        case.fused_gradients(emulated, grad_output)
    launches = [c for c in calls if c.startswith("mednext_ops") or c in ("aten::mm", "aten::bmm")]
    assert len(launches) == backward
    assert not {"aten::add", "aten::add_", "aten::copy_", "aten::mul", "aten::zeros", "aten::sum"} & set(calls)


def gradient(native, preactivation, grad, grad_output=None, slope=None, voxels=None):
    return native.bottleneck_hidden_gradient_(preactivation, grad, torch.ones(5), grad_output, slope, voxels)


def output(native, product, size, *, bias=None, residual=None, skip=None, stride=(1, 1, 1), front=(0, 0, 0)):
    return native.bottleneck_output(product, bias, residual, skip, size, stride, front)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda n, t: n.bottleneck_hidden_(t(2, 5, 7), t(5).float(), None), "multiples of 8 voxels"),
        (lambda n, t: n.bottleneck_hidden_(t(2, 5, 8).double(), t(5).float(), None), "must be float32, float16"),
        (lambda n, t: n.bottleneck_hidden_(t(2, 5, 8), t(6).float(), None), r"bias must be \[5\], got \[6\]"),
        (lambda n, t: n.bottleneck_hidden_(t(2, 5, 16)[:, :, ::2], t(5).float(), None), "must be contiguous"),
        (lambda n, t: n.bottleneck_hidden_(t(2, 5, 8), t(5).float(), None, 9), "voxels must be in 0 to 8, got 9"),
        (lambda n, t: n.bottleneck_hidden_(t(2, 5, 8), t(5).float(), None, -1), "voxels must be in 0 to 8, got -1"),
        (
            lambda n, t: gradient(n, t(2, 5, 8), t(2, 5, 8), slope=t(2, 5).float()),
            "slope and voxels must both be given",
        ),
        (lambda n, t: gradient(n, t(2, 5, 8), t(2, 5, 8), slope=t(2, 4).float(), voxels=8), r"slope must be \[2, 5\]"),
        (lambda n, t: gradient(n, t(2, 5, 8), t(2, 5, 8), slope=t(2, 5), voxels=8), "slope must be float32"),
        (lambda n, t: gradient(n, t(2, 5, 8), t(2, 4, 8)), r"grad must be \[2, 5, 8\]"),
        (lambda n, t: gradient(n, t(2, 5, 8), t(2, 5, 8).half()), "of one type"),
        (lambda n, t: gradient(n, t(2, 5, 8), t(2, 5, 8), t(2, 3, 16)), r"grad_output must be \[2, 3, 8\]"),
        (lambda n, t: gradient(n, t(2, 5, 8), t(2, 5, 8), t(2, 3, 9)[:, :, 1:]), "begin at multiples of 8 voxels"),
        (lambda n, t: gradient(n, t(2, 5, 8), t(2, 5, 8), t(2, 3, 8).half()), "must be of one type"),
        (lambda n, t: n.bottleneck_normalized(t(2, 4, 1, 1, 8), t(2, 4), t(2, 4)), "mean must be float32"),
        (lambda n, t: n.bottleneck_normalized(t(2, 4, 1, 1, 8), t(2, 3).float(), t(2, 3).float()), "divisor"),
        (lambda n, t: output(n, t(2, 4, 8), [2, 2, 3]), "are shorter than"),
        (lambda n, t: output(n, t(2, 4, 8), [2, 2, 2], stride=[0] * 3), "stride must be"),
        (lambda n, t: output(n, t(2, 4, 8), [2, 2, 2], stride=[1, 3, 1]), r"stride must be 1 or 2, got \[1, 3, 1\]"),
        (
            lambda n, t: output(n, t(2, 4, 8), [2, 2, 2], residual=t(2, 4, 2, 2, 2), stride=[2] * 3),
            r"residual must be \[2, 4, 1, 1, 1\]",
        ),
        (lambda n, t: output(n, t(2, 4, 8), [2, 2, 2], bias=t(5)), r"bias must be \[4\]"),
        (
            lambda n, t: output(n, t(2, 4, 8), [2, 2, 2], skip=t(2, 4, 2, 2, 2), front=[0, 1, 0]),
            r"skip must be \[2, 4, 2, 3, 2\]",
        ),
        (lambda n, t: output(n, t(2, 4, 8), [2, 2, 2], skip=t(2, 4, 2, 2, 2).half()), "skip must be BFloat16"),
        (lambda n, t: n.packed_voxels(t(2, 4, 8), False), r"input must be \[N, C, D, H, W\]"),
        (lambda n, t: n.packed_voxels(t(2, 4, 2, 2, 2).double(), False), "must be float32, float16"),
        (
            lambda n, t: n.bottleneck_response(t(1), t(2, 5), t(5), t(5), t(4, 5), None),
            "squares must be float32",
        ),
        (
            lambda n, t: n.bottleneck_response(t(1), t(2, 6).float(), t(5), t(5), t(4, 5), None),
            r"squares must be \[2, 5\], got \[2, 6\]",
        ),
        (
            lambda n, t: n.bottleneck_response(t(1), t(2, 5).float(), t(5), t(4), t(4, 5), None),
            r"beta must be \[5\]",
        ),
        (
            lambda n, t: n.bottleneck_response(t(1), t(2, 5).float(), t(5), t(5), t(4, 5), t(5)),
            r"compress_bias must be \[4\]",
        ),
        (
            lambda n, t: n.bottleneck_response_gradients(
                t(1), t(2, 5).float(), t(2, 4), t(2, 4, 5).float(), t(5), t(5), t(4, 5)
            ),
            "output_sums must be float32",
        ),
        (
            lambda n, t: n.bottleneck_response_gradients(
                t(1), t(2, 5).float(), t(2, 4).float(), t(2, 5, 4).float(), t(5), t(5), t(4, 5)
            ),
            r"output_hidden must be \[2, 4, 5\], got \[2, 5, 4\]",
        ),
        (lambda n, t: n.bottleneck_weights(t(1), t(3), t(4), t(5, 4), None, t(2, 5)), r"norm_weight must be \[4\]"),
        (lambda n, t: n.bottleneck_weights(t(1), t(4), t(4), t(5, 4), None, t(2, 6)), r"compress_weight must be"),
        (
            lambda n, t: n.group_norm_input_gradient(*[t(2, 4).float()] * 4, t(4), 0),
            "voxels must be positive",
        ),
        (
            lambda n, t: n.bottleneck_expansion_gradients(t(2, 5), t(2, 5, 4).float(), t(4), t(4), t(5, 4)),
            "hidden_sums must be float32",
        ),
    ],
)
def test_bad_input_gives_a_sentence(native, call, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        call(native, lambda *sizes: torch.ones(sizes, dtype=torch.bfloat16))
