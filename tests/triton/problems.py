"""Random depthwise convolutions of any kernel for the Triton backend, judged against float64."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from mednext_ops.backends.problem import ConvGeometry, GroupNormGradient

from ..ops.eager import assert_within_twice, rms_error

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = 1e-5
MOST_ELEMENTS = 20_000
MOST_PRODUCTS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One problem: everything that a user can choose."""

    seed: int
    geometry: ConvGeometry
    batch: int
    channels: int
    size: tuple[int, ...]
    dtype: torch.dtype
    parameter_dtype: torch.dtype
    channels_last: bool
    bias: bool
    affine: bool
    add: bool
    num_groups: int
    architecture: int

    @property
    def output_size(self) -> tuple[int, ...]:
        return self.geometry.output_size(self.size)


def usual_kernel(random_: random.Random) -> tuple[list[int], list[int], list[int], list[int]]:
    """KxKxK or 1xKxK at stride 1, 2 or 1x2x2, centred: what the fast kernels take."""
    k = random_.choice([3, 3, 5, 7])
    kernel = [random_.choice([1, k, k, k]), k, k]
    stride = random_.choice([[1, 1, 1], [1, 1, 1], [2, 2, 2], [1, 2, 2]])
    return kernel, stride, [n // 2 for n in kernel], [1] * 3


def any_kernel(random_: random.Random) -> tuple[list[int], list[int], list[int], list[int]]:
    kernel = [random_.choice([1, 3, 5, 7, 9]) for _ in range(3)]
    dilation = [random_.choice([1, 1, 2, 3]) for _ in range(3)]
    padding = [random_.randint(0, k * d // 2 + 1) for k, d in zip(kernel, dilation, strict=True)]
    return kernel, [random_.choice([1, 2]) for _ in range(3)], padding, dilation


def draw(seed: int) -> Drawn:
    random_ = random.Random(seed)
    while True:
        kernel, stride, padding, dilation = random_.choice([usual_kernel, any_kernel])(random_)
        transposed = random_.random() < 0.5
        room = [max(s, d) - 1 for s, d in zip(stride, dilation, strict=True)]
        output_padding = [random_.randint(0, most) if transposed and random_.random() < 0.3 else 0 for most in room]
        geometry = ConvGeometry(
            *(tuple(triple) for triple in (kernel, stride, padding, dilation, output_padding)), transposed=transposed
        )
        size = tuple(random_.choice([1, 2, 3, 5, 8, 9, 12, 15, 16, 17, 24, 31, 33, 40]) for _ in range(3))
        batch, channels = random_.choice([0, 1, 1, 2, 3]), random_.choice([1, 2, 3, 4, 8, 13, 16, 32, 33, 40])
        dtype = random_.choice(DTYPES)
        drawn = Drawn(
            seed,
            geometry,
            batch,
            channels,
            size,
            dtype,
            random_.choice([dtype, torch.float32]),
            *(random_.random() < share for share in (0.4, 0.5, 0.4, 0.4)),
            random_.choice([n for n in range(1, channels + 1) if channels % n == 0]),
            random_.choice([75, 80, 90]),
        )
        if min(drawn.output_size) < 1:
            continue
        voxels = sorted([math.prod(size), math.prod(drawn.output_size)])
        many = max(batch, 1) * channels
        if voxels[1] * many <= MOST_ELEMENTS and voxels[0] * many * math.prod(kernel) <= MOST_PRODUCTS:
            return drawn


def convolve(p: Drawn, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    """PyTorch's own."""
    g = p.geometry
    if g.transposed:
        return F.conv_transpose3d(x, w, b, g.stride, g.padding, g.output_padding, p.channels, g.dilation)
    return F.conv3d(x, w, b, g.stride, g.padding, g.dilation, p.channels)


@contextlib.contextmanager
def pytorchs_kernels(p: Drawn) -> Iterator[None]:
    """Without oneDNN where padding exceeds the kernel's reach: its float16 kernels crash there, on processors with
    instructions for float16."""
    g = p.geometry
    before = torch._C._get_mkldnn_enabled()
    within = all(pad <= d * (k - 1) for pad, d, k in zip(g.padding, g.dilation, g.kernel_size, strict=True))
    torch._C._set_mkldnn_enabled(before and within)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def tensors_of(p: Drawn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Input, weight, bias and gradient of the output; the input in the problem's memory format."""
    generator = torch.Generator().manual_seed(p.seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    taps = math.prod(p.geometry.kernel_size)
    x = normal(p.batch, p.channels, *p.size).to(p.dtype)
    w = (normal(p.channels, 1, *p.geometry.kernel_size) / taps**0.5).to(p.parameter_dtype)
    b = normal(p.channels).to(p.parameter_dtype) if p.bias else None
    grad = normal(p.batch, p.channels, *p.output_size).to(p.dtype)
    if p.channels_last:
        x, grad = (t.contiguous(memory_format=torch.channels_last_3d) for t in (x, grad))
    return x, w, b, grad


def gradient_of(p: Drawn, grad: torch.Tensor) -> tuple[torch.Tensor | GroupNormGradient, torch.Tensor]:
    """The gradient as the backend is given it, and written out in float64."""
    if not p.affine:
        return grad, grad.double()
    generator = torch.Generator().manual_seed(p.seed + 1)
    output = torch.randn(grad.shape, generator=generator).to(p.dtype)
    if p.channels_last:
        output = output.contiguous(memory_format=torch.channels_last_3d)
    maps = [torch.randn(p.batch, p.channels, generator=generator) for _ in range(3)]
    scale, slope, offset = (m.double()[:, :, None, None, None] for m in maps)
    return GroupNormGradient(grad, output, *maps), scale * grad.double() + slope * output.double() + offset


def check_forward(backend, p: Drawn) -> list[torch.Tensor]:
    x, w, b, _ = tensors_of(p)
    with backend.architecture(p.architecture):
        output = backend.depthwise_conv3d(x, w, b, p.geometry)
        stored, mean, rstd = backend.depthwise_conv3d_statistics(x, w, b, p.geometry, p.num_groups, EPS)
    assert output.shape == (p.batch, p.channels, *p.output_size)
    assert torch.equal(output, stored)
    if p.batch == 0:
        return [output, mean, rstd]
    exact = convolve(p, x.double(), w.double(), None if b is None else b.double())
    # Contiguous: some of PyTorch's own channels_last_3d paths leave NaN.
    with pytorchs_kernels(p):
        theirs = convolve(p, x.contiguous(), w.to(p.dtype), None if b is None else b.to(p.dtype))
    assert_within_twice(output, theirs, exact, f"output of {p}")
    values = output.double().reshape(p.batch, p.num_groups, -1)
    exact_variance, exact_mean = torch.var_mean(values, dim=2, correction=0)
    exact_rstd = (exact_variance + EPS).rsqrt()
    assert ((mean.double() - exact_mean).abs() <= 2**-21 * (exact_mean.abs() + 1 / exact_rstd)).all(), p
    assert ((rstd.double() - exact_rstd).abs() <= 2**-21 * exact_rstd).all(), p
    return [output, mean, rstd]


def check_backward(backend, p: Drawn) -> list[torch.Tensor]:
    x, w, _, grad = tensors_of(p)
    given, written = gradient_of(p, grad)
    add = None
    if p.add:
        add = torch.randn(x.shape, generator=torch.Generator().manual_seed(p.seed + 2)).to(p.dtype)
    with backend.architecture(p.architecture):
        data, weight = backend.depthwise_conv3d_backward(given, x, w, p.geometry, add, True, True)
    assert data.shape == x.shape and weight.shape == w.shape and weight.dtype == torch.float32
    if p.batch == 0:
        assert not weight.any()
        return [data, weight]

    def gradients(dtype: torch.dtype, grad: torch.Tensor = written) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = [t.to(dtype).contiguous().requires_grad_() for t in (x, w)]
        with pytorchs_kernels(p):
            made = torch.autograd.grad(convolve(p, *inputs, None), inputs, grad.to(dtype).contiguous())
        return made[0] if add is None else made[0] + add.to(dtype), made[1]

    exact, theirs = gradients(torch.float64), gradients(p.dtype)
    assert_within_twice(data, theirs[0], exact[0], f"gradient of the input of {p}")
    assert_within_twice(weight, theirs[1].float(), exact[1], f"gradient of the weight of {p}")
    their_error = rms_error(theirs[1], exact[1])
    if p.dtype != torch.float32 and their_error > 0:  # it is 0 where no tap meets the input
        # A gradient that is computed may be rounded first, as PyTorch is given it: then the sums of that are compared,
        # for where taps are few PyTorch's second rounding may happen to take back the first.
        rounded = gradients(torch.float64, written.to(p.dtype))[1] if p.affine else exact[1]
        assert rms_error(weight, exact[1]) < their_error or rms_error(weight, rounded) < rms_error(
            theirs[1], rounded
        ), f"gradient of the weight of {p}"
    return [data, weight]
