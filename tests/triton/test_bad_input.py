"""What the Triton backend refuses, with a sentence that names the argument, before a launch; and what it passes on."""

from __future__ import annotations

import pytest
import torch

import mednext_ops as ops
from mednext_ops import backends
from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient, InvertedBottleneckNeeds, Problem

HERE = "cuda" if torch.cuda.is_available() else "cpu"
OTHER = "cpu" if HERE == "cuda" else "meta"

X = torch.randn(2, 4, 5, 5, 5, device=HERE)
W = torch.randn(4, 1, 3, 3, 3, device=HERE)
NC, C = torch.zeros(2, 4, device=HERE), torch.zeros(4, device=HERE)
EXPAND, COMPRESS, R = (torch.zeros(shape, device=HERE) for shape in ((8, 4), (4, 8), (8,)))
SAME = ConvGeometry((3, 3, 3), padding=(1, 1, 1))
ALL = InvertedBottleneckNeeds(True, True, True, True, True)


@pytest.fixture
def triton(triton_backend):
    """The module itself, with nothing moved between devices."""
    return backends._module("triton")


def conv(b, x=X, w=W, bias=None, g=SAME):
    return b.depthwise_conv3d(x, w, bias, g)


def gradients(b, grad=X, x=X, w=W, add=None, g=SAME):
    return b.depthwise_conv3d_backward(grad, x, w, g, add, True, True)


def affine(b, grad=X, output=X, scale=NC, slope=NC, offset=NC):
    return gradients(b, GroupNormGradient(grad, output, scale, slope, offset))


def norm(b, x=X, mean=NC, rstd=NC, weight=C, bias=C, activation="gelu"):
    return b.group_norm(x, mean, rstd, weight, bias, activation)


def mlp(b, x=X, mean=NC, norm=C, expand=EXPAND, bias=R, compress=COMPRESS, out=C, grn=None, residual=None):
    return b.inverted_bottleneck(x, mean, NC, norm, C, expand, bias, compress, out, grn, residual)


def mlp_gradients(b, grad=X, compress=COMPRESS, grn=None):
    return b.inverted_bottleneck_backward(grad, X, NC, NC, C, C, EXPAND, R, compress, grn, ALL)


