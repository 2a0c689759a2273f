"""What the bindings refuse, with a sentence that names the argument, before anything is computed."""

from __future__ import annotations

import pytest
import torch

from mednext_ops import native

ops = torch.ops.mednext_ops_native
X = torch.randn(2, 4, 5, 5, 5)
W = torch.randn(4, 1, 3, 3, 3)
NC, C = torch.zeros(2, 4), torch.zeros(4)
EXPAND, COMPRESS, R = torch.zeros(8, 4), torch.zeros(4, 8), torch.zeros(8)
G = ([1] * 3, [1] * 3, [1] * 3, [0] * 3, False)
NONE = (None,) * 4


@pytest.fixture(autouse=True)
def _library():
    problem = native.libraries()["cpu"].problem
    if problem is not None:
        pytest.skip(problem)


def conv(x=X, w=W, b=None, g=G):
    return ops.depthwise_conv3d(x, w, b, *g)


def data(grad=X, affine=NONE, w=W, size=(5, 5, 5), add=None):
    return ops.depthwise_conv3d_backward_data(grad, *affine, w, size, *G, add)


def weight(grad=X, affine=NONE, x=X, kernel=(3, 3, 3)):
    return ops.depthwise_conv3d_backward_weight(grad, *affine, x, kernel, *G)


def mlp(x=X, mean=NC, norm=C, expand=EXPAND, bias=R, compress=COMPRESS, out=C, gain=None, residual=None):
    return ops.inverted_bottleneck_with_gain(x, mean, NC, norm, C, expand, bias, compress, out, gain, residual)


def mlp_backward(grad=X, compress=COMPRESS, gain=None, slope=None, needs=(True, True, True)):
    return ops.inverted_bottleneck_with_gain_backward(grad, X, NC, NC, C, C, EXPAND, R, compress, gain, slope, *needs)


CASES = [
    (lambda: conv(X[0]), r"depthwise_conv3d: input must be \[N, C, D, H, W\], got 4 dimensions: \[4, 5, 5, 5\]"),
    (lambda: conv(X.double()), "input must be float32, float16 or bfloat16, got Double"),
    (lambda: conv(w=W[0]), r"weight must be \[C, 1, kd, kh, kw\], got \[1, 3, 3, 3\]"),
    (lambda: conv(w=W.double()), "weight must be float32, float16 or bfloat16, got Double"),
    (lambda: conv(w=W[:3]), r"weight must be for the 4 channels of the input, got \[3, 1, 3, 3, 3\]"),
    (lambda: conv(b=C[:3]), r"bias must be \[4\], got \[3\]"),
    (lambda: conv(g=([0, 1, 1], *G[1:])), r"stride must be three integers \(D, H, W\) of at least 1"),
    (lambda: conv(g=(G[0], [-1, 0, 0], *G[2:])), "padding must be three integers .* of at least 0"),
    (lambda: conv(x=X[:, :, :1, :, :], g=(G[0], [0] * 3, *G[2:])), r"the output would have extent \[0, 3, 3\]"),
    (lambda: ops.depthwise_conv3d_statistics(X, W, None, *G, 3, 1e-5), "num_groups must be a divisor of the 4"),
    (lambda: data(affine=(X, NC, NC, None)), "output, scale, slope and offset belong together"),
    (lambda: data(affine=(X[:1], NC, NC, NC)), "output must have the shape of grad_output"),
    (lambda: data(affine=(X.half(), NC, NC, NC)), "output must have the type of grad_output, Float, got Half"),
    (lambda: data(affine=(X, C, NC, NC)), r"scale must be \[N, C\] = \[2, 4\], got \[4\]"),
    (lambda: data(size=(6, 5, 5)), r"an input of extent \[6, 5, 5\] does not give grad_output"),
    (lambda: data(add=X[:1]), "add must have the shape of the gradient"),
    (lambda: weight(x=X.half()), "input must have the type of grad_output"),
    (lambda: weight(x=X[:, :3]), "input must have the batch and channels of grad_output"),
    (lambda: weight(kernel=(5, 3, 3)), "does not give grad_output"),
    (lambda: ops.group_norm(X, NC, NC, C[:2], C, False), r"group_norm: weight must be \[4\], got \[2\]"),
    (lambda: ops.group_norm_backward(X[:1], X, NC, NC, C, C, True), "grad_output must have the shape of input"),
    (lambda: mlp(mean=NC[:1]), r"mean must be \[N, C\] = \[2, 4\], got \[1, 4\]"),
    (lambda: mlp(norm=R), r"norm_weight must be \[4\], got \[8\]"),
    (lambda: mlp(expand=EXPAND.T), r"expand_weight must be \[4, 4\], got \[4, 8\]"),
    (lambda: mlp(expand=EXPAND.double()), "expand_weight must be float32, float16 or bfloat16, got Double"),
    (lambda: mlp(bias=C), r"expand_bias must be \[8\], got \[4\]"),
    (lambda: mlp(compress=EXPAND), r"compress_weight must be \[8, 8\], got \[8, 4\]"),
    (lambda: mlp(out=R), r"compress_bias must be \[4\], got \[8\]"),
    (lambda: mlp(gain=NC), r"gain must be \[2, 8\], got \[2, 4\]"),
    (lambda: mlp(residual=X[:, :3]), "residual must have the shape of the output"),
    (lambda: mlp_backward(grad=X[:, :3]), r"grad_output must be \[N, O, D, H, W\] with O = 4"),
    (lambda: mlp_backward(gain=torch.zeros(2, 8)), "gain and slope belong together"),
    (lambda: mlp_backward(needs=(True, False, True)), "needs_data .* asks for needs_hidden"),
    (
        lambda: ops.inverted_bottleneck_response(X[:1], X, NC, NC, C, C, EXPAND, R),
        r"grad_output must be \[N, O, D, H, W\]",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), CASES, ids=[sentence[:40] for _, sentence in CASES])
def test_bad_input_is_named(call, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        call()
