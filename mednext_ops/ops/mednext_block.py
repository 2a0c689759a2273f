"""``mednext_block``: the whole MedNeXt block as one op that keeps {input, convolution's output, statistics}, or less.

Roy et al., "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation", MICCAI 2023, section 2.
This file puts the parts together, forward and backward; the parts themselves run on the backends chosen for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from mednext_ops import backends
from mednext_ops.backends import ConvGeometry, InvertedBottleneckNeeds, memory_format_of
from mednext_ops.formulas import (
    accumulation_dtype,
    bias_gradient,
    over_samples,
    pointwise,
    pointwise_weight_gradient,
)
from mednext_ops.ops.arguments import (
    autocast_to,
    check_group_count,
    check_input,
    check_parameter,
    pointwise_matrix,
    triple,
)
from mednext_ops.ops.convolution import convolve, convolve_backward
from mednext_ops.ops.depthwise_conv3d import convolution_geometry
from mednext_ops.ops.depthwise_conv3d_group_norm import bias_before_norm, convolve_with_statistics, gradient_before_norm
from mednext_ops.ops.inverted_bottleneck import bottleneck, bottleneck_backward, bottleneck_parameters, up_bottleneck
from mednext_ops.ops.library import (
    define_op,
    differentiate,
    empty_like_format,
    given,
    not_twice_differentiable,
    problem_of,
)

__all__ = ["mednext_block"]

FORMS = ("regular", "down", "up")
RECOMPUTE = (None, "conv")


class _Parameters(NamedTuple):
    """The tensors of a block in the order of the schema; the residual's weight is [O, C], also in the up form."""

    conv_weight: torch.Tensor
    conv_bias: torch.Tensor | None
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    expand_weight: torch.Tensor
    expand_bias: torch.Tensor | None
    compress_weight: torch.Tensor
    compress_bias: torch.Tensor | None
    residual_weight: torch.Tensor | None
    residual_bias: torch.Tensor | None
    grn_gamma: torch.Tensor | None
    grn_beta: torch.Tensor | None

    @property
    def grn(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        return None if self.grn_gamma is None or self.grn_beta is None else (self.grn_gamma, self.grn_beta)


class _Layout(NamedTuple):
    """Where a block's voxels lie: its convolution, and how the resampled residual maps onto the output."""

    form: str
    geometry: ConvGeometry

    @classmethod
    def of(cls, form: str, conv_weight: torch.Tensor, stride: Sequence[int]) -> _Layout:
        (d, h, w), (sd, sh, sw) = conv_weight.shape[2:], stride
        padding = (d // 2, h // 2, w // 2)
        return cls(form, ConvGeometry((d, h, w), (sd, sh, sw), padding, transposed=form == "up"))

    def front(self) -> tuple[int, int, int]:
        """Zero planes in front of each axis: an up block's transposed convolution lacks one where it doubles."""
        d, h, w = self.geometry.stride if self.form == "up" else (1, 1, 1)
        return d - 1, h - 1, w - 1

    def interior(self, output: torch.Tensor) -> torch.Tensor:
        """The output without the zero planes."""
        d, h, w = self.front()
        return output[:, :, d:, h:, w:]

    def strided(self, tensor: torch.Tensor) -> torch.Tensor:
        """Every stride-th voxel: where a 1x1x1 convolution of that stride reads (down) or writes (up)."""
        d, h, w = self.geometry.stride
        return tensor[:, :, ::d, ::h, ::w]

    def output_size(self, input: torch.Tensor) -> tuple[Any, ...]:
        size = self.geometry.output_size(input.shape[2:])
        return tuple(n + f for n, f in zip(size, self.front(), strict=True))


def _forward(input: Any, *args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    p = _Parameters(*args[:12])
    form, stride, residual, num_groups, eps, recompute, skip = args[12:]
    layout = _Layout.of(form, p.conv_weight, stride)
    convolved, mean, rstd = convolve_with_statistics(
        input, p.conv_weight, p.conv_bias, layout.geometry, num_groups, eps
    )
    added = None
    if residual and form == "regular":
        added = input
    elif residual and form == "down":
        added = pointwise(given(p.residual_weight), _packed(layout.strided(input)))
    elif residual:
        added = pointwise(given(p.residual_weight), input)
    # The residual's bias reaches every voxel, as the compression's does.
    bias = p.compress_bias
    if p.residual_bias is not None:
        bias = p.residual_bias if bias is None else bias + p.residual_bias
    inner = (
        convolved, mean, rstd, p.norm_weight, p.norm_bias, p.expand_weight, p.expand_bias, p.compress_weight, bias,
        p.grn, added,
    )  # fmt: skip
    output = _up_output(inner, skip, layout) if form == "up" else bottleneck(*inner)
    return output, input.new_empty((0,)) if recompute else convolved, mean, rstd


def _up_output(inner: tuple[Any, ...], skip: torch.Tensor | None, layout: _Layout) -> torch.Tensor:
    """An up block's bottleneck with its residual, which is on every stride-th voxel, the zero planes, and the skip."""
    front = layout.front()
    output = up_bottleneck(*inner, layout.geometry.stride, front, skip)
    if output is not None:
        return output
    *arguments, residual = inner
    output = bottleneck(*arguments, None)
    memory_format = memory_format_of(output)
    if residual is not None:
        layout.strided(output).add_(residual)
    if any(front):
        d, h, w = front
        output = F.pad(output, (w, 0, h, 0, d, 0)).contiguous(memory_format=memory_format)
    return output if skip is None else output.add_(skip)


def _packed(view: torch.Tensor) -> torch.Tensor:
    """A dense copy of some of a volume's voxels, where a backend makes it faster than PyTorch would; else the view."""
    if view.is_contiguous():
        return view
    packed = backends.run_fused(problem_of("packed_voxels", view), view)
    return view if packed is None else packed


def _forward_fake(input: Any, *args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    p = _Parameters(*args[:12])
    form, stride, _, num_groups, _, recompute, _ = args[12:]
    layout = _Layout.of(form, p.conv_weight, stride)
    batch, channels = input.shape[:2]
    convolved = (batch, channels, *layout.geometry.output_size(input.shape[2:]))
    dtype = accumulation_dtype(input.dtype)
    return (
        empty_like_format(input, (batch, p.compress_weight.shape[0], *layout.output_size(input))),
        input.new_empty((0,)) if recompute else empty_like_format(input, convolved),
        input.new_empty((batch, num_groups), dtype=dtype),
        input.new_empty((batch, num_groups), dtype=dtype),
    )


def _backward_op(grad_output: Any, input: Any, convolved: Any, mean: Any, rstd: Any, *args: Any) -> list[torch.Tensor]:
    """Gradients of the input and the twelve parameters, in that order; an empty tensor where none was asked for.

    ``grad_kept``, of a down block's input where others keep it, is added to its gradient as that is written.
    """
    p = _Parameters(*args[:12])
    form, stride, residual, recompute, needs, grad_kept = args[12:]
    needs_of = dict(zip(("input", *_Parameters._fields), needs, strict=True))
    layout = _Layout.of(form, p.conv_weight, stride)
    grad_sparse = None  # of an up block's residual
    if form == "up":
        grad_output, grad_sparse = _taken_apart(grad_output, residual, layout)
    found: dict[str, torch.Tensor | None] = {}

    below_norm = needs_of["input"] or needs_of["conv_weight"] or needs_of["conv_bias"]
    asked = InvertedBottleneckNeeds(
        input=below_norm,
        norm=needs_of["norm_weight"] or needs_of["norm_bias"],
        expand=needs_of["expand_weight"] or needs_of["expand_bias"],
        compress=needs_of["compress_weight"] or needs_of["compress_bias"] or needs_of["residual_bias"],
        grn=needs_of["grn_gamma"] or needs_of["grn_beta"],
    )
    if any(asked):
        if recompute:
            bias = bias_before_norm(p.conv_bias, mean.shape[1], input.shape[1])
            convolved = convolve(input, p.conv_weight, bias, layout.geometry)
        inner = bottleneck_backward(
            grad_output, convolved, mean, rstd, p.norm_weight, p.norm_bias, p.expand_weight, p.expand_bias,
            p.compress_weight, p.grn, asked,
        )  # fmt: skip
        found |= inner._asdict()
        found |= {
            "residual_bias": inner.compress_bias,
            "norm_weight": None if inner.grad_dot_normalized is None else over_samples(inner.grad_dot_normalized),
            "norm_bias": None if inner.grad_sum is None else over_samples(inner.grad_sum),
        }
    if below_norm:
        gradient = gradient_before_norm(
            given(inner.grad),
            convolved,
            mean,
            rstd,
            p.norm_weight,
            given(inner.grad_sum),
            given(inner.grad_dot_normalized),
        )
        if needs_of["conv_bias"]:
            found["conv_bias"] = bias_gradient(gradient, given(inner.grad_sum), mean.shape[1])
        add = grad_output if residual and form == "regular" else grad_kept
        if residual and form == "up" and needs_of["input"]:
            add = pointwise(given(p.residual_weight).t(), given(grad_sparse))
        if needs_of["input"] or needs_of["conv_weight"]:
            found["input"], found["conv_weight"] = convolve_backward(
                gradient, input, p.conv_weight, layout.geometry, needs_of["input"], needs_of["conv_weight"], add
            )
        if residual and form == "down" and needs_of["input"]:
            layout.strided(given(found["input"])).add_(pointwise(given(p.residual_weight).t(), grad_output))
    if needs_of["residual_weight"]:
        pair = (given(grad_sparse), input) if form == "up" else (grad_output, _packed(layout.strided(input)))
        found["residual_weight"] = over_samples(pointwise_weight_gradient(*pair))
    return [
        _as(given(found[name]), like) if needed else input.new_empty((0,))
        for (name, needed), like in zip(needs_of.items(), (input, *p), strict=True)
    ]


def _taken_apart(
    grad_output: torch.Tensor, residual: bool, layout: _Layout
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What :func:`_up_output` put together: the gradients of the output before it, and of its residual.

    The first is a view where kernels pack it as they need it.
    """
    interior = layout.interior(grad_output)
    if backends.choose_fused(problem_of("packed_voxels", grad_output)) is None:
        interior = interior.contiguous(memory_format=memory_format_of(grad_output))
    return interior, _packed(layout.strided(interior)) if residual else None


def _as(gradient: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if gradient.dtype == like.dtype and gradient.is_contiguous() and like.is_contiguous():
        return gradient
    return gradient.to(like.dtype).contiguous(memory_format=memory_format_of(like))


def _backward_fake(
    grad_output: Any, input: Any, convolved: Any, mean: Any, rstd: Any, *args: Any
) -> list[torch.Tensor]:
    *parameters, _, _, _, _, needs, _ = args
    return [
        empty_like_format(like, like.shape) if needed else input.new_empty((0,))
        for needed, like in zip(needs, (input, *parameters), strict=True)
    ]


_TENSORS = (
    "Tensor conv_weight, Tensor? conv_bias, Tensor norm_weight, Tensor norm_bias, Tensor expand_weight, "
    "Tensor? expand_bias, Tensor compress_weight, Tensor? compress_bias, Tensor? residual_weight, "
    "Tensor? residual_bias, Tensor? grn_gamma, Tensor? grn_beta"
)
_op = define_op(
    f"mednext_block(Tensor input, {_TENSORS}, str form, int[3] stride, bool residual, int num_groups, float eps, "
    "bool recompute, Tensor? skip) -> (Tensor output, Tensor convolved, Tensor mean, Tensor rstd)",
    _forward,
    _forward_fake,
)
_gradient_op = define_op(
    f"mednext_block_backward(Tensor grad_output, Tensor input, Tensor convolved, Tensor mean, Tensor rstd, {_TENSORS}, "
    "str form, int[3] stride, bool residual, bool recompute, bool[13] needs, Tensor? grad_kept) -> Tensor[]",
    _backward_op,
    _backward_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    input, *parameters = inputs[:13]
    form, stride, residual, _, _, recompute, _ = inputs[13:]
    _, convolved, mean, rstd = output
    ctx.save_for_backward(input, convolved, mean, rstd, *parameters)
    ctx.set_materialize_grads(False)
    ctx.settings = (form, stride, residual, recompute)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    _save(ctx, inputs, output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_output: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    grad_skip = grad_output if ctx.needs_input_grad[19] else None
    return *_gradients(ctx, grad_output, None), *(None,) * 6, grad_skip


def _gradients(ctx: Any, grad_output: torch.Tensor | None, grad_kept: torch.Tensor | None) -> tuple[Any, ...]:
    """Of the input and the parameters."""
    needs = list(ctx.needs_input_grad[:13])
    if grad_output is None or not any(needs):
        return grad_kept, *(None,) * 12
    gradients = _gradient_op(grad_output, *ctx.saved_tensors, *ctx.settings, needs, grad_kept)
    return tuple(g if need else None for g, need in zip(gradients, needs, strict=True))


class _KeepingInput(torch.autograd.Function):
    """The op, and its input once more: an op of torch.library may not return what it was given."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        output = _op(*inputs)
        _save(ctx, inputs, output)
        return output[0], inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        return *_gradients(ctx, *grads), *(None,) * 7


differentiate(_op, _backward, _setup_context)
not_twice_differentiable(_gradient_op)


def mednext_block(
    input: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    compress_weight: torch.Tensor,
    compress_bias: torch.Tensor | None,
    *,
    form: str = "regular",
    stride: int | Sequence[int] | None = None,
    residual: bool = True,
    residual_weight: torch.Tensor | None = None,
    residual_bias: torch.Tensor | None = None,
    grn: tuple[torch.Tensor, torch.Tensor] | None = None,
    num_groups: int | None = None,
    eps: float = 1e-5,
    recompute: str | None = None,
    skip: torch.Tensor | None = None,
    keep_input: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """A whole MedNeXt block: depthwise convolution, GroupNorm, expand, GELU, (GRN), compress, residual.

    The forms, with ``mlp`` for :func:`inverted_bottleneck` of the normalised convolution:

    * ``"regular"``: ``input + mlp(conv(input))``.
    * ``"down"``: ``conv1x1(input, stride) + mlp(conv(input, stride))``.
    * ``"up"``: transposed convolutions in place of both, to ``(n - 1) s + 1`` voxels, then ``s - 1`` zero planes in
      front of each axis: ``s n`` voxels. ``skip`` is added to those.

    The padding is half the kernel. Kept for backward are the input, the convolution's output and the statistics; with
    ``recompute="conv"`` the convolution is run again instead of kept. With one group a channel the convolution's bias
    cancels: it is not added and its gradient is zero. Differentiable once.

    Args:
        input: [N, C, D, H, W], float16, bfloat16, float32 or float64; contiguous or channels_last_3d (kept). Cast under
            autocast.
        conv_weight, conv_bias: [C, 1, kd, kh, kw], odd extents, and [C] or None. This and every other parameter is in
            the input's dtype or, for a 16-bit input, float32.
        norm_weight, norm_bias: [C].
        expand_weight, expand_bias: [R, C] or [R, C, 1, 1, 1], and [R] or None.
        compress_weight, compress_bias: [O, R] or [O, R, 1, 1, 1], and [O] or None.
        form: "regular", "down" or "up".
        stride: 1 or 2 an axis, an int or three (D, H, W); by default 2, and always 1 in the regular form.
        residual: add the input (resampled, in the down and up form).
        residual_weight, residual_bias: of the down form's strided 1x1x1 convolution, [O, C] or [O, C, 1, 1, 1], or of
            the up form's transposed one, [C, O] or [C, O, 1, 1, 1]; the bias is [O] or None.
        grn: None or (gamma, beta) of R elements each.
        num_groups: a divisor of C; None for one group a channel.
        eps: added to the variance.
        recompute: None, or "conv" to keep only the input and the statistics.
        skip: None or, in the up form, what a decoder adds to the block's output: [N, O, D', H', W'] in the input's
            dtype (cast, like the input, under autocast). It is not kept for backward.
        keep_input: in the down form, return the input too, for a skip connection: the gradient that comes back to it is
            added in the pass that writes the block's own.

    Returns:
        [N, O, D', H', W'] in the input's dtype and memory format; with ``keep_input`` a pair of that and the input.

    Raises:
        TypeError: a dtype or argument type that is not listed above.
        ValueError: a shape or option that does not fit; the message names the argument.
        RuntimeError: tensors on different devices.
    """
    check_input("input", input)
    input = autocast_to(input)
    if skip is not None:
        check_input("skip", skip)
        skip = autocast_to(skip)
    tensors = (
        input, conv_weight, conv_bias, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight,
        compress_bias, residual_weight, residual_bias, skip, *(grn if isinstance(grn, tuple) else (grn,)),
    )  # fmt: skip
    key = _description(tensors, stride, (form, residual, num_groups, recompute, keep_input))
    checked = None if key is None else _known.get(key)
    if checked is None:
        checked = _checked(
            input, conv_weight, conv_bias, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight,
            compress_bias, form, stride, residual, residual_weight, residual_bias, grn, num_groups, recompute, skip,
            keep_input,
        )  # fmt: skip
        if key is not None:
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
            _known[key] = checked
    strides, groups = checked
    gamma, beta = (None, None) if grn is None else grn
    matrix = None if residual_weight is None else pointwise_matrix("residual_weight", residual_weight)
    arguments = (
        input, conv_weight, conv_bias, norm_weight, norm_bias, pointwise_matrix("expand_weight", expand_weight),
        expand_bias, pointwise_matrix("compress_weight", compress_weight), compress_bias,
        matrix.t() if form == "up" and matrix is not None else matrix, residual_bias,
        None if gamma is None else gamma.reshape(-1), None if beta is None else beta.reshape(-1),
        form, strides, residual, groups, eps, recompute == "conv", skip,
    )  # fmt: skip
    return _KeepingInput.apply(*arguments) if keep_input else _op(*arguments)[0]


#: What :func:`_checked` said of arguments, by all that it looks at: a network asks it the same in every step.
_known: dict[tuple[Any, ...], tuple[tuple[int, int, int], int]] = {}
_MOST_KNOWN = 4096
_PLAIN_TENSORS = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))


def _description(tensors: tuple[Any, ...], stride: Any, settings: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """All that the checks look at, to be found again; None while tracing, and where something unusual is among it.

    With the types of numbers: 1.0 and True are found where 1 is.
    """
    if torch.compiler.is_compiling() or not _PLAIN_TENSORS.issuperset(map(type, tensors)):
        return None
    strides = stride if type(stride) is tuple else (stride,)
    key = (
        *[t if t is None else (t.shape, t.dtype, t.device) for t in tensors],
        *(stride, *map(type, strides), *settings, *map(type, settings)),
    )
    try:
        hash(key)
    except TypeError:
        return None
    return key


def _checked(
    input: torch.Tensor,
    conv_weight: torch.Tensor,
    conv_bias: torch.Tensor | None,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    expand_weight: torch.Tensor,
    expand_bias: torch.Tensor | None,
    compress_weight: torch.Tensor,
    compress_bias: torch.Tensor | None,
    form: str,
    stride: int | Sequence[int] | None,
    residual: bool,
    residual_weight: torch.Tensor | None,
    residual_bias: torch.Tensor | None,
    grn: tuple[torch.Tensor, torch.Tensor] | None,
    num_groups: int | None,
    recompute: str | None,
    skip: torch.Tensor | None,
    keep_input: bool,
) -> tuple[tuple[int, int, int], int]:
    """The stride an axis and the number of groups of arguments that fit together; else an error."""
    channels = input.shape[1]
    if form not in FORMS:
        raise ValueError(f"form must be 'regular', 'down' or 'up', got {form!r}")
    if recompute not in RECOMPUTE:
        raise ValueError(f"recompute must be None or 'conv', got {recompute!r}")
    strides = triple("stride", (1 if form == "regular" else 2) if stride is None else stride, minimum=1)
    if max(strides) > (1 if form == "regular" else 2):
        raise ValueError(f"stride must be 1 in the regular form and 1 or 2 an axis in the others, got {stride!r}")
    if not isinstance(conv_weight, torch.Tensor) or conv_weight.dim() != 5:
        raise ValueError(f"conv_weight must be a tensor of shape [{channels}, 1, kd, kh, kw]")
    padding = [extent // 2 for extent in conv_weight.shape[2:]]
    geometry = convolution_geometry(input, conv_weight, conv_bias, strides, padding, transposed=form == "up")
    _, compress, _, _ = bottleneck_parameters(
        input, norm_weight, norm_bias, expand_weight, expand_bias, compress_weight, compress_bias, grn
    )
    _check_residual(input, compress.shape[0], form, residual, residual_weight, residual_bias)
    groups = check_group_count(num_groups, channels)
    if skip is not None:
        _check_skip(skip, input, compress.shape[0], _Layout(form, geometry))
    if keep_input and form != "down":
        raise ValueError(f"keep_input belongs to the down form, got form {form!r}; use the block's input itself")
    return geometry.stride, groups


def _check_skip(skip: torch.Tensor, input: torch.Tensor, out_channels: int, layout: _Layout) -> None:
    """A skip in the input's dtype, of the output's shape and in a form that has one."""
    if layout.form != "up":
        raise ValueError(f"skip belongs to the up form, got form {layout.form!r}; add it to the block's output instead")
    if skip.dtype != input.dtype:
        raise TypeError(f"skip is {skip.dtype} but input is {input.dtype}; they must be the same")
    check_parameter("skip", skip, (input.shape[0], out_channels, *layout.output_size(input)), input)


def _check_residual(
    input: torch.Tensor,
    out_channels: int,
    form: str,
    residual: bool,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> None:
    """A residual's weight and bias in the forms that have them, and nowhere else."""
    channels = input.shape[1]
    if not residual or form == "regular":
        if weight is not None or bias is not None:
            raise ValueError("residual_weight and residual_bias belong to the down and up form with residual=True")
        if residual and out_channels != channels:
            raise ValueError(
                f"a regular block with a residual keeps its channels: the input has {channels}, "
                f"compress_weight makes {out_channels}; pass residual=False"
            )
        return
    if weight is None:
        raise ValueError(f"residual_weight must be given for the {form} form; or pass residual=False")
    matrix = pointwise_matrix("residual_weight", weight)
    shape = (channels, out_channels) if form == "up" else (out_channels, channels)
    check_parameter("residual_weight", matrix, shape, input)
    if bias is not None:
        check_parameter("residual_bias", bias, (out_channels,), input)