CASES = [
    (lambda b: conv(b, X.to_sparse()), TypeError, "depthwise_conv3d: input must be a dense"),
    (lambda b: conv(b, X[0]), ValueError, r"input must be \[N, C, D, H, W\], got 4 dimensions: \[4, 5, 5, 5\]"),
    (lambda b: conv(b, X.double()), TypeError, "input must be float32, float16 or bfloat16, got torch.float64"),
    (lambda b: conv(b, X.long()), TypeError, "got torch.int64"),
    (lambda b: conv(b, X.cfloat()), TypeError, "got torch.complex64"),
    (lambda b: conv(b, X.to(OTHER)), RuntimeError, f"input must be on {HERE}.*, got a tensor on {OTHER}"),
    (lambda b: conv(b, X[:, :0], W[:0]), ValueError, r"a channel and a voxel at least, got shape \[2, 0, 5, 5, 5\]"),
    (lambda b: conv(b, X[..., :0]), ValueError, "a channel and a voxel at least"),
    (lambda b: conv(b, w=W[0]), ValueError, r"weight must have shape \[4, 1, 3, 3, 3\], got \[1, 3, 3, 3\]"),
    (lambda b: conv(b, w=W[:3]), ValueError, r"weight must have shape \[4, 1, 3, 3, 3\], got \[3, 1, 3, 3, 3\]"),
    (lambda b: conv(b, w=W[..., :1]), ValueError, "weight must have shape"),
    (lambda b: conv(b, w=W.double()), TypeError, "weight must be float32 or torch.float32 as the input"),
    (lambda b: conv(b, w=W.half()), TypeError, "weight must be float32 .* got torch.float16"),
    (lambda b: conv(b, X.half(), W.bfloat16()), TypeError, "float32 or torch.float16 as .* got torch.bfloat16"),
    (lambda b: conv(b, w=W.to(OTHER)), RuntimeError, f"weight is on {OTHER} but input is on {HERE}.*; move one"),
    (lambda b: conv(b, bias=C[:3]), ValueError, r"bias must have shape \[4\], got \[3\]"),
    (lambda b: conv(b, bias=C.to(OTHER)), RuntimeError, f"bias is on {OTHER}"),
    (lambda b: conv(b, X[:, :, :2], g=ConvGeometry((3, 3, 3))), ValueError, r"too small for a kernel of \[3, 3, 3\]"),
    (lambda b: b.depthwise_conv3d_statistics(X, W, None, SAME, 3, 1e-5), ValueError, "divisor of the 4 channels"),
    (lambda b: b.depthwise_conv3d_statistics(X, W, C[:2], SAME, 2, 1e-5), ValueError, "conv3d_statistics: bias must"),
    (lambda b: gradients(b, X[:1]), ValueError, r"grad_output must have shape \[2, 4, 5, 5, 5\], got \[1, 4"),
    (lambda b: gradients(b, X[..., 1:]), ValueError, "grad_output must have shape"),
    (lambda b: gradients(b, X.half()), TypeError, "grad_output must be torch.float32 as the input, got torch.float16"),
    (lambda b: gradients(b, X.to(OTHER)), RuntimeError, f"grad_output is on {OTHER}"),
    (lambda b: gradients(b, add=X[:, :3]), ValueError, "add must have shape"),
    (lambda b: gradients(b, add=X.to(OTHER)), RuntimeError, f"add is on {OTHER}"),
    (lambda b: gradients(b, w=W[1:]), ValueError, "weight must have shape"),
    (lambda b: affine(b, output=X[:1]), ValueError, "output must have shape"),
    (lambda b: affine(b, output=X.half()), TypeError, "output must be torch.float32 as the input"),
    (lambda b: affine(b, scale=C), ValueError, r"scale must have shape \[2, 4\], got \[4\]"),
    (lambda b: affine(b, slope=NC.double()), TypeError, "slope must be float32, got torch.float64"),
    (lambda b: affine(b, offset=NC.to(OTHER)), RuntimeError, f"offset is on {OTHER}"),
    (lambda b: b.group_norm_statistics(X, 3, 1e-5), ValueError, "group_norm_statistics: num_groups .* got 3"),
    (lambda b: b.group_norm_statistics(X[:, :, :0], 2, 1e-5), ValueError, "a voxel at least"),
    (lambda b: norm(b, mean=C), ValueError, r"mean must have shape \[2, groups\], got \[4\]"),
    (lambda b: norm(b, mean=NC[:, :3]), ValueError, "num_groups must be a positive divisor of the 4 channels, got 3"),
    (lambda b: norm(b, mean=NC[:1]), ValueError, r"mean must have shape \[2, 4\], got \[1, 4\]"),
    (lambda b: norm(b, mean=NC.half()), TypeError, "mean must be float32, got torch.float16"),
    (lambda b: norm(b, rstd=NC[:, :2]), ValueError, "rstd must have shape"),
    (lambda b: norm(b, rstd=NC.to(OTHER)), RuntimeError, f"rstd is on {OTHER}"),
    (lambda b: norm(b, weight=C[:2]), ValueError, r"group_norm: weight must have shape \[4\], got \[2\]"),
    (lambda b: norm(b, bias=C.to(OTHER)), RuntimeError, f"bias is on {OTHER}"),
    (lambda b: norm(b, activation="relu"), ValueError, "activation must be None or 'gelu', got 'relu'"),
    (lambda b: b.group_norm_backward(X[:1], X, NC, NC, C, C, "gelu"), ValueError, "backward: grad_output must have"),
    (lambda b: mlp(b, mean=NC[:1]), ValueError, "mean must have shape"),
    (lambda b: mlp(b, norm=R), ValueError, r"norm_weight must have shape \[4\], got \[8\]"),
    (lambda b: mlp(b, expand=EXPAND.T), ValueError, r"expand_weight must have shape \[4, 4\], got \[4, 8\]"),
    (lambda b: mlp(b, expand=EXPAND.double()), TypeError, "expand_weight must be float32"),
    (lambda b: mlp(b, expand=EXPAND.to(OTHER)), RuntimeError, f"expand_weight is on {OTHER}"),
    (lambda b: mlp(b, bias=C), ValueError, r"expand_bias must have shape \[8\], got \[4\]"),
    (lambda b: mlp(b, compress=EXPAND), ValueError, r"compress_weight must have shape \[8, 8\], got \[8, 4\]"),
    (lambda b: mlp(b, out=R), ValueError, r"compress_bias must have shape \[4\], got \[8\]"),
    (lambda b: mlp(b, grn=(R, C)), ValueError, r"grn beta must have shape \[8\], got \[4\]"),
    (lambda b: mlp(b, residual=X[:, :3]), ValueError, "residual must have shape"),
    (lambda b: mlp(b, residual=X.half()), TypeError, "residual must be torch.float32 as the input"),
    (lambda b: mlp_gradients(b, X[:, :3]), ValueError, r"backward: grad_output must have shape \[2, 4, 5, 5, 5\]"),
    (lambda b: mlp_gradients(b, grn=(C, R)), ValueError, r"grn gamma must have shape \[8\], got \[4\]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "sentence"), CASES, ids=[sentence[:48] for _, _, sentence in CASES])
def test_bad_input_is_named_before_anything_is_launched(triton, monkeypatch, call, error, sentence):
    from mednext_ops.backends.triton import bottleneck, convolution, launch, normalization, reduction, statistics

    launched = []
    for module in (bottleneck, convolution, launch, normalization, reduction, statistics):
        monkeypatch.setattr(module, "launch", lambda kernel, *_, **__: launched.append(kernel))
    with pytest.raises(error, match=sentence):
        call(triton)
    assert launched == []


def test_the_calls_that_the_cases_change_are_good_ones(triton):
    """What each case breaks in one argument works."""
    for call in (conv, gradients, affine, norm, mlp, mlp_gradients):
        found = call(triton)
        tensors = [found] if isinstance(found, torch.Tensor) else [t for t in found if t is not None]
        assert tensors and all(t.device == X.device for t in tensors)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "no kernel for torch.float64"),
        ({"parameter_dtype": torch.float64}, "no kernel for torch.float64"),
        ({"dtype": torch.int32}, "no kernel for torch.int32"),
        ({"device_type": "meta"}, "not on meta"),
        ({"shape": (4, 5, 5, 5)}, "not 4 dimensions"),
        ({"shape": (2, 0, 5, 5, 5)}, "a channel and a voxel at least, not 2x0x5x5x5"),
        ({"shape": (2, 4, 5, 0, 5)}, "a channel and a voxel at least, not 2x4x5x0x5"),
    ],
)
def test_what_it_does_not_serve_is_declined_for_the_next_backend(triton, change, reason):
    arguments = {"op": "group_norm_statistics", "device_type": HERE, "dtype": torch.float32, "shape": (2, 4, 5, 5, 5)}
    problem = Problem(**(arguments | change))
    assert reason in triton.supports(problem)
    module, declined = backends._first_taker(problem, ("triton", "reference"))
    assert module.NAME == "reference" and reason in declined


