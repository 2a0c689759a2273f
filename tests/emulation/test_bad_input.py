"""What the operators and the bindings of the CUDA kernels refuse: a sentence that names it, and nothing is launched."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import mednext_ops as ops
from mednext_ops import native

X = torch.randn(2, 4, 5, 5, 5)
W = torch.randn(4, 1, 3, 3, 3)
NC, C = torch.zeros(2, 4), torch.zeros(4)
ONE, NONE = (1, 1, 1), (None,) * 4
AFFINE = (X, NC, NC, NC)


# ---- the bindings: `n` is the namespace of native operators ----


def geometry(stride=ONE, padding=ONE, dilation=ONE, output_padding=(0, 0, 0), transposed=False):
    return stride, padding, dilation, output_padding, transposed


def conv(n, x=X, w=W, bias=None, **g):
    return n.depthwise_conv3d(x, w, bias, *geometry(**g))


def statistics(n, x=X, w=W, groups=2, **g):
    return n.depthwise_conv3d_statistics(x, w, None, *geometry(**g), groups, 1e-5)


def data(n, grad=X, affine=NONE, w=W, size=(5, 5, 5), add=None, **g):
    return n.depthwise_conv3d_backward_data(grad, *affine, w, size, *geometry(**g), add)


def weight(n, grad=X, affine=NONE, x=X, kernel=(3, 3, 3), **g):
    return n.depthwise_conv3d_backward_weight(grad, *affine, x, kernel, *geometry(**g))


def written(n, grad=X, affine=AFFINE):
    return n.group_norm_gradient(grad, *affine)


#: An axis that only a view has.
LONG = torch.randn(1, 4, 1, 1, 1).expand(1, 4, 1, 1, 2**40)
MOST = 2**31 - 1

BINDINGS = [
    # The convolution.
    (lambda n: conv(n, X[0]), r"depthwise_conv3d: input must be \[N, C, D, H, W\], got 4 dimensions: \[4, 5, 5, 5\]"),
    (lambda n: conv(n, X.double()), "input must be float32, float16 or bfloat16, got Double"),
    (lambda n: conv(n, X.long()), "got Long"),
    (lambda n: conv(n, w=W[0]), r"weight must be \[4, 1, kd, kh, kw\], got \[1, 3, 3, 3\]"),
    (lambda n: conv(n, w=W[:3]), r"weight must be \[4, 1, kd, kh, kw\], got \[3, 1, 3, 3, 3\]"),
    (lambda n: conv(n, w=W.expand(4, 2, 3, 3, 3)), r"got \[4, 2, 3, 3, 3\]"),
    (lambda n: conv(n, w=W[..., :0]), r"the kernel must be between 1 and 2147483647, got \[3, 3, 0\]"),
    (lambda n: conv(n, w=W.double()), "weight must be float32 or Float as the input, got Double"),
    (lambda n: conv(n, X.half(), W.bfloat16()), "weight must be float32 or Half as the input, got BFloat16"),
    (lambda n: conv(n, bias=C[:3]), r"bias must be \[4\], got \[3\]"),
    (lambda n: conv(n, bias=W), r"bias must be \[4\], got \[4, 1, 3, 3, 3\]"),
    (lambda n: conv(n, bias=C.double()), "bias must be float32 or Float"),
    (lambda n: conv(n, stride=(1, 1)), r"stride must be three numbers \(D, H, W\), got 2"),
    (lambda n: conv(n, stride=(1, 0, 1)), r"stride must be between 1 and 2147483647, got \[1, 0, 1\]"),
    (lambda n: conv(n, stride=(2**31, 1, 1)), r"stride must be between 1 and 2147483647, got \[2147483648, 1, 1\]"),
    (lambda n: conv(n, stride=(2**70, 1, 1)), "for argument 'stride'"),
    (lambda n: conv(n, padding=(-1, 0, 0)), r"padding must be between 0 and 2147483647, got \[-1, 0, 0\]"),
    (lambda n: conv(n, padding=(2**62, 0, 0)), r"padding must be between .* got \[4611686018427387904, 0, 0\]"),
    (lambda n: conv(n, dilation=(1, 1, 0)), "dilation must be between 1"),
    (lambda n: conv(n, dilation=(1, 1, 2**40)), "dilation must be between 1"),
    (lambda n: conv(n, output_padding=(0, -1, 0), transposed=True), "output_padding must be between 0"),
    (lambda n: conv(n, padding=(0, 0, 0), dilation=(3, 1, 1)), r"\[5, 5, 5\] is too small for a kernel of \[3, 3, 3\]"),
    (lambda n: conv(n, dilation=(MOST, 1, 1)), r"the output would be \[-4294967287, 5, 5\]"),
    (lambda n: conv(n, padding=(MOST, MOST, MOST)), r"a tensor of \[2, 4, 4294967297, .*\] could not be allocated"),
    (lambda n: conv(n, padding=(2**29,) * 3), "could not be allocated"),
    (lambda n: conv(n, padding=(9, 9, 9), transposed=True), r"too small .* the output would be \[-11, -11, -11\]"),
    (lambda n: conv(n, LONG, stride=(1, 1, MOST), transposed=True), r"1099511627776\] is too large for a stride of"),
    (lambda n: statistics(n, groups=3), "depthwise_conv3d_statistics: num_groups must be a divisor of the 4 .* got 3"),
    (lambda n: statistics(n, groups=0), "num_groups must be a divisor"),
    (lambda n: statistics(n, X[0]), "depthwise_conv3d_statistics: input must be"),
    (lambda n: statistics(n, w=W[:3]), "depthwise_conv3d_statistics: weight must be"),
    (lambda n: statistics(n, stride=(0, 1, 1)), "depthwise_conv3d_statistics: stride must be"),
    # The gradient of the input.
    (lambda n: data(n, X[0]), "depthwise_conv3d_backward_data: grad_output must be"),
    (lambda n: data(n, X.double()), "grad_output must be float32, float16 or bfloat16"),
    (lambda n: data(n, w=W[:3]), r"weight must be \[4, 1"),
    (lambda n: data(n, w=W.half()), "weight must be float32 or Float"),
    (lambda n: data(n, size=(6, 5, 5)), r"makes \[6, 5, 5\] of an input of \[6, 5, 5\], got \[5, 5, 5\]"),
    (lambda n: data(n, size=(5, 5)), "input_size must be three numbers"),
    (lambda n: data(n, size=(5, 5, -1)), "input_size must be between 0"),
    (lambda n: data(n, size=(2**40, 5, 5)), "input_size must be between 0 and 2147483647"),
    (lambda n: data(n, stride=(2, 2, 2)), r"makes \[3, 3, 3\] of an input of \[5, 5, 5\], got \[5, 5, 5\]"),
    (lambda n: data(n, stride=(2**31, 1, 1)), "stride must be between"),
    (lambda n: data(n, padding=(2**62, 1, 1)), "padding must be between"),
    (lambda n: data(n, add=X[:, :3]), r"add must be \[2, 4, 5, 5, 5\], got \[2, 3, 5, 5, 5\]"),
    (lambda n: data(n, add=X[..., 1:]), "add must be"),
    (lambda n: data(n, add=X.half()), "add must be Float as the tensor it belongs to, got Half"),
    (lambda n: data(n, affine=(X, NC, NC, None)), "output, scale, slope and offset must all be given, or none"),
    (lambda n: data(n, affine=(None, NC, NC, NC)), "must all be given, or none of them"),
    (lambda n: data(n, affine=(X[:1], NC, NC, NC)), r"output must be \[2, 4, 5, 5, 5\], got \[1, 4, 5, 5, 5\]"),
    (lambda n: data(n, affine=(X.half(), NC, NC, NC)), "output must be Float"),
    (lambda n: data(n, affine=(X, C, NC, NC)), r"scale must be \[2, 4\], got \[4\]"),
    (lambda n: data(n, affine=(X, NC, NC[:1], NC)), r"slope must be \[2, 4\], got \[1, 4\]"),
    (lambda n: data(n, affine=(X, NC, NC, NC.double())), "offset must be float32, got Double"),
    # The gradient of the weight.
    (lambda n: weight(n, X[0]), "depthwise_conv3d_backward_weight: grad_output must be"),
    (lambda n: weight(n, X.double(), x=X.double()), "grad_output must be float32, float16 or bfloat16"),
    (lambda n: weight(n, x=X[0]), r"depthwise_conv3d_backward_weight: input must be \[N, C, D, H, W\]"),
    (lambda n: weight(n, x=X[:1]), r"input must be \[2, 4, 5, 5, 5\], got \[1, 4, 5, 5, 5\]"),
    (lambda n: weight(n, x=X[:, :3]), r"input must be \[2, 4, 5, 5, 5\], got \[2, 3, 5, 5, 5\]"),
    (lambda n: weight(n, x=X.half()), "input must be Float as the tensor it belongs to, got Half"),
    (lambda n: weight(n, x=X[..., 1:]), r"makes \[5, 5, 4\] of an input of \[5, 5, 4\], got \[5, 5, 5\]"),
    (lambda n: weight(n, kernel=(3, 3)), "kernel_size must be three numbers"),
    (lambda n: weight(n, kernel=(3, 0, 3)), r"kernel_size must be between 1 and 2147483647, got \[3, 0, 3\]"),
    (lambda n: weight(n, kernel=(2**31, 3, 3)), "kernel_size must be between 1"),
    (lambda n: weight(n, kernel=(MOST, 3, 3), dilation=(MOST, 1, 1)), "this geometry makes"),
    (lambda n: weight(n, kernel=(5, 3, 3)), r"makes \[3, 5, 5\] of an input of \[5, 5, 5\], got \[5, 5, 5\]"),
    (lambda n: weight(n, stride=(1, 1)), "stride must be three numbers"),
    (lambda n: weight(n, stride=(0, 1, 1)), "stride must be between"),
    (lambda n: weight(n, stride=(2**31, 1, 1)), "stride must be between"),
    (lambda n: weight(n, padding=(1, 1, -1)), "padding must be between"),
    (lambda n: weight(n, padding=(2**62, 1, 1)), "padding must be between"),
    (lambda n: weight(n, dilation=(0, 1, 1)), "dilation must be between"),
    (lambda n: weight(n, output_padding=(2**33, 0, 0), transposed=True), "output_padding must be between"),
    (lambda n: weight(n, affine=(X, NC, None, NC)), "must all be given, or none of them"),
    (lambda n: weight(n, affine=(X[:1], NC, NC, NC)), r"output must be \[2, 4, 5, 5, 5\]"),
    (lambda n: weight(n, affine=(X, NC, NC, NC.half())), "offset must be float32, got Half"),
    # A gradient written out.
    (lambda n: written(n, X[0]), "group_norm_gradient: grad must be"),
    (lambda n: written(n, X.double()), "grad must be float32, float16 or bfloat16"),
    (lambda n: written(n, affine=(X[..., 1:], NC, NC, NC)), "output must be"),
    (lambda n: written(n, affine=(X, NC[:, 1:], NC, NC)), r"scale must be \[2, 4\], got \[2, 3\]"),
    # Tensors elsewhere: there are kernels for the tensors of one device alone.
    (lambda n: conv(n, X.to("meta")), "with Meta tensors"),
    (lambda n: conv(n, w=W.to("meta")), "with Meta tensors"),
    (lambda n: conv(n, bias=C.to("meta")), "with Meta tensors"),
    (lambda n: data(n, add=X.to("meta")), "with Meta tensors"),
    (lambda n: data(n, affine=(X, NC, NC.to("meta"), NC)), "with Meta tensors"),
    (lambda n: weight(n, x=X.to("meta")), "with Meta tensors"),
]  # fmt: skip


def ids(cases: list[tuple[Any, ...]]) -> list[str]:
    return [f"{i} {case[-1][:40]}" for i, case in enumerate(cases)]


@pytest.fixture
def nothing_launched(emulated):
    """The emulated backend; after the test: no kernel was launched meanwhile."""
    before = emulated.launches()
    yield emulated
    assert emulated.launches() == before


@pytest.mark.parametrize(("call", "sentence"), BINDINGS, ids=ids(BINDINGS))
def test_a_binding_names_bad_input_before_anything_is_launched(nothing_launched, call, sentence):
    with pytest.raises(RuntimeError, match=sentence):
        call(nothing_launched._kernels._native)


@pytest.mark.parametrize("call", [conv, statistics, data, weight, written], ids=lambda call: call.__name__)
def test_the_calls_that_the_cases_change_are_good_ones_and_launch(emulated, call):
    before = emulated.launches()
    assert call(emulated._kernels._native) is not None
    assert emulated.launches() > before
    with emulated.launches_only():  # these are counted too
        call(emulated._kernels._native)
    assert emulated.launches() > before + 1


# ---- the operators ----

P = torch.ones(4)
transposed = ops.depthwise_conv_transpose3d
plain = ops.depthwise_conv3d
normed = functools.partial(ops.depthwise_conv3d_group_norm, bias=None, norm_weight=P, norm_bias=P)
HUGE = "must be at most 2^31 - 1 = 2147483647 on every axis, got "

OPERATORS = [
    (lambda: plain(X, W, stride=0), ValueError, "stride must be at least 1 on every axis, got 0"),
    (lambda: plain(X, W, stride=2**31), ValueError, f"stride {HUGE}2147483648"),
    (lambda: plain(X, W, stride=(1, 1, 2**70)), ValueError, f"stride {HUGE}(1, 1, {2**70})"),
    (lambda: plain(X, W, padding=2**31), ValueError, f"padding {HUGE}2147483648"),
    (lambda: plain(X, W, padding=2**62), ValueError, f"padding {HUGE}{2**62}"),
    (lambda: plain(X, W, padding=(2**62, 0, 0)), ValueError, f"padding {HUGE}({2**62}, 0, 0)"),
    (lambda: plain(X, W, padding=2**31 - 1), ValueError, "[2, 4, 4294967297, 4294967297, 4294967297]: a tensor has at"),
    (lambda: plain(X[:0], W, padding=2**31 - 1), ValueError, "[0, 4, 4294967297, 4294967297, 4294967297]"),
    (lambda: plain(X, W, padding=2**29), RuntimeError, "could not be allocated"),
    (lambda: plain(X, W, dilation=2**70), ValueError, f"dilation {HUGE}{2**70}"),
    (lambda: plain(X, W, dilation=2**31 - 1), ValueError, "the output would have extent [-4294967289"),
    (lambda: transposed(X, W, stride=2**31), ValueError, f"stride {HUGE}"),
    (lambda: transposed(LONG, W, stride=(1, 1, 2**31 - 1)), ValueError, "a tensor has at most 2^63 - 1 bytes"),
    (lambda: transposed(X, W, padding=2**62), ValueError, f"padding {HUGE}{2**62}"),
    (lambda: transposed(X, W, output_padding=2**62), ValueError, f"output_padding {HUGE}{2**62}"),
    (lambda: transposed(X, W, padding=2**31 - 1), ValueError, "the output would have extent [-4294967287"),
    (lambda: normed(X, W, padding=2**62), ValueError, f"padding {HUGE}{2**62}"),
    (lambda: normed(X, W, stride=2**70), ValueError, f"stride {HUGE}{2**70}"),
    (lambda: normed(X, W, padding=2**31 - 1), ValueError, "a tensor has at most 2^63 - 1 bytes"),
    (lambda: normed(X, W, num_groups=3), ValueError, "num_groups must be a positive divisor of the 4 channels, got 3"),
    (lambda: plain(X.to("meta"), W), RuntimeError, "weight is on cpu but input is on meta; move one of them"),
    (lambda: plain(X, W.to("meta")), RuntimeError, "weight is on meta but input is on cpu"),
    (lambda: plain(X, W, C.to("meta")), RuntimeError, "bias is on meta but input is on cpu"),
    (lambda: normed(X, W, norm_bias=P.to("meta")), RuntimeError, "norm_bias is on meta but input is on cpu"),
    (lambda: plain(X.long(), W), TypeError, "input must be float16, bfloat16, float32 or float64, got torch.int64"),
    (lambda: plain(X, W.half()), TypeError, "weight is torch.float16 but input is torch.float32"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "sentence"), OPERATORS, ids=ids(OPERATORS))
def test_an_operator_names_bad_input_before_anything_is_launched(nothing_launched, call, error, sentence):
    with ops.use_backend("emulated"), pytest.raises(error) as raised:
        call()
    assert sentence in str(raised.value)


# ---- a GPU beside the CPU ----

ELSEWHERE = [
    (lambda n, x: conv(n, x), "depthwise_conv3d: weight is on another device"),
    (lambda n, x: conv(n, w=W.to(x.device)), "depthwise_conv3d: weight is on another device"),
    (lambda n, x: conv(n, x, W.to(x.device), C), "bias is on another device"),
    (lambda n, x: statistics(n, x), "depthwise_conv3d_statistics: weight is on another device"),
    (lambda n, x: data(n, x), "depthwise_conv3d_backward_data: weight is on another device"),
    (lambda n, x: data(n, x, w=W.to(x.device), add=X), "add is on another device"),
    (lambda n, x: data(n, x, AFFINE, W.to(x.device)), "output is on another device"),
    (lambda n, x: data(n, x, (x, *AFFINE[1:]), W.to(x.device)), "scale is on another device"),
    (lambda n, x: weight(n, x), "depthwise_conv3d_backward_weight: input is on another device"),
    (lambda n, x: weight(n, x=x), "input is on another device"),
    (lambda n, x: written(n, x), "group_norm_gradient: output is on another device"),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("call", "sentence"), ELSEWHERE, ids=ids(ELSEWHERE))
def test_tensors_on_two_devices_are_named(call, sentence):
    problem = native.libraries()["cuda"].problem
    if problem is not None:
        pytest.skip(problem)
    with pytest.raises(RuntimeError, match=sentence):
        call(getattr(torch.ops, native.NAMESPACE), X.cuda())