def test_a_declined_dtype_runs_on_the_next_backend_or_says_why_there_is_none(triton):
    x, w = X.double(), W.double()
    with ops.use_backend("triton", "reference"):
        assert ops.depthwise_conv3d(x, w, padding=1).dtype == torch.float64
    with ops.use_backend("triton"), pytest.raises(RuntimeError, match=r"triton: it has no kernel for torch\.float64"):
        ops.depthwise_conv3d(x, w, padding=1)


@pytest.mark.parametrize("view", ["every other channel", "permuted", "expanded", "channels_last_3d of a slice"])
def test_any_strides_are_served(triton, view):
    """Memory that lies in neither format is copied: no format is wrong."""
    base = torch.randn(2, 8, 6, 6, 6, device=HERE)
    x = {
        "every other channel": base[:, ::2],
        "permuted": base[:, :4].permute(0, 1, 4, 2, 3),
        "expanded": base[:, :1].expand(2, 4, 6, 6, 6),
        "channels_last_3d of a slice": base.contiguous(memory_format=torch.channels_last_3d)[:, :4, 1:],
    }[view]
    weight = W.transpose(2, 4)
    assert torch.equal(conv(triton, x, weight), conv(triton, x.clone(), weight.contiguous()))
    mean, rstd = triton.group_norm_statistics(x, 4, 1e-5)
    assert torch.allclose(mean, x.mean((2, 3, 4)), atol=1e-6) and rstd.isfinite().all()


def test_an_empty_batch_launches_nothing_and_gives_empty_results(triton):
    x, none = X[:0], NC[:0]
    assert conv(triton, x).shape == (0, 4, 5, 5, 5)
    data, weight = gradients(triton, x, x)
    assert data.shape == x.shape and weight.shape == W.shape and not weight.any()
    output, mean, rstd = triton.depthwise_conv3d_statistics(x, W, None, SAME, 2, 1e-5)
    assert output.shape == x.shape and mean.shape == rstd.shape == (0, 2)
    assert norm(triton, x, none, none).shape == x.shape
    assert triton.inverted_bottleneck(x, none, none, C, C, EXPAND, R, COMPRESS, C, None, None).shape == x.shape


def huge_launches(dtype=torch.bfloat16):
    """Every kernel's arguments for a sample of more than 2^31 elements, on the meta device."""
    from mednext_ops.backends.triton import bottleneck, convolution, launch, normalization, statistics

    def empty(*shape, dtype=torch.float32):
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(1, 32, 512, 512, 512, dtype=dtype)
    w, rows, channels = empty(32, 1, 3, 3, 3), empty(1, 32), empty(32)
    with launch.recording() as launches:
        convolution.depthwise_conv3d_statistics(x, w, None, SAME, 32, 1e-5)
        convolution.depthwise_conv3d_backward(GroupNormGradient(x, x, rows, rows, rows), x, w, SAME, x, True, True)
        statistics.group_norm_statistics(x, 32, 1e-5)
        normalization.group_norm_backward(x, x, rows, rows, channels, channels, "gelu")
        normalization.group_norm(x, rows, rows, channels, channels, "gelu")
        expand, hidden = empty(64, 32), empty(64)
        arguments = (x, rows, rows, channels, channels, expand, hidden, expand.mT)
        bottleneck.inverted_bottleneck(*arguments, channels, None, x)
        bottleneck.inverted_bottleneck_backward(x, *arguments, None, ALL)
    return launches


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offsets_beyond_2_31_have_64_bits_in_every_kernel(triton, dtype):
    import triton.language as tl

    launches = huge_launches(dtype)
    indexed = [launch for launch in launches if "INDEX" in launch.arguments]
    names = {launch.kernel.__name__ for launch in indexed}
    assert names >= {"direct_weight_gradient", "tile_moments", "apply", "gradient", "forward", "weight_gradients"}
    assert names & {"direct_convolution", "banded_convolution"} and "normalized_gradient" in names
    assert all(launch.arguments["INDEX"] == tl.int64 for launch in indexed)
    # A grid's first axis holds so many programs, and what is counted in a kernel in 32 bits stays below.
    assert all(launch.programs < 2**31 for launch in launches)
    assert all(launch.arguments.get("parts", 0) < 2**31 for launch in launches)
